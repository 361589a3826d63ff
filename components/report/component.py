"""Report: one HTML page that shows the whole run."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    root: str,
    name: str,
    settings: dict,
    vae: dsl.Input[dsl.Model],
    latents: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    trained: dsl.Input[dsl.Artifact],
    untrained: dsl.Input[dsl.Artifact],
    trained_score: dsl.Input[dsl.Artifact],
    untrained_score: dsl.Input[dsl.Artifact],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Write one self-contained HTML page: data, loss curve, moving clips side by side, scores, time per step.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the report; it goes to reports/<name>/.
        settings: Keys of latte.steps.report.ReportConfig.
        vae: Manifest of the autoencoder's weights.
        latents: Manifest of the encoded dataset.
        checkpoint: Manifest of the training run.
        trained: Manifest of the trained model's video set.
        untrained: Manifest of the untrained model's video set.
        trained_score: Manifest of the trained model's score.
        untrained_score: Manifest of the untrained model's score.
        report: Manifest of the report.
        page: The page itself, for the KFP UI.
    """
    from components.runtime import run_step

    wired = {
        "root": root,
        "name": name,
        "vae": vae.path,
        "latents": latents.path,
        "checkpoint": checkpoint.path,
        "video_sets": [trained.path, untrained.path],
        "scores": [trained_score.path, untrained_score.path],
        "output": page.path,
    }
    run_step("report", "report", "ReportConfig", settings, wired, output=report)
