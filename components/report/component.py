"""Report: one HTML page that shows a whole run, a night or a set of clips."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    root: str,
    name: str,
    settings: dict,
    vae: str,
    latents: str,
    checkpoint: str,
    trained: str,
    untrained: str,
    trained_score: str,
    untrained_score: str,
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
    from components.report.wiring import write

    made = vae, latents, checkpoint
    write(root, name, settings, made, [trained, untrained], [trained_score, untrained_score], report, page)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report_night(
    root: str,
    name: str,
    settings: dict,
    vae: str,
    latents: str,
    checkpoint: str,
    after: str,
    before: str,
    after_score: str,
    before_score: str,
    promotion: str,
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Write the page of a night: the gate's decision first, what is new, the last nights, clips of both models.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the report; it goes to reports/<name>/.
        settings: Keys of latte.steps.report.ReportConfig.
        vae: Manifest of the autoencoder's weights.
        latents: Manifest of the encoded dataset.
        checkpoint: Manifest of the training run.
        after: Manifest of the video set of tonight's model.
        before: Manifest of the video set of the model that training went on from.
        after_score: Manifest of the score of tonight's model.
        before_score: Manifest of the score of the model before.
        promotion: Manifest of the gate's decision.
        report: Manifest of the report.
        page: The page itself, for the KFP UI.
    """
    from components.report.wiring import write

    made = vae, latents, checkpoint
    write(
        root,
        name,
        settings,
        made,
        [after, before],
        [after_score, before_score],
        report,
        page,
        about="night",
        promotion=promotion,
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report_set(
    root: str,
    name: str,
    settings: dict,
    vae: str,
    latents: str,
    checkpoint: str,
    videos: str,
    score: str,
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Write the page of a set of clips: which model made it, its score, the sets before it, clips beside real ones.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the report; it goes to reports/<name>/.
        settings: Keys of latte.steps.report.ReportConfig.
        vae: Manifest of the autoencoder's weights.
        latents: Manifest of the encoded dataset.
        checkpoint: Manifest of the checkpoint, or of converted Latte weights.
        videos: Manifest of the video set.
        score: Manifest of its score.
        report: Manifest of the report.
        page: The page itself, for the KFP UI.
    """
    from components.report.wiring import write

    made = vae, latents, checkpoint
    write(root, name, settings, made, [videos], [score], report, page, about="set")
