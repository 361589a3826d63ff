"""Inputs of the sample components as a stage."""

from typing import Any

from components.stage import PartedStage


def stage(root: str, name: str, settings: dict[str, Any], step: int, checkpoint: str, vae: str) -> PartedStage:
    """The stage of the video set `name`; a `step` below 0 is the newest."""
    wired = {"root": root, "name": name, "checkpoint": checkpoint, "vae": vae, "adapt": True}
    wired["step"] = None if int(step) < 0 else int(step)
    return PartedStage(f"sample {name}", "sample", settings, wired, {})
