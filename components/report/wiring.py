"""Inputs of the report components as work of the step."""

from typing import Any

from components.runtime import run_step


def write(
    root: str,
    name: str,
    settings: dict[str, Any],
    made: tuple[str, str, str],
    video_sets: list[str],
    scores: list[str],
    report: Any,
    page: Any,
    **told: str,
) -> None:
    """Write the page.

    Args:
        root: of the run.
        name: of the report.
        settings: keys of its config.
        made: manifests of the autoencoder, the latents and the checkpoint.
        video_sets: manifests of the sets.
        scores: manifests of their scores.
        report: KFP artifact of the manifest.
        page: KFP artifact of the page.
        told: what the page tells first, `about`, and the gate's `promotion`.
    """
    wired = dict(zip(("vae", "latents", "checkpoint"), made, strict=True))
    wired |= {"root": root, "name": name, "output": page.path, **told}
    sets = {"video_sets": video_sets, "scores": scores}
    run_step("report", "report", settings, {**wired, **sets}, output=report)
