"""Settings of a pipeline run: a YAML file with a section a step, checked as a whole before anything is started."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from components.runtime import build_config
from latte import config, storage
from latte.errors import UserError

# section: (module under latte.steps, config class, keys that the pipeline fills in)
SECTIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "vae": ("convert", "ConvertConfig", ()),
    "detector": ("convert", "ConvertConfig", ()),
    "encode": ("encode", "EncodeConfig", ("vae",)),
    "train": ("train", "TrainConfig", ("latents",)),
    "sample": ("sample", "SampleConfig", ("checkpoint", "vae")),
    "score": ("score", "ScoreConfig", ("videos", "real", "detector")),
    "report": ("report", "ReportConfig", ("vae", "latents", "checkpoint")),
}
# Sections in which the pipeline fills in lists of manifests.
_WIRED_LISTS = {"report": ("video_sets", "scores")}


class PipelineConfig(config.Config):
    """Parameters of `train_and_evaluate`; each section holds the keys of one step's config."""

    name: str = Field(description="name of the dataset, the training run and the report")
    root: str | None = Field(
        default=None, description="s3://bucket/prefix or file:///dir; None: a store of the run's own"
    )
    vae: dict[str, Any] = Field(description="ConvertConfig of the autoencoder")
    detector: dict[str, Any] = Field(description="ConvertConfig of the I3D that scores")
    encode: dict[str, Any] = Field(description="EncodeConfig: the dataset and how it is encoded")
    train: dict[str, Any] = Field(default_factory=dict, description="TrainConfig")
    sample: dict[str, Any] = Field(
        default_factory=dict, description="SampleConfig, for the trained and untrained model"
    )
    score: dict[str, Any] = Field(default_factory=dict, description="ScoreConfig")
    report: dict[str, Any] = Field(default_factory=dict, description="ReportConfig")


def load(path: str | Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read and check the settings; every section is checked against its step's config.

    Raises:
        UserError: a key is unknown, missing or bad in any section, or a local file or folder named in it is missing.
    """
    settings = config.load(PipelineConfig, path, overrides)
    for section, (module, class_name, wired) in SECTIONS.items():
        filled: dict[str, Any] = {"root": settings.root or "file:///", "name": settings.name}
        filled |= dict.fromkeys(wired, "file:///later")
        filled |= {key: ["file:///later"] for key in _WIRED_LISTS.get(section, ())}
        _refuse_null(f"{path}: {section}", getattr(settings, section))
        step = build_config(module, class_name, getattr(settings, section), filled, source=f"{path}: {section}")
        _check_inputs(f"{path}: {section}", step)
    return settings


def parameters(settings: PipelineConfig, root: str) -> dict[str, Any]:
    """The arguments of the pipeline function."""
    return {**settings.model_dump(exclude={"root"}), "root": root}


def _refuse_null(source: str, values: dict[str, Any]) -> None:
    """KFP's parameters know no null."""
    for key, value in values.items():
        if value is None:
            raise UserError(f"{source}.{key}: null cannot be passed on by KFP; leave the key out or name a preset")
        if isinstance(value, dict):
            _refuse_null(f"{source}.{key}", value)


def _check_inputs(source: str, step: config.Config) -> None:
    """What is named on this machine must be there now, not ten minutes into the run."""
    named = {
        "source": getattr(step, "source", None),
        "dataset.videos": getattr(getattr(step, "dataset", None), "videos", None),
    }
    for key, value in named.items():
        local = value is not None and value != "random" and not storage.is_s3(str(value))
        if local and not storage.local_path(str(value)).exists():
            raise UserError(f"{source}.{key}: {value}: no such file or folder")
