"""Train: a Latte on latents, resumed where it was stopped."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    root: str,
    name: str,
    settings: dict,
    latents: str,
    vae: str,
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    init_from: str = "",
    pretrained: str = "",
) -> str:
    """Train a Latte on latents; goes on where an earlier try was stopped.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the run; its checkpoints go to runs/<name>/.
        settings: Keys of latte.steps.train.TrainConfig: model, steps, batch_size, …
        latents: Manifest of the encoded dataset.
        vae: Manifest of the autoencoder's weights; decodes the previews that settings.preview_every asks for.
        checkpoint: Manifest of the run's checkpoints.
        metrics: Last loss, gradient norm and rate.
        init_from: Manifest of a checkpoint to start from, in place of the settings' own; empty for those.
        pretrained: Manifest of converted weights to start from where init_from is empty; empty for the settings' own.

    Returns:
        URI of the manifest of the run's checkpoints, for the tasks after it.
    """
    from components.runtime import handed_on, run_step

    wired = {"root": root, "name": name, "latents": latents, "vae": vae}
    start = init_from or pretrained
    given = {**settings, "init_from": start} if start else settings
    made = run_step("train", "train", given, wired, output=checkpoint, metrics=metrics)
    return handed_on("train", root, made)
