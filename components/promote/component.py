"""Promote: the gate before a model is used, and what is promoted now."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(
    root: str,
    name: str,
    settings: dict,
    checkpoint: str,
    score: str,
    real: str,
    detector: str,
    promotion: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Promote the checkpoint if its score passes the gate; a model that does not pass is no failure.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the model in the registry; its pointer is registry/<name>/current.json.
        settings: Keys of latte.steps.promote.PromoteConfig: margin, tolerance, apart.
        checkpoint: Manifest of the candidate's training run.
        score: Manifest of the candidate's score.
        real: Manifest of the encoded dataset that the score is against.
        detector: Manifest of the I3D weights.
        promotion: Manifest of the decision.
        metrics: promoted (1 or 0), the two values and the limit.

    Returns:
        URI of the manifest of the decision, for the report.
    """
    from components.runtime import run_step

    wired = {
        "root": root,
        "name": name,
        "checkpoint": checkpoint,
        "score": score,
        "real": real,
        "detector": detector,
    }
    return run_step("promote", "promote", settings, wired, output=promotion, metrics=metrics).file


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote_start(root: str, name: str) -> str:
    """Look up where training goes on from.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the model in the registry.

    Returns:
        URI of the promoted checkpoint's manifest, or nothing before the first promotion.
    """
    from components.runtime import run_step
    from latte.facts import PromotedMetrics

    wired = {"root": root, "name": name}
    found = run_step("promoted", "promoted", {}, wired, function="look_up")
    return PromotedMetrics.of(found).checkpoint


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote_checkpoint(root: str, name: str, uri: str, checkpoint: dsl.Output[dsl.Model]) -> str:
    """Fetch the manifest of the promoted checkpoint, or of the one that is named.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the model in the registry.
        uri: Manifest of a checkpoint or of converted Latte weights; empty for the promoted one.
        checkpoint: Manifest of the checkpoint.

    Returns:
        URI of the manifest of the checkpoint, for the tasks after it.
    """
    from components.runtime import handed_on, run_step

    wired = {"root": root, "name": name, "checkpoint": uri}
    made = run_step("checkpoint", "promoted", {}, wired, function="fetch", output=checkpoint)
    return handed_on("checkpoint", root, made)
