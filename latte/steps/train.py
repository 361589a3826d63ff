"""The train step: a Latte on latents, from scratch or from given weights, resumed to the bit after a stop.

Where the weights come from, first rule that applies:

1. The newest committed checkpoint of this very run (same name, same fingerprint): the run goes on as if it had never
   stopped, optimizer, EMA, loss log and data order included.
2. `init_from`: weights (EMA) of another run's checkpoint manifest or of a converted file; step, optimizer and data
   order start anew. Rows of the label table are taken by the names of their classes; rows of other classes, and tensors
   whose shape differs (other num_frames), are re-initialised and named.
3. Fresh weights from `seed`.
4. Whatever the start was, it is published as step 0 before the first update, so that a run can be compared with it.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from latte import manifest, storage, workers
from latte.config import Config, Root
from latte.errors import UserError
from latte.models.configs import LatteConfig, nearest_multiple


class TrainConfig(Config):
    """Settings of a training run; the defaults are the published recipe (Ma et al. 2024, Latte, section 4)."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the run; its checkpoints lie under runs/<name>/")
    latents: str = Field(description="manifest of the encoded dataset (file or URI)")
    model: dict[str, Any] = Field(
        default_factory=lambda: {"preset": "Latte-S/2"},
        description="a preset (preset: Latte-XL/2) and/or keys of LatteConfig; sizes of the latents are filled in",
    )
    steps: int = Field(default=100_000, gt=0, description="optimizer updates in all")
    workers: int = Field(default=1, gt=0, description="processes that train together; started through msrun")
    batch_size: int = Field(default=8, gt=0, description="clips in the global batch of one update, over all workers")
    accumulation: int = Field(default=1, gt=0, description="parts that the batch is computed in, one after the other")
    frame_stride: int = Field(default=3, gt=0, description="distance between a clip's frames in the video")
    learning_rate: float = Field(default=1e-4, gt=0, description="peak learning rate of AdamW")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="after the warm-up")
    warmup_steps: int = Field(default=0, ge=0, description="updates of linear warm-up")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay of AdamW")
    ema_decay: float = Field(default=0.9999, ge=0, lt=1, description="decay of the moving average of weights")
    clip_grad_norm: float | None = Field(default=0.1, gt=0, description="largest gradient norm, or null for none")
    clip_start_step: int = Field(default=20_000, ge=0, description="gradients are clipped from this update on")
    noise_schedule: Literal["linear", "cosine"] = Field(default="linear", description="betas of the diffusion")
    seed: int = Field(default=0, ge=0, description="fresh weights, data order, noise and timesteps follow from it")
    init_from: str | None = Field(default=None, description="checkpoint manifest or weights file to start from")
    log_every: int = Field(default=100, gt=0, description="updates between lines of the loss log")
    checkpoint_every: int = Field(default=5_000, gt=0, description="updates between checkpoints")
    keep_last: int = Field(default=3, gt=0, description="newest checkpoints that are kept")
    keep_every: int | None = Field(default=None, gt=0, description="checkpoints at multiples of this are kept for ever")
    precision: Literal["fp32", "fp16", "bf16"] = Field(
        default="fp32", description="of matrix products; fp16 scales the loss; bf16 needs Ascend"
    )
    shard_optimizer: bool = Field(
        default=False, description="each worker keeps its part of AdamW's moments and of the average: less memory"
    )
    recompute: bool = Field(default=False, description="compute activations again in the backward pass: less memory")
    preview_every: int = Field(default=0, ge=0, description="updates between sample previews, 0 for none")
    preview_clips: int = Field(default=4, gt=0, description="clips of a preview")
    preview_steps: int = Field(default=25, gt=0, le=1000, description="denoising steps of a preview (DDIM)")
    vae: str | None = Field(default=None, description="manifest of the autoencoder that decodes previews")
    cache_dir: str | None = Field(default=None, description="folder for the local cache of latents")
    cache_gb: float = Field(
        default=32.0, ge=0, description="size of that cache; latents beyond it are read from the store each time"
    )

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        parts = self.accumulation * self.workers
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by workers {self.workers} x accumulation "
                f"{self.accumulation}; batch_size={nearest_multiple(self.batch_size, parts)} works"
            )
        unknown = sorted(set(self.model) - set(LatteConfig.model_fields) - {"preset"})
        if unknown:
            raise ValueError(f"unknown key model.{unknown[0]} (known: preset, {', '.join(LatteConfig.model_fields)})")
        return self


@dataclass(frozen=True)
class Start:
    """Weights that training starts from.

    Attributes:
        uri: the weights.
        sha256: what they must have.
        place: where they were found: the manifest, or the weights themselves.
        classes: names of the classes that they know, in the order of their rows; None where nobody says.
        has_null: whether the last row is that of no class.
    """

    uri: str
    sha256: str
    place: str
    classes: Sequence[str] | None = None
    has_null: bool = True


_STAT_THREADS = 16
# These change how a run is watched, cached or stopped, not what it computes.
_NOT_IN_FINGERPRINT = {
    "root", "name", "latents", "init_from", "log_every", "checkpoint_every", "keep_last", "keep_every", "cache_dir",
    "cache_gb", "workers", "recompute", "shard_optimizer", "preview_every", "preview_clips", "preview_steps", "vae",
}  # fmt: skip


def run(config: TrainConfig) -> manifest.Manifest:
    """Train to `config.steps` updates and return the manifest of the run's checkpoints.

    Raises:
        UserError: the latents, the model's settings or the start weights do not fit together.
        StorageError: object storage stayed away for too long, or stored data is damaged.
    """
    latents = manifest.read(config.latents, "latents", "latents")
    start = _resolve_start(config.init_from, latents)
    vae = _resolve_vae(config, latents)
    settings = config.model_dump(exclude=_NOT_IN_FINGERPRINT)
    if config.lr_schedule == "constant":
        settings.pop("steps")  # a longer run goes on where a shorter one ended
    if config.precision == "fp32":
        settings.pop("precision")
    # Which rows are taken follows from the names of both sides.
    others = [start.classes] if start and start.classes and list(start.classes) != latents.config["classes"] else []
    fingerprint = manifest.fingerprint("train", settings, latents.fingerprint, start and start.sha256, *others)
    uri = storage.join(config.root, "runs", config.name, fingerprint[:16])
    done = manifest.find(uri, "checkpoint")
    if done is not None and done.metrics["step"] >= config.steps:
        return done

    started = time.monotonic()
    if not workers.inside():
        _check_shards(latents)
        if config.workers > 1:
            workers.launch(config.model_dump(mode="json"), config.workers)
            return manifest.read(uri, "checkpoint")
    from latte.training_loop import train

    metrics, shards, facts = train(config, latents, uri, start, vae)
    if config.preview_every:
        metrics["previews_uri"] = storage.join(uri, "previews")
    # What it was made from, by places that the next run finds too; a pipeline hands over files of its own run.
    places = {"latents": latents.file, "vae": vae.file if vae is not None else None, "init_from": start and start.place}
    result = manifest.Manifest(
        kind="checkpoint",
        name=config.name,
        uri=uri,
        fingerprint=fingerprint,
        shards=shards,
        counts={"steps": config.steps, "parameters": facts.pop("parameters")},
        inputs={"latents": latents.fingerprint, "init_from": start.sha256 if start else ""},
        config={**facts, "train": {**config.model_dump(exclude={"root", "cache_dir", "cache_gb"}), **places}},
        metrics={**metrics, "metrics_uri": storage.join(uri, "metrics.jsonl")},
        seconds=time.monotonic() - started,
    )
    if workers.leads():
        manifest.finish(result, config.root)
    if workers.inside():
        # Whoever waits for this node's workers finds the manifest, on every node.
        from latte import device

        device.wait_for_workers()
    return result


def _resolve_vae(config: TrainConfig, latents: manifest.Manifest) -> manifest.Manifest | None:
    """The autoencoder that decodes previews."""
    if config.vae is None or not config.preview_every:
        return None
    vae = manifest.read(config.vae, "weights", "vae")
    if vae.weights_file().sha256 != latents.inputs["vae"]:
        raise UserError(f"vae {config.vae}: the latents are of another autoencoder ({latents.inputs['vae'][:12]}…)")
    return vae


def _check_shards(latents: manifest.Manifest) -> None:
    with ThreadPoolExecutor(_STAT_THREADS, thread_name_prefix="shards") as pool:
        whole = list(pool.map(manifest.is_whole, latents.shards))
    missing = [shard.uri for shard, there in zip(latents.shards, whole, strict=True) if not there]
    if missing:
        raise UserError(f"latents {latents.uri}: shard {missing[0]} ({len(missing)} in all) is missing or cut off")


def _resolve_start(init_from: str | None, latents: manifest.Manifest) -> Start | None:
    if init_from is None:
        return None
    try:
        place = manifest.located(init_from)
    except UserError as error:
        raise type(error)(f"init_from {error}") from None
    if not place.endswith(".json"):
        with storage.as_local_file(place) as path:
            return Start(place, storage.sha256_file(path), place)
    source = manifest.read(place, key="init_from")
    if source.kind == "checkpoint":
        if source.config["vae"] != latents.inputs["vae"]:
            raise UserError(
                f"init_from {init_from}: that model knows the latents of another autoencoder "
                f"({source.config['vae'][:12]}…), these are of {latents.inputs['vae'][:12]}…"
            )
        shard = source.shard(f"step-{source.metrics['step']:08d}/ema.safetensors")
    elif source.kind == "weights":
        if source.config["kind"] != "latte":
            raise UserError(f"init_from {init_from}: weights of {source.config['kind']}, expected latte")
        shard = source.weights_file()
    else:
        raise UserError(f"init_from {init_from}: a manifest of {source.kind}, expected checkpoint or weights")
    has_null = source.config["model"]["class_dropout_prob"] > 0
    return Start(shard.uri, shard.sha256, source.file, source.config["classes"] or None, has_null)
