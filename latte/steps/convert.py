"""The convert step: published weights to the networks' own files, checked strictly, without running what a file holds.

Where the source has several sets of weights, the moving average (EMA) is taken. Names of older conventions are renamed;
names, shapes and types must then be those of the architecture, in both directions.
"""

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from latte import storage
from latte.checkpoints import open_checkpoint, store
from latte.checkpoints.stored import Checkpoint, Refusal, forget, show
from latte.config import Config, FileKey, Root
from latte.errors import UserError
from latte.facts import DiffusionFacts, LatteFacts, WeightsFacts
from latte.kinds import KINDS, KindName, renaming
from latte.kinds.scheduler import PublishedScheduler
from latte.places import Place
from latte.steps import convert_beside, convert_table
from latte.storage import manifest, publishing

RANDOM = "random"
_HASH_BYTES = 8 << 20
_PIXELS_PER_LATENT = 8


def _digits(sha256: str) -> str:
    digits = sha256.strip().lower()
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise ValueError("expected 64 hexadecimal digits")
    return digits


class TrainedOn(Config):
    """Data behind published Latte weights, which their file does not tell; the defaults are the published."""

    vae: str = Field(default="sd-vae-ft-ema", description="the autoencoder whose latents they were, by name")
    scaling_factor: float = Field(default=0.18215, gt=0, description="what its latents were multiplied by")
    image_size: int | None = Field(default=None, gt=0, description="side of a frame in pixels; null: 8 per latent")
    noise_schedule: Literal["linear", "cosine"] = Field(default="linear", description="betas of the diffusion")
    classes: list[str] = Field(default_factory=list, description="names of the classes, in the order of their numbers")


class ConvertConfig(Config):
    """The file to convert, and its target: a file (`target`), a place under `root`, or both."""

    kind: KindName = Field(description="what the weights are of")
    source: Annotated[str, FileKey("weights")] = Field(
        description="published file (.pt, .pth, .bin, .ckpt, .safetensors, *.index.json), path or URI, or the folder "
        "that diffusers publishes; random for i3d"
    )
    target: Annotated[str | None, FileKey("target")] = Field(
        default=None, description="file to write, .safetensors or .ckpt; path or URI"
    )
    root: Root | None = Field(default=None, description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str | None = Field(default=None, description="name of the weights under root: weights/<name>/")
    seed: int = Field(default=0, ge=0, lt=1 << 32, description="what random weights follow from")
    model: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of the network that neither the file nor the config.json beside it tells",
    )
    trained_on: TrainedOn | None = Field(
        default=None,
        description="of what generates: vae, scaling_factor, image_size, noise_schedule, classes; null: as published",
    )
    part: str | None = Field(
        default=None,
        min_length=1,
        description="part of a training checkpoint, keys joined by /; null: its moving average, or else its weights",
    )
    sha256: Annotated[str, AfterValidator(_digits)] | None = Field(
        default=None, description="SHA-256 that the source must have, hexadecimal"
    )
    page: str | None = Field(default=None, description="page that the source comes from; kept in the manifest")

    @model_validator(mode="after")
    def _fits(self) -> "ConvertConfig":
        if self.target is None and self.root is None:
            raise ValueError("give target=FILE, or root and name")
        if (self.root is None) != (self.name is None):
            raise ValueError("root and name go together")
        if self.target is not None and not self.target.endswith((".safetensors", ".ckpt")):
            raise ValueError(f"target {self.target}: its ending names the format; write .safetensors or .ckpt")
        if "\0" in unquote(f"{self.source}{self.target}"):
            raise ValueError("source, target: no path has a zero byte in it")
        kind = KINDS[self.kind]
        if self.source == RANDOM and kind.random is None:
            able = ", ".join(name for name, each in KINDS.items() if each.random is not None)
            raise ValueError(f"source random is there for kind {able}, not for {self.kind}")
        if self.trained_on is not None and not kind.generates:
            able = ", ".join(name for name, each in KINDS.items() if each.generates)
            raise ValueError(f"trained_on is there for kind {able}, not for {self.kind}")
        return self


@dataclass(frozen=True)
class _Beside:
    """Things published beside the source: settings of the network, and of its diffusion."""

    model: dict[str, Any] = field(default_factory=dict)
    scheduler: PublishedScheduler | None = None

    @classmethod
    def of(cls, config: ConvertConfig) -> "_Beside":
        model = convert_beside.settings(config.source, config.kind)
        return cls(model, convert_beside.diffusion(config.source, config.kind))


def run(config: ConvertConfig) -> manifest.Manifest:
    """Convert, print a table of what was taken and left out, and return the manifest of the weights.

    Raises:
        UserError: the source cannot be read, is of another kind, its tensors are not those of the architecture or hold
            NaN or infinity; or the target cannot be written or is the source; nothing is left behind.
        StorageError: object storage stayed away for too long.
    """
    started = time.monotonic()
    if config.source == RANDOM:
        source = Checkpoint(f"random weights of seed {config.seed}", "", {})
        beside = _Beside()
    else:
        config = config.model_copy(update={"source": convert_beside.located(config.source, config.kind)})
        _check_target(config, [config.source])
        source = open_checkpoint(config.source, config.part or "")
        _check_target(config, source.uris)
        beside = _Beside.of(config)
    if config.sha256 is not None and len(source.files) != 1:
        raise UserError(
            f"{config.source}: sha256 is that of a single file, the source has {len(source.files)}; leave it out"
        )
    with ThreadPoolExecutor(1, thread_name_prefix="sha256") as pool:
        # Hashing the source takes about as long as writing the target: both at once where nothing waits for the hash.
        digest = pool.submit(_digest, source)
        if config.sha256 is not None and digest.result() != config.sha256:
            raise UserError(
                f"{config.source}: its SHA-256 is {digest.result()}, the config's sha256 says {config.sha256}; "
                "the download is damaged or of another version"
            )
        if config.root is not None:
            done = _place(config, beside, digest.result()).found
            if done is not None and config.target is None:
                return done
        tensors, facts = _prepare(config, source, beside)
        try:
            return _write(config, source, tensors, facts, beside, digest, started)
        except Refusal as error:
            raise UserError(f"{config.source}: {error}") from None


def look(config: ConvertConfig) -> dict[str, Any]:
    """Settings of the network that a source's weights are of, checked as `run` does, without reading the weights.

    Raises:
        UserError: as `run`.
    """
    config = config.model_copy(update={"source": convert_beside.located(config.source, config.kind)})
    return _prepare(config, open_checkpoint(config.source), _Beside.of(config))[1]["model"]


def _prepare(
    config: ConvertConfig, source: Checkpoint, beside: _Beside
) -> tuple[dict[str, store.Tensor], dict[str, Any]]:
    """Tensors by the network's names, checked, and the facts about them that the manifest keeps."""
    kind = KINDS[config.kind]
    left_out = list(source.left_out)
    tensors: Mapping[str, store.Tensor]
    deduced: dict[str, Any] = {}
    try:
        if config.source == RANDOM and kind.random is not None:
            tensors = kind.random(config.seed, kind.configured(kind.expand(config.model), "model"))
        elif source.program is not None and kind.read_program is not None:
            tensors, deduced = kind.read_program(source.program)
        else:
            tensors, dropped = renaming.rename(config.kind, source.tensors)
            left_out += dropped
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        given = {**_agreed(config, source, beside.model), **_not_contradicted(deduced, config.model)}
        what = f"{config.source} and the config.json beside it" if beside.model else config.source
        model, shapes = kind.describe(found, given, what)
    except Refusal as error:
        raise UserError(f"{config.source}: {error}") from None
    store.check_match(
        {name: (tuple(tensor.shape), str(store.dtype_of(tensor))) for name, tensor in tensors.items()},
        {name: (shape, "float32") for name, shape in shapes.items()},
        config.source,
    )
    facts = {"model": model, "left_out": [list(row) for row in convert_table.grouped(left_out)]}
    if kind.generates:
        facts |= _sampling_facts(config, model, beside.scheduler).said()
    return {name: tensors[name] for name in shapes}, facts


def _agreed(config: ConvertConfig, source: Checkpoint, beside: dict[str, Any]) -> dict[str, Any]:
    """The settings that the file, the config.json beside it and the config give, which must not contradict each other.

    Raises:
        Refusal: they do.
    """
    stated, who = (beside, "the config.json beside it says")
    kind = KINDS[config.kind]
    if kind.own_settings is not None:
        stated, who = kind.own_settings(source.settings), "its own settings say"
    model = kind.expand(config.model)
    for key, value in model.items():
        known = stated.get(key)
        if known is not None and known != value:
            ours = f"model.{key}={show(value)}" if key in config.model else f"{key} {show(value)} by its preset"
            raise Refusal(f"{who} {key} {show(known)}, the config says {ours}")
    return {**stated, **model}


def _not_contradicted(deduced: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Settings that a file's code tells; the config must not say another.

    Raises:
        Refusal: it does.
    """
    for key, value in deduced.items():
        if model.get(key) not in (None, value):
            raise Refusal(f"its code says {key} {show(value)}, the config says model.{key}={show(model[key])}")
    return deduced


def _check_target(config: ConvertConfig, sources: list[str]) -> None:
    """Check that nothing of the source would be overwritten, and that no folder stands where a file shall be.

    Raises:
        UserError: it would be, or there is one.
    """
    if config.target is None:
        return
    target = storage.from_path(config.target)
    for uri in (target, target + manifest.BESIDE_SUFFIX):
        if any(_is_same(uri, storage.from_path(source)) for source in sources):
            raise UserError(f"{config.target}: the target would overwrite the source; choose another")
        path = storage.path(uri)
        if path is not None and os.path.isdir(path):
            raise UserError(f"{uri}: a folder; the target and its manifest are written as files")


def _is_same(one: str, other: str) -> bool:
    paths = storage.path(one), storage.path(other)
    if one == other or paths[0] is None or paths[1] is None:
        return one == other
    try:
        return os.path.samefile(paths[0], paths[1])
    except (OSError, ValueError):
        return False  # one of them is not there


def _sampling_facts(config: ConvertConfig, model: dict[str, Any], scheduler: PublishedScheduler | None) -> LatteFacts:
    """Facts as a training run gives them with its checkpoints; the autoencoder by name, not by SHA-256."""
    trained_on = config.trained_on or TrainedOn()
    network = KINDS[config.kind].configured(model, config.source)
    if trained_on.classes and len(trained_on.classes) != network.num_classes:
        raise UserError(
            f"{config.source}: trained_on.classes has {len(trained_on.classes)} names, the weights are of "
            f"{network.num_classes} classes"
        )
    diffusion = DiffusionFacts(noise_schedule=trained_on.noise_schedule)
    if scheduler is not None:
        if trained_on.noise_schedule != scheduler.noise_schedule and config.trained_on is not None:
            raise UserError(
                f"trained_on.noise_schedule={trained_on.noise_schedule}: the scheduler_config.json beside "
                f"{config.source} says {scheduler.noise_schedule}"
            )
        diffusion = DiffusionFacts(noise_schedule=scheduler.noise_schedule, scheduler=scheduler)
    return LatteFacts(
        model=model,
        classes=trained_on.classes,
        diffusion=diffusion,
        image_size=trained_on.image_size or _PIXELS_PER_LATENT * network.input_size,
        latent_size=network.input_size,
        scaling_factor=trained_on.scaling_factor,
        vae=None,
        vae_name=trained_on.vae,
    )


def _write(
    config: ConvertConfig,
    source: Checkpoint,
    tensors: dict[str, store.Tensor],
    facts: dict[str, Any],
    beside: _Beside,
    digest: "Future[str]",
    started: float,
) -> manifest.Manifest:
    num_parameters = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())

    place = _place(config, beside, digest.result())

    def describe(where: Place, name: str, shard: manifest.Shard) -> manifest.Manifest:
        return where.manifest(
            name,
            shards=[shard],
            counts={"tensors": len(tensors), "parameters": num_parameters},
            inputs={"source": digest.result()},
            config={
                **facts,
                **WeightsFacts(
                    kind=config.kind,
                    random=config.source == RANDOM,
                    seed=config.seed if config.source == RANDOM else None,
                    source=config.source,
                    source_bytes=sum(file.size for file in source.files),
                    layout=source.layout,
                    part=source.part,
                    page=config.page,
                ).said(),
            },
            seconds=time.monotonic() - started,
        )

    result = None
    if config.target is not None:
        target = storage.from_path(config.target)
        shard = _save(tensors, target)
        name = config.name or target.rpartition("/")[2].rpartition(".")[0]
        result = describe(replace(place, uri=target), name, shard)
        with _deleting_on_failure(target):
            manifest.write(result, target + manifest.BESIDE_SUFFIX)
    if config.root is not None:
        publishing.clear_unfinished(place.uri)
        shard = _publish(tensors, storage.join(place.uri, "model.safetensors"))
        result = manifest.finish(describe(place, str(config.name), shard), config.root)
    if result is None:
        raise UserError("give target=FILE, or root and name")
    convert_table.show(source, tensors, result)
    return result


@contextlib.contextmanager
def _deleting_on_failure(target: str) -> Iterator[None]:
    """Leave no target behind whose manifest could not be written."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            storage.delete(target)
        raise


def _save(tensors: dict[str, store.Tensor], uri: str) -> manifest.Shard:
    ref = store.save(tensors, uri, only_finite=True)
    return manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256, items=len(tensors))


def _publish(tensors: dict[str, store.Tensor], uri: str) -> manifest.Shard:
    """Write the weights, then their record, unless a run that was killed before its manifest has left both."""
    shard = manifest.published(uri)
    if shard is not None:
        return shard
    shard = _save(tensors, uri)
    manifest.write_record(shard)
    return shard


def _place(config: ConvertConfig, beside: _Beside, digest: str) -> Place:
    """Place of the weights under the root (no folder where there is no root)."""
    extra: list[Any] = [config.trained_on or TrainedOn()] if KINDS[config.kind].generates else []
    extra += [] if config.part is None else [config.part]
    extra += [] if beside.scheduler is None else [beside.scheduler]
    fingerprint = manifest.fingerprint("convert", config.kind, beside.model, config.model, digest, *extra)
    if config.root is None:
        return Place("weights", "", fingerprint)
    return Place.under("weights", fingerprint, config.root, "weights", str(config.name))


def _digest(source: Checkpoint) -> str:
    """SHA-256 of the source file; of the files' digests, in order, where it is sharded."""
    digests = []
    for data in source.files:
        sha256 = hashlib.sha256()
        for start in range(0, data.size, _HASH_BYTES):
            sha256.update(data[start : start + _HASH_BYTES].data)
            forget(data)
        digests.append(sha256.hexdigest())
    # Not the layout of a sharded source, so that a better word for it does not make another place of the same weights.
    what = "sharded safetensors" if digests else source.layout
    return digests[0] if len(digests) == 1 else manifest.fingerprint(what, digests)
