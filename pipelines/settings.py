"""Settings of a pipeline run: a YAML file with a section a step, checked as a whole before anything is started."""

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from components.work import build_config
from latte import config, storage
from latte.catalog import scan
from latte.errors import UserError
from latte.metrics import protocol
from latte.models.configs import AutoencoderKLConfig, I3DConfig, LatteConfig
from latte.steps import convert, dataset_demands, demands
from latte.steps.encode import EncodeConfig
from pipelines.cluster import Cluster, check_workers

# section: (module under latte.steps, config class, keys that the pipeline fills in)
SECTIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "vae": ("convert", "ConvertConfig", ()),
    "detector": ("convert", "ConvertConfig", ()),
    "pretrained": ("convert", "ConvertConfig", ()),
    "encode": ("encode", "EncodeConfig", ("vae",)),
    "train": ("train", "TrainConfig", ("latents", "vae")),
    "sample": ("sample", "SampleConfig", ("checkpoint", "vae", "step", "adapt")),
    "score": ("score", "ScoreConfig", ("videos", "real", "detector")),
    "promote": ("promote", "PromoteConfig", ("checkpoint", "score", "real", "detector")),
    "report": ("report", "ReportConfig", ("vae", "latents", "checkpoint", "video_sets", "scores", "output")),
}
# Sections that may be left out, and whose step then does nothing.
_OPTIONAL = ("pretrained",)
# What stands in for keys that are no manifest, before the pipeline fills them in.
_LATER = "file:///later"
_STAND_INS: dict[str, Any] = {"step": None, "adapt": True, "video_sets": [_LATER], "scores": [_LATER]}
# What the weights of a section are of.
_KINDS = {"vae": "vae", "detector": "i3d", "pretrained": "latte"}
# A key of each section that says nothing new. A component takes an empty section for a step that is not there.
_SAID_ANYWAY = {"train": "frame_stride", "sample": "num_videos", "score": "batch_size"}


class _Common(config.Config):
    """What every pipeline takes; each section holds the keys of one step's config."""

    name: str = Field(description="name of the run, and of what it makes")
    root: config.Root | None = Field(
        default=None, description="s3://bucket/prefix or file:///dir; None: a store of the run's own"
    )
    vae: dict[str, Any] = Field(description="ConvertConfig of the autoencoder")
    detector: dict[str, Any] = Field(description="ConvertConfig of the I3D that scores")
    encode: dict[str, Any] = Field(description="EncodeConfig: the dataset and how it is encoded")
    sample: dict[str, Any] = Field(default_factory=dict, description="SampleConfig, for every set of the run")
    score: dict[str, Any] = Field(default_factory=dict, description="ScoreConfig")
    cluster: Cluster = Field(default_factory=Cluster, description="with what the steps run on a cluster")

    @property
    def prefix(self) -> str:
        """Where in the bucket of a run's own store its data lies."""
        return self.name


class PipelineConfig(_Common):
    """Parameters of `train_and_evaluate`; `name` names the dataset, the training run and the report."""

    pipeline: ClassVar[str] = "train_and_evaluate"
    pretrained: dict[str, Any] = Field(
        default_factory=dict, description="ConvertConfig of the Latte to finetune; leave it out to train a fresh one"
    )
    train: dict[str, Any] = Field(default_factory=dict, description="TrainConfig")
    report: dict[str, Any] = Field(default_factory=dict, description="ReportConfig")


class NightlyConfig(PipelineConfig):
    """Parameters of `nightly_retrain`; `name` is also the model's name in the registry."""

    pipeline: ClassVar[str] = "nightly_retrain"
    promote: dict[str, Any] = Field(default_factory=dict, description="PromoteConfig: margin or tolerance")


class BulkConfig(_Common):
    """Parameters of `bulk_sample`; `name` names the video set and its score."""

    pipeline: ClassVar[str] = "bulk_sample"
    model: str = Field(default="", description="name of the model in the registry")
    dataset: str = Field(description="name of the dataset that the score is against")
    checkpoint: str = Field(
        default="", description="manifest of a checkpoint or of converted Latte weights; empty: the promoted one"
    )

    @property
    def prefix(self) -> str:
        """Beside the dataset and the registry, which another pipeline has filled."""
        return self.dataset

    @model_validator(mode="after")
    def _names_weights(self) -> "BulkConfig":
        if not self.model and not self.checkpoint:
            raise ValueError("name a model of the registry, or a checkpoint's manifest")
        return self


AnyConfig = PipelineConfig | NightlyConfig | BulkConfig
PIPELINES: dict[str, type[AnyConfig]] = {cls.pipeline: cls for cls in (PipelineConfig, NightlyConfig, BulkConfig)}


def load(path: str | Path, overrides: Sequence[str] = (), pipeline: str = "train_and_evaluate") -> AnyConfig:
    """Read and check the settings of a pipeline; every section is checked against its step's config.

    Raises:
        UserError: a key is unknown, missing or bad in any section, or a local file or folder named in it is missing.
    """
    settings: AnyConfig = config.load(PIPELINES[pipeline], path, overrides)
    steps = _steps(settings, str(path))
    for section, step in steps.items():
        _check_inputs(f"{path}: {section}", step)
    vae, detector, pretrained = (
        _network(path, settings, section, cls)
        for section, cls in (("vae", AutoencoderKLConfig), ("detector", I3DConfig), ("pretrained", LatteConfig))
    )
    asked = _asked(steps)
    with _named(str(path)):
        demands.check_settings(asked, vae, lambda uri: not storage.is_s3(uri))
        demands.check_weights(asked, detector, pretrained, lambda uri: not storage.is_s3(uri))
    return settings


def load_remote(path: str | Path, overrides: Sequence[str] = (), pipeline: str = "train_and_evaluate") -> AnyConfig:
    """Read and check settings for a cluster, whose files and folders need not be on this machine.

    Raises:
        UserError: a key is unknown, missing or bad in any section.
    """
    settings: AnyConfig = config.load(PIPELINES[pipeline], path, overrides)
    _steps(settings, str(path))
    return settings


def check(cls: type[AnyConfig], values: Mapping[str, Any], source: str) -> AnyConfig:
    """Settings from values; `source` is named in errors.

    Raises:
        UserError: a key is unknown, missing or bad in any section.
    """
    settings: AnyConfig = config.build(cls, values, source)
    _steps(settings, source)
    return settings


def _steps(settings: AnyConfig, source: str) -> dict[str, config.Config]:
    """The config of every step of the pipeline, checked."""
    steps = {}
    for section, (module, class_name, wired) in SECTIONS.items():
        if section not in type(settings).model_fields:
            continue
        given = getattr(settings, section)
        if section in _OPTIONAL and not given:
            continue
        filled: dict[str, Any] = {"root": settings.root or "file:///unset", "name": settings.name}
        filled |= {key: _STAND_INS.get(key, _LATER) for key in wired}
        _refuse_null(f"{source}: {section}", given)
        steps[section] = build_config(module, class_name, given, filled, source, prefix=f"{section}.")
        kind = _KINDS.get(section, given.get("kind"))
        if given.get("kind") != kind:
            raise UserError(
                f"{source}: {section}.kind={given['kind']}: not what {section} needs; {section}.kind={kind} works"
            )
    with _named(source):
        demands.check_settings(_asked(steps), can_read=lambda uri: False)
    if "train" in steps:
        check_workers(settings.cluster, getattr(steps["train"], "workers", 1), source)
    return steps


@contextlib.contextmanager
def _named(source: str) -> Iterator[None]:
    """Say in a mistake where the settings come from."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _asked(steps: Mapping[str, config.Config]) -> demands.Asked:
    known: dict[str, Any] = {name: steps.get(name) for name in ("encode", "train", "sample", "score")}
    return demands.Asked(**known, promotes="promote" in steps)


def check_dataset(settings: AnyConfig, source: str) -> list[str]:
    """List the dataset, hold it against the settings, and say what is there and what will follow from it, in lines.

    No video is decoded; of some their packets are counted.

    Args:
        settings: of a pipeline.
        source: where they come from, for errors.

    Raises:
        UserError: the dataset is missing or unusable, or a step asks for more than it has.
    """
    asked = _asked(_steps(settings, source))
    if asked.encode is None:
        raise TypeError(f"{type(settings).__name__} has no section encode")
    adapts = asked.score is not None and protocol.is_adaptive(asked.score.protocol, "num_clips")
    with _named(source):
        catalog = scan(asked.encode.dataset, read_contents=False)
        dataset_demands.check(dataset_demands.listed(catalog), asked)
        dataset = dataset_demands.counted(catalog, asked, whole=adapts)
    classes = f"{len(catalog.classes)} classes" if catalog.classes else "no classes"
    found = f"dataset: {len(catalog.entries)} videos, {classes}, {len(catalog.rejects)} files that cannot be used"
    return [found, *dataset_demands.notes(dataset, asked)]


def network(weights: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of the network that weights are of; None where they do not lie on this machine, or in no file.

    Args:
        weights: the section `vae`, `detector` or `pretrained`.

    Raises:
        UserError: they are of something else, damaged, or contradict their settings.
    """
    source = str(weights["source"])
    if source == convert.RANDOM or storage.is_s3(source):
        return None
    return convert.look(config.build(convert.ConvertConfig, {**weights, "root": _LATER, "name": "weights"}))


def _network(path: str | Path, settings: AnyConfig, section: str, cls: type[config.Config]) -> Any:
    """The config of the network that a section's weights are of; None where that cannot be said here."""
    given = getattr(settings, section, {})
    if not given:
        return None
    with _named(f"{path}: {section}"):
        found = network(given)
    return None if found is None else config.build(cls, found, f"{path}: {section}")


def remarks(settings: AnyConfig) -> list[str]:
    """What is allowed and worth knowing before a run."""
    vae = network(settings.vae) or settings.vae.get("model", {})
    known = vae.get("sample_size")
    size = settings.encode.get("image_size", EncodeConfig.model_fields["image_size"].default)
    if known is None or size == known:
        return []
    return [
        f"encode.image_size={size}: the autoencoder was trained on {known} pixels; it knows encode.image_size={known}"
    ]


def parameters(settings: AnyConfig, root: str) -> dict[str, Any]:
    """The arguments of the pipeline function; `cluster` is no argument but compiled into it."""
    values = {**settings.model_dump(exclude={"root", "cluster"}), "root": root}
    for section, key in _SAID_ANYWAY.items():
        if values.get(section) == {}:
            module, class_name, _ = SECTIONS[section]
            cls = getattr(importlib.import_module(f"latte.steps.{module}"), class_name)
            values[section] = {key: cls.model_fields[key].default}
    return values


def local_folders(settings: AnyConfig) -> list[Path]:
    """Folders of this machine that the settings name, and folders of files that they name: more may lie beside them."""
    texts: list[Any] = [settings.model_dump()]
    found = set()
    while texts:
        value = texts.pop()
        if isinstance(value, dict | list):
            texts += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and value and not storage.is_s3(value):
            path = storage.local_path(value).absolute()
            if path.exists():
                found.add(path if path.is_dir() else path.parent)
    return sorted(found)


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
        "init_from": getattr(step, "init_from", None),
        "captions": getattr(step, "captions", None),
        "latents": getattr(step, "latents", None),
        "dataset.videos": getattr(getattr(step, "dataset", None), "videos", None),
        "text_encoder": getattr(step, "text_encoder", None),
        "tokenizer": getattr(step, "tokenizer", None),
    }
    for key, value in named.items():
        local = value not in (None, "random", _LATER) and not storage.is_s3(str(value))
        if local and not storage.local_path(str(value)).exists():
            raise UserError(f"{source}.{key}: {value}: no such file or folder")
