"""Report: one HTML page that shows a whole run, a night or a set of clips."""

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
    run_step("report", "report", settings, wired, output=report)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report_night(
    root: str,
    name: str,
    settings: dict,
    vae: dsl.Input[dsl.Model],
    latents: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    after: dsl.Input[dsl.Artifact],
    before: dsl.Input[dsl.Artifact],
    after_score: dsl.Input[dsl.Artifact],
    before_score: dsl.Input[dsl.Artifact],
    promotion: dsl.Input[dsl.Artifact],
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
    from components.runtime import run_step

    wired = {
        "root": root,
        "name": name,
        "about": "night",
        "vae": vae.path,
        "latents": latents.path,
        "checkpoint": checkpoint.path,
        "video_sets": [after.path, before.path],
        "scores": [after_score.path, before_score.path],
        "promotion": promotion.path,
        "output": page.path,
    }
    run_step("report", "report", settings, wired, output=report)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report_set(
    root: str,
    name: str,
    settings: dict,
    vae: dsl.Input[dsl.Model],
    latents: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    videos: dsl.Input[dsl.Artifact],
    score: dsl.Input[dsl.Artifact],
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
    from components.runtime import run_step

    wired = {
        "root": root,
        "name": name,
        "about": "set",
        "vae": vae.path,
        "latents": latents.path,
        "checkpoint": checkpoint.path,
        "video_sets": [videos.path],
        "scores": [score.path],
        "output": page.path,
    }
    run_step("report", "report", settings, wired, output=report)
