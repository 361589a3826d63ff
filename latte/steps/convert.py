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
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from latte import manifest, storage
from latte.checkpoints import architectures, names, open_checkpoint, store
from latte.checkpoints.reader import check_small
from latte.checkpoints.stored import Checkpoint, Refusal, forget, show
from latte.config import Config, Root
from latte.errors import UserError
from latte.models.configs import ClipTextConfig

RANDOM = "random"
_HASH_BYTES = 8 << 20
_PIXELS_PER_LATENT = 8


def _digits(sha256: str) -> str:
    digits = sha256.strip().lower()
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise ValueError("expected 64 hexadecimal digits")
    return digits


class TrainedOn(Config):
    """What published Latte weights were trained on, which their file does not tell; the defaults are the published."""

    vae: str = Field(default="sd-vae-ft-ema", description="the autoencoder whose latents they were, by name")
    scaling_factor: float = Field(default=0.18215, gt=0, description="what its latents were multiplied by")
    image_size: int | None = Field(default=None, gt=0, description="side of a frame in pixels; null: 8 per latent")
    noise_schedule: Literal["linear", "cosine"] = Field(default="linear", description="betas of the diffusion")
    classes: list[str] = Field(default_factory=list, description="names of the classes, in the order of their numbers")


class ConvertConfig(Config):
    """What to convert, and where to: a file (`target`), a place under `root`, or both."""

    kind: Literal["latte", "vae", "i3d", "clip"] = Field(description="what the weights are of")
    source: str = Field(
        description="published file (.pt, .pth, .bin, .ckpt, .safetensors, *.index.json), path or URI; random for i3d"
    )
    target: str | None = Field(default=None, description="file to write, .safetensors or .ckpt; path or URI")
    root: Root | None = Field(default=None, description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str | None = Field(default=None, description="name of the weights under root: weights/<name>/")
    seed: int = Field(default=0, ge=0, lt=1 << 32, description="what random weights follow from")
    model: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of the network that neither the file nor the config.json beside it tells",
    )
    trained_on: TrainedOn | None = Field(
        default=None,
        description="kind latte: vae, scaling_factor, image_size, noise_schedule and classes; null: as published",
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
        if self.source == RANDOM and self.kind != "i3d":
            raise ValueError(f"source random is there for kind i3d, not for {self.kind}")
        if self.trained_on is not None and self.kind != "latte":
            raise ValueError(f"trained_on is there for kind latte, not for {self.kind}")
        return self


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
        beside: dict[str, Any] = {}
    else:
        _check_target(config, [config.source])
        source = open_checkpoint(config.source, config.part or "")
        _check_target(config, source.uris)
        beside = _settings_beside(config)
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
            uri, _ = _place(config, beside, digest.result())
            done = manifest.find(uri, "weights")
            if done is not None and config.target is None:
                return done
        tensors, facts = _prepare(config, source, beside)
        try:
            return _write(config, source, tensors, facts, beside, digest, started)
        except Refusal as error:
            raise UserError(f"{config.source}: {error}") from None


def _prepare(
    config: ConvertConfig, source: Checkpoint, beside: dict[str, Any]
) -> tuple[dict[str, store.Tensor], dict[str, Any]]:
    """Tensors by the network's names, checked, and the facts about them that the manifest keeps."""
    left_out = list(source.left_out)
    tensors: Mapping[str, store.Tensor]
    try:
        if config.source == RANDOM:
            tensors = architectures.random_i3d(config.seed)
        else:
            tensors, dropped = names.rename(config.kind, source.tensors)
            left_out += dropped
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        given = _agreed(config, source, beside)
        what = f"{config.source} and the config.json beside it" if beside else config.source
        model, shapes = architectures.describe(config.kind, found, given, what)
    except Refusal as error:
        raise UserError(f"{config.source}: {error}") from None
    store.check_match(
        {name: (tuple(tensor.shape), str(store.dtype_of(tensor))) for name, tensor in tensors.items()},
        {name: (shape, "float32") for name, shape in shapes.items()},
        config.source,
    )
    facts = {"model": model, "left_out": [list(row) for row in _grouped(left_out)]}
    if config.kind == "latte":
        facts |= _sampling_facts(config, model)
    return {name: tensors[name] for name in shapes}, facts


def _agreed(config: ConvertConfig, source: Checkpoint, beside: dict[str, Any]) -> dict[str, Any]:
    """The settings that the file, the config.json beside it and the config give, which must not contradict each other.

    Raises:
        Refusal: they do.
    """
    said, who = (beside, "the config.json beside it says")
    model = config.model
    if config.kind == "latte":
        said, who = architectures.latte_settings(source.settings), "its own settings say"
        model = architectures.without_preset(model)
    for key, value in model.items():
        known = said.get(key)
        if known is not None and known != value:
            ours = f"model.{key}={show(value)}" if key in config.model else f"{key} {show(value)} by its preset"
            raise Refusal(f"{who} {key} {show(known)}, the config says {ours}")
    return {**said, **model}


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
        if not storage.is_s3(uri) and os.path.isdir(storage.local_path(uri)):
            raise UserError(f"{uri}: a folder; the target and its manifest are written as files")


def _is_same(one: str, other: str) -> bool:
    if one == other or storage.is_s3(one) or storage.is_s3(other):
        return one == other
    try:
        return os.path.samefile(storage.local_path(one), storage.local_path(other))
    except (OSError, ValueError):
        return False  # one of them is not there


def _sampling_facts(config: ConvertConfig, model: dict[str, Any]) -> dict[str, Any]:
    """What a training run says about its checkpoints, for whoever samples; the autoencoder by name, not by SHA-256."""
    trained_on = config.trained_on or TrainedOn()
    if trained_on.classes and len(trained_on.classes) != model["num_classes"]:
        raise UserError(
            f"{config.source}: trained_on.classes has {len(trained_on.classes)} names, the weights are of "
            f"{model['num_classes']} classes"
        )
    return {
        "classes": trained_on.classes,
        "diffusion": {"noise_schedule": trained_on.noise_schedule},
        "image_size": trained_on.image_size or _PIXELS_PER_LATENT * model["input_size"],
        "latent_size": model["input_size"],
        "scaling_factor": trained_on.scaling_factor,
        "vae": None,
        "vae_name": trained_on.vae,
    }


def _write(
    config: ConvertConfig,
    source: Checkpoint,
    tensors: dict[str, store.Tensor],
    facts: dict[str, Any],
    beside: dict[str, Any],
    digest: "Future[str]",
    started: float,
) -> manifest.Manifest:
    num_parameters = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())

    def describe(uri: str, name: str, fingerprint: str, shard: manifest.Shard) -> manifest.Manifest:
        return manifest.Manifest(
            kind="weights",
            name=name,
            uri=uri,
            fingerprint=fingerprint,
            shards=[shard],
            counts={"tensors": len(tensors), "parameters": num_parameters},
            inputs={"source": digest.result()},
            config={
                "kind": config.kind,
                **facts,
                "random": config.source == RANDOM,
                "seed": config.seed if config.source == RANDOM else None,
                "source": config.source,
                "source_bytes": sum(file.size for file in source.files),
                "layout": source.layout,
                "part": source.part,
                "page": config.page,
            },
            seconds=time.monotonic() - started,
        )

    result = None
    if config.target is not None:
        target = storage.from_path(config.target)
        shard = _save(tensors, target)
        name = config.name or target.rpartition("/")[2].rpartition(".")[0]
        _, fingerprint = _place(config, beside, digest.result())
        result = describe(target, name, fingerprint, shard)
        with _deleting_on_failure(target):
            manifest.write(result, target + manifest.BESIDE_SUFFIX)
    if config.root is not None:
        uri, fingerprint = _place(config, beside, digest.result())
        shard = _publish(tensors, storage.join(uri, "model.safetensors"))
        result = manifest.finish(describe(uri, str(config.name), fingerprint, shard), config.root)
    if result is None:
        raise UserError("give target=FILE, or root and name")
    _print_table(source, tensors, facts, result)
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


def _place(config: ConvertConfig, beside: dict[str, Any], digest: str) -> tuple[str, str]:
    """Folder and fingerprint of the weights under the root (no folder where there is no root)."""
    told: list[Any] = [config.trained_on or TrainedOn()] if config.kind == "latte" else []
    told += [] if config.part is None else [config.part]
    fingerprint = manifest.fingerprint("convert", config.kind, beside, config.model, digest, *told)
    if config.root is None:
        return "", fingerprint
    return storage.join(config.root, "weights", str(config.name), fingerprint[:16]), fingerprint


def _settings_beside(config: ConvertConfig) -> dict[str, Any]:
    """The settings in `config.json` beside the source, as diffusers and transformers write it."""
    folder = storage.from_path(config.source).rpartition("/")[0]
    uri = f"{folder}/config.json"
    if config.kind not in ("vae", "clip") or not storage.exists(uri):
        return {}
    try:
        check_small(uri)
    except Refusal as error:
        raise UserError(f"{uri}: {error}") from None
    values = storage.read_json(uri)
    if not isinstance(values, dict):
        raise UserError(f"{uri}: expected a JSON object with the settings of the network")
    try:
        manifest.fingerprint(values)
    except RecursionError:
        raise UserError(f"{uri}: nested too deeply to be the settings of a network") from None
    if config.kind == "vae":
        return values
    # A whole CLIP keeps the text encoder's settings in a section; most of them are about training or generation.
    values = values["text_config"] if isinstance(values.get("text_config"), dict) else values
    return {key: values[key] for key in ClipTextConfig.model_fields if key in values}


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


def _grouped(left_out: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """One line for all tensors of a part that were left out for one reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, why in left_out:
        groups.setdefault((name.partition(".")[0], why), []).append(name)
    return [
        (members[0] if len(members) == 1 else f"{part}.* ({len(members)})", why)
        for (part, why), members in groups.items()
    ]


def _print_table(
    source: Checkpoint, tensors: dict[str, store.Tensor], facts: dict[str, Any], result: manifest.Manifest
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.config['kind']} from {source.layout}" + (f", {source.part}" if source.part else ""))
    table.add_column("part")
    for heading in ("tensors", "parameters", "type"):
        table.add_column(heading, justify="right")
    table.add_column("note")
    parts: dict[str, list[store.Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(name.partition(".")[0], []).append(tensor)
    for part, members in parts.items():
        types = ", ".join(sorted({str(getattr(member, "dtype", "")) for member in members}))
        sizes = sum(int(np.prod(member.shape)) for member in members)
        table.add_row(part, str(len(members)), f"{sizes:,}", types, "" if types == "float32" else "read as float32")
    table.add_section()
    table.add_row("all", f"{len(tensors)}", f"{result.counts['parameters']:,}", "float32", "")
    if facts["left_out"]:
        table.add_section()
    for name, why in facts["left_out"]:
        table.add_row(name, "", "", "", f"left out: {why}")
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    console.print(f"source sha256 {result.inputs['source']}")
    if result.config["kind"] == "i3d" and result.inputs["source"] not in architectures.PUBLISHED_I3D:
        console.print("not from the published file of I3D: a score by it is not called fvd")
    console.print(f"wrote {result.shards[0].uri}")
