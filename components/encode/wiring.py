"""Inputs of the encode components as a stage."""

from typing import Any

from components.stage import PartedStage


def stage(
    root: str,
    name: str,
    settings: dict[str, Any],
    vae: str,
    train: dict[str, Any],
    sample: dict[str, Any],
    score: dict[str, Any],
) -> PartedStage:
    """The stage of the dataset `name`; `train`, `sample` and `score` are empty for steps that are not there."""
    sections = {key: keys for key, keys in (("train", train), ("sample", sample), ("score", score)) if keys}
    return PartedStage("encode", "encode", settings, {"root": root, "name": name, "vae": vae}, {"sections": sections})
