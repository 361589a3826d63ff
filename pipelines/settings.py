"""Settings of a pipeline run: a YAML file with a section a step, checked as a whole before anything is started."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from components.work import build_config
from latte import config, config_help, storage
from latte.cli import inside
from latte.data.catalog import scan
from latte.errors import UserError
from latte.kinds import KINDS, detectors
from latte.metrics import protocol
from latte.steps import config_class, convert, dataset_demands, demands
from latte.steps.encode import EncodeConfig
from pipelines import places, presets
from pipelines.cluster import FANNED_OUT, Cluster, check_workers
from pipelines.places import Named
from pipelines.tracking import MlflowConfig

# section: (step, keys that the pipeline fills in)
SECTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "vae": ("convert", ()),
    "detector": ("convert", ()),
    "pretrained": ("convert", ()),
    "encode": ("encode", ("vae",)),
    "train": ("train", ("latents", "vae")),
    "sample": ("sample", ("checkpoint", "vae", "step", "adapt")),
    "score": ("score", ("videos", "real", "detector")),
    "promote": ("promote", ("checkpoint", "score", "real", "detector")),
    "report": ("report", ("about", "vae", "latents", "checkpoint", "video_sets", "scores", "promotion", "output")),
    "notify": ("tell", ("pipeline", "run", "state", "error")),
}
# Sections that may be left out, and whose step then does nothing.
_OPTIONAL = ("pretrained",)
# Keys that presets of a step have and that a pipeline fills in.
_FILLED_IN = {section: ("root", "name", "target", *wired) for section, (_, wired) in SECTIONS.items()}
# What stands in for keys that are no manifest, before the pipeline fills them in.
_LATER = "file:///later"
_STAND_INS: dict[str, Any] = {
    "step": None,
    "adapt": True,
    "video_sets": [_LATER],
    "scores": [_LATER],
    "about": "training",
    "promotion": None,
}
# What the weights of a section may be of.
_KINDS = {"vae": ("vae",), "detector": detectors(), "pretrained": ("latte",)}
# A key of each section that says nothing new. A component takes an empty section for a step that is not there.
_SAID_ANYWAY = {"train": "frame_stride", "sample": "num_videos", "score": "batch_size"}


class _Common(config.Config):
    """Settings of every pipeline; each section holds the keys of one step's config."""

    name: str = Field(description="name of the run, and of what it makes")
    root: config.Root | None = Field(
        default=None, description="s3://bucket/prefix or file:///dir; None: a store of the run's own"
    )
    vae: dict[str, Any] = Field(description="ConvertConfig of the autoencoder")
    detector: dict[str, Any] = Field(description="ConvertConfig of the I3D that scores")
    encode: dict[str, Any] = Field(description="EncodeConfig: the dataset and how it is encoded")
    sample: dict[str, Any] = Field(default_factory=dict, description="SampleConfig, for every set of the run")
    score: dict[str, Any] = Field(default_factory=dict, description="ScoreConfig")
    report: dict[str, Any] = Field(default_factory=dict, description="ReportConfig")
    notify: dict[str, Any] = Field(
        default_factory=dict, description="TellConfig: the webhook that hears how a run has ended"
    )
    mlflow: MlflowConfig | None = Field(
        default=None, description="tracking by MLflow; left out: none (docs/tracking.md)"
    )
    cluster: Cluster = Field(default_factory=Cluster, description="with what the steps run on a cluster")

    @property
    def prefix(self) -> str:
        """Prefix of its data in the bucket of a run's own store."""
        return self.name

    @classmethod
    def paths(cls) -> Iterator[str]:
        """Every key of the settings, those of sections with the way to them: encode.dataset.videos."""
        yield from super().paths()
        for section, (step, wired) in SECTIONS.items():
            if section in cls.model_fields:
                own = (path for path in config_class(step).paths() if path not in ("root", "name", *wired))
                yield from (f"{section}.{path}" for path in own)


class PipelineConfig(_Common):
    """Parameters of `train_and_evaluate`; `name` names the dataset, the training run and the report."""

    pipeline: ClassVar[str] = "train_and_evaluate"
    pretrained: dict[str, Any] = Field(
        default_factory=dict, description="ConvertConfig of the Latte to finetune; leave it out to train a fresh one"
    )
    train: dict[str, Any] = Field(default_factory=dict, description="TrainConfig")


class NightlyConfig(PipelineConfig):
    """Parameters of `nightly_retrain`; `name` is also the model's name in the registry."""

    pipeline: ClassVar[str] = "nightly_retrain"
    promote: dict[str, Any] = Field(default_factory=dict, description="PromoteConfig: margin or tolerance, apart")


class BulkConfig(_Common):
    """Parameters of `bulk_sample`; `name` names the video set, its score and the report."""

    pipeline: ClassVar[str] = "bulk_sample"
    model: str = Field(default="", description="name of the model in the registry")
    dataset: str = Field(description="name of the dataset that the score is against")
    checkpoint: Annotated[str, config.FileKey("manifest")] = Field(
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

    Args:
        path: the file, or the name of a preset (`pipelines.presets`).
        overrides: section.key=value; relative paths in them count from the working folder.
        pipeline: whose settings they are.

    Raises:
        UserError: a key is unknown, missing or bad in any section, or a local file or folder named in it is missing.
    """
    cls = PIPELINES[pipeline]
    values = presets.resolved(presets.read(path, _FILLED_IN), lambda values: _named_in(cls, values))
    values = presets.expand(config.overridden(values, overrides), Path(), _FILLED_IN)
    settings: AnyConfig = config.build(cls, values, str(path))
    steps = _steps(settings, str(path))
    for each in named(settings):
        if each.kind != "protocol":  # read, and told of, below
            places.check_here(each, str(path))
    vae, detector, pretrained = (_network(path, settings, section) for section in _KINDS)
    asked = _asked(steps)
    with _named(str(path)):
        demands.check_settings(asked, vae, _is_here)
        demands.check_weights(asked, detector, pretrained, _is_here)
    return settings


def _is_here(uri: str) -> bool:
    return storage.path(uri) is not None


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
    for key, value in settings.model_dump().items():
        refuse_placeholders(f"{source}: {key}", value)
    steps = {}
    for section, (step, wired) in SECTIONS.items():
        if section not in type(settings).model_fields:
            continue
        given = getattr(settings, section)
        if section in _OPTIONAL and not given:
            continue
        filled: dict[str, Any] = {"root": settings.root or "file:///unset", "name": settings.name}
        filled |= {key: _STAND_INS.get(key, _LATER) for key in wired}
        _refuse_null(f"{source}: {section}", given)
        steps[section] = build_config(step, given, filled, source, prefix=f"{section}.")
        kinds = _KINDS.get(section)
        if kinds is not None and given["kind"] not in kinds:
            raise UserError(
                f"{source}: {section}.kind={given['kind']}: not what {section} needs; {section}.kind={kinds[0]} works"
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


def plan(settings: AnyConfig, source: str) -> str:
    """Needs of the training of a pipeline on Ascend, in lines; it is compiled by MindSpore for that.

    Raises:
        UserError: the pipeline does not train, or what it asks for does not fit a device.
    """
    from latte.planning import plans

    asked = _asked(_steps(settings, source))
    if asked.train is None or asked.encode is None:
        raise UserError(f"--plan: {type(settings).pipeline} trains nothing")
    with _named(source):
        classes = scan(asked.encode.dataset, read_contents=False).classes
        model = demands.planned_model(asked, _network(source, settings, "vae"), len(classes))
        planned = plans.training(asked.train, model)
        planned.check()
    return str(planned)


def key_rows(cls: type[AnyConfig], section: str | None = None) -> list[tuple[str, str]]:
    """Every key that the settings of a pipeline may have, with its explanation.

    Args:
        cls: settings of a pipeline.
        section: the only one that is wanted, or a key of none; None for all.

    Raises:
        UserError: there is no such section.
    """
    if section is not None and section not in cls.model_fields:
        raise UserError(f"{section}: no section of {cls.pipeline}{config.meant(section, cls.model_fields)}")
    rows = []
    for name, field in cls.model_fields.items():
        if section not in (None, name):
            continue
        own = list(config_help.rows(cls, but=tuple(set(cls.model_fields) - {name})))
        if name in SECTIONS:
            step, wired = SECTIONS[name]
            rows.append((name, f"{field.description} [{'required' if field.is_required() else 'may be left out'}]"))
            rows += config_help.rows(config_class(step), inside(step), f"{name}.", ("root", "name", *wired))
        else:
            rows += own
    return rows


def network(weights: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of the network that weights are of; None where they do not lie on this machine, or in no file.

    Args:
        weights: the section `vae`, `detector` or `pretrained`.

    Raises:
        UserError: they are of something else, damaged, or contradict their settings.
    """
    source = str(weights["source"])
    if source == convert.RANDOM or not _is_here(source):
        return None
    return convert.look(config.build(convert.ConvertConfig, {**weights, "root": _LATER, "name": "weights"}))


def _network(path: str | Path, settings: AnyConfig, section: str) -> Any:
    """The config of the network that a section's weights are of; None where that cannot be said here."""
    given = getattr(settings, section, {})
    if not given:
        return None
    with _named(f"{path}: {section}"):
        found = network(given)
    return None if found is None else KINDS[given["kind"]].configured(found, f"{path}: {section}")


def remarks(settings: AnyConfig) -> list[str]:
    """Notes on settings that are allowed and worth knowing before a run."""
    vae = network(settings.vae) or settings.vae.get("model", {})
    known = vae.get("sample_size")
    size = settings.encode.get("image_size", EncodeConfig.model_fields["image_size"].default)
    if known is None or size == known:
        return []
    return [
        f"encode.image_size={size}: the autoencoder was trained on {known} pixels; it knows encode.image_size={known}"
    ]


def parameters(settings: AnyConfig, root: str) -> dict[str, Any]:
    """The arguments of the pipeline function; `cluster` is compiled into it, `mlflow` goes beside them."""
    values = {**settings.model_dump(exclude={"root", "cluster", "mlflow"}), "root": root}
    for section, key in _SAID_ANYWAY.items():
        if values.get(section) == {}:
            values[section] = {key: config_class(SECTIONS[section][0]).model_fields[key].default}
    return values


def fanned_out(settings: AnyConfig) -> frozenset[str]:
    """The steps whose work these settings share out to several tasks."""
    numbers = {
        step: getattr(settings, step).get("num_tasks", config_class(step).model_fields["num_tasks"].default)
        for step in FANNED_OUT
    }
    return frozenset(step for step, number in numbers.items() if int(number) > 1)


def named(settings: AnyConfig) -> list[Named]:
    """Every file and folder that the settings name, in the order of their keys."""
    return _named_in(type(settings), settings.model_dump())


def _named_in(cls: type[AnyConfig], values: dict[str, Any]) -> list[Named]:
    found = list(places.of(cls, values))
    for section, (step, _) in SECTIONS.items():
        given = values.get(section) if section in cls.model_fields else None
        found += places.of(config_class(step), given if isinstance(given, dict) else {}, (section,))
    return found


def local_folders(settings: AnyConfig) -> list[Path]:
    """Folders of this machine that the settings name, and folders of files that they name: more may lie beside them."""
    texts: list[Any] = [settings.model_dump()]
    found = set()
    while texts:
        value = texts.pop()
        if isinstance(value, dict | list):
            texts += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and value and (path := storage.path(value)) is not None:
            path = path.absolute()
            if path.exists():
                found.add(path if path.is_dir() else path.parent)
    return sorted(found)


def refuse_placeholders(source: str, value: Any) -> None:
    """KFP and Argo put other values in the place of {{…}}, wherever it stands in what they hand on.

    Raises:
        UserError: a text or a key has it.
    """
    if isinstance(value, str) and "{{" in value:
        raise UserError(f"{source}: {value!r}: {{{{ begins a placeholder of KFP, which would be expanded; leave it out")
    if isinstance(value, dict):
        for key, below in value.items():
            refuse_placeholders(source, key)
            refuse_placeholders(f"{source}.{key}", below)
    elif isinstance(value, list | tuple):
        for each in value:
            refuse_placeholders(source, each)


def _refuse_null(source: str, values: dict[str, Any]) -> None:
    """KFP's parameters know no null."""
    for key, value in values.items():
        if value is None:
            raise UserError(f"{source}.{key}: null cannot be passed on by KFP; leave the key out or name a preset")
        if isinstance(value, dict):
            _refuse_null(f"{source}.{key}", value)
