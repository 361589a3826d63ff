"""The sample step: a checkpoint becomes a set of generated videos. Plan, shards (fanned out), merge.

Video i of a set follows from the checkpoint, the settings, the seed and i alone: its label or caption, its start noise
and the noise of its every step come from streams of its own. Who generates it and after which interruptions does not
matter. It is always computed in the batch of videos b B to b B + B - 1 that it belongs to, wanted or not: on a CPU the
last bits of a matrix product depend on the place in the batch. A set grows in place: a larger `num_videos` generates
only the new ones.
"""

import itertools
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from latte import conditions as conditioning
from latte import contact_sheet, generation, manifest, sources, spacing, storage
from latte.conditions import Conditions
from latte.config import Config, Root, ToldError, prefix_of
from latte.errors import UserError
from latte.progress import progress, teller
from latte.sources import Source

MAX_TASKS = 32
CONTACT_SHEET = "contact-sheet.png"
_RECORD_THREADS = 16


class SampleConfig(Config):
    """What to generate, and from which weights; generated in batches of one shape."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the video set; it goes to videos/<name>/")
    checkpoint: str = Field(
        description="manifest (file or URI) of a training run's checkpoints, or of converted Latte weights"
    )
    vae: str = Field(description="manifest of the autoencoder's weights (file or URI)")
    step: int | None = Field(default=None, ge=0, description="training step; null: the newest, 0: before training")
    weights: Literal["ema", "model"] = Field(default="ema", description="moving average of the weights, or the last")
    num_videos: int = Field(default=16, gt=0, description="videos of the set; may be raised later")
    seed: int = Field(default=0, ge=0, description="all noise follows from it")
    method: Literal["ddpm", "ddim", "dpm-solver++"] = Field(default="ddim", description="sampler")
    num_sampling_steps: int | str = Field(default=250, description='steps: a count, "ddimN" or sections "a,b,…"')
    cfg_scale: float = Field(default=1.0, ge=0, description="classifier-free guidance; 1 is none (published: 7)")
    cfg_channels: Literal["noise", "all"] = Field(
        default="noise", description="what is guided: the noise (published), or the learned variance too"
    )
    precision: Literal["fp32", "fp16", "bf16"] = Field(
        default="fp32", description="of the Latte's matrix products; bf16 needs Ascend"
    )
    labels: conditioning.Labels = Field(
        default=None,
        description="classes (index or name) that the videos take in turn; null: all of them; "
        '"dataset": drawn as often as each class is in `latents`',
    )
    latents: str | None = Field(default=None, description="manifest of an encoded dataset, for labels=dataset")
    captions: str | None = Field(
        default=None,
        description="texts that the videos take in turn: a text file, one a line, or a CSV file's column caption",
    )
    text_encoder: str | None = Field(default=None, description="manifest of CLIP's text weights, for captions")
    tokenizer: str | None = Field(default=None, description="CLIP's tokenizer.json (path or URI), for captions")
    batch_size: int = Field(default=8, gt=0, description="videos generated together")
    decode_frames: int = Field(default=16, gt=0, description="frames decoded together; bounds the memory")
    fps: float = Field(default=8.0, gt=0, description="frames per second of the files")
    num_tasks: int = Field(default=8, gt=0, le=MAX_TASKS, description="most tasks that the set is shared out to")
    adapt: bool = Field(
        default=False, description="leave out guidance that a model without a condition cannot use; pipelines do"
    )

    @field_validator("num_sampling_steps")
    @classmethod
    def _can_be_taken(cls, steps: int | str) -> int | str:
        spacing.check(steps)
        return steps

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> "SampleConfig":
        before = prefix_of(info)
        if (self.labels == conditioning.DATASET) != (self.latents is not None):
            raise ToldError(
                f"{before}labels={conditioning.DATASET} and {before}latents (the manifest of that dataset) go "
                "together; give both or neither"
            )
        missing = [key for key in conditioning.TEXT_KEYS if getattr(self, key) is None]
        if 0 < len(missing) < len(conditioning.TEXT_KEYS):
            keys = ", ".join(f"{before}{key}" for key in conditioning.TEXT_KEYS)
            raise ToldError(f"{keys} go together; {before}{missing[0]} is not given")
        return self


# These say where, how many and in which portions, not what video i is; what lies there counts by its content.
_NOT_IN_FINGERPRINT = {
    "root", "name", "checkpoint", "vae", "step", "num_videos", "batch_size", "decode_frames", "num_tasks",
    "latents", "captions", "text_encoder", "tokenizer", "adapt",
}  # fmt: skip
# Came later: sets that were made before keep their place.
_NOT_SAID_AT_DEFAULT = ("cfg_channels", "precision")
_IN_MANIFEST = {
    "weights", "method", "num_sampling_steps", "cfg_scale", "cfg_channels", "precision", "labels", "fps", "seed",
}  # fmt: skip


@dataclass(frozen=True)
class _Set:
    """What a set is made from, resolved and checked.

    Attributes:
        uri: the place of the set.
        fingerprint: of what makes video i, whatever their number.
        source: the networks.
        conditions: what the videos show.
        text: what embeds their captions, or None without captions.
        cfg_scale: guidance, 1 where it was left out.
        notes: what was adapted to the model.
    """

    uri: str
    fingerprint: str
    source: Source
    conditions: Conditions
    text: generation.TextSource | None
    cfg_scale: float
    notes: tuple[str, ...] = ()


def run(config: SampleConfig) -> manifest.Manifest:
    """Plan, generate and merge in this process.

    Raises:
        UserError: checkpoint, autoencoder and settings do not fit together.
        StorageError: object storage stayed away for too long, or stored data is damaged.
    """
    planned = plan(config)
    sample_shards(config, planned.file, 0, 1)
    return merge(config, planned.file)


def plan(config: SampleConfig) -> manifest.Manifest:
    """Check everything and say over how many tasks the work is shared out; metrics: num_tasks.

    Raises:
        UserError: checkpoint, autoencoder and settings do not fit together.
    """
    made = _resolve(config)
    batches = -(-config.num_videos // config.batch_size)
    return manifest.finish(
        manifest.Manifest(
            kind="sample_plan",
            name=config.name,
            uri=storage.join(made.uri, "plan"),
            fingerprint=_count_fingerprint(made, config.num_videos),
            counts={"videos": config.num_videos},
            config={"notes": list(made.notes)},
            metrics={"num_tasks": min(config.num_tasks, batches, MAX_TASKS), "batches": batches},
        ),
        config.root,
    )


def sample_shards(config: SampleConfig, plan_uri: str, task: int, num_tasks: int) -> manifest.Manifest:
    """Generate the task's videos that are not published yet; task t of N answers for batches t, t + N, ….

    Raises:
        UserError: the plan is of other settings, or there is no such task.
        StorageError: object storage stayed away for too long, or stored data is damaged.
    """
    made = _planned(config, plan_uri)
    if not 0 <= task < num_tasks:
        raise UserError(f"task {task}: expected 0 to {num_tasks - 1}")
    started = time.monotonic()
    size = config.batch_size
    indices = [index for index in range(config.num_videos) if index // size % num_tasks == task]
    missing = [index for index, record in _records(made, indices).items() if record is None]
    if missing:
        _generate(config, made, missing, f"sample {config.name}: task {task + 1} of {num_tasks}")
    shards = [shard for record in _records(made, indices).values() if record for shard in _objects(record)]
    return manifest.Manifest(
        kind="sample_part",
        name=config.name,
        uri=made.uri,
        fingerprint=manifest.fingerprint(made.fingerprint, task, num_tasks, config.num_videos),
        shards=shards,
        counts={"videos": len(indices), "generated": len(missing)},
        seconds=time.monotonic() - started,
    )


def merge(config: SampleConfig, plan_uri: str) -> manifest.Manifest:
    """List all videos in items.json and write the manifest of the set.

    Raises:
        UserError: the plan is of other settings, or a video is not there.
    """
    made = _planned(config, plan_uri)
    fingerprint = _count_fingerprint(made, config.num_videos)
    done = manifest.find(made.uri, "video_set")
    if done is not None and done.fingerprint == fingerprint:
        return done
    source = made.source
    items, shards, seconds = [], [], 0.0
    for index, record in _records(made, range(config.num_videos)).items():
        if record is None:
            raise UserError(f"{_clip_uri(made, index)}: not generated yet; run the tasks of the plan first")
        items.append(record["item"])
        shards += _objects(record)
        seconds += float(record["seconds"])
    for ref in (
        _publish_contact_sheet(made, items),
        storage.write_json(storage.join(made.uri, "items.json"), items, root=made.uri),
    ):
        shards.append(manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256, items=len(items)))
    return manifest.finish(
        manifest.Manifest(
            kind="video_set",
            name=config.name,
            uri=made.uri,
            fingerprint=fingerprint,
            shards=shards,
            counts={"videos": len(items)},
            inputs={"weights": source.weights.sha256, "vae": source.vae.sha256},
            config={
                "checkpoint": source.checkpoint.file,
                "step": source.step,
                "vae_known_by": source.vae_known_by,
                "classes": source.facts["classes"],
                "num_frames": int(source.facts["model"]["num_frames"]),
                "image_size": source.facts["image_size"],
                **config.model_dump(include=_IN_MANIFEST),
                "cfg_scale": made.cfg_scale,
                "notes": list(made.notes),
            },
            metrics={} if source.step is None else {"step": source.step},
            seconds=seconds,
        ),
        config.root,
    )


def guidance_left_out(cfg_scale: float) -> str:
    """What is said where guidance is left out."""
    return f"cfg_scale {cfg_scale:g} is left out: the model has no condition to guide by"


def _resolve(config: SampleConfig) -> _Set:
    source = sources.resolve(config.checkpoint, config.vae, config.step, config.weights)
    notes: tuple[str, ...] = ()
    if config.adapt and config.cfg_scale != 1.0 and source.facts["model"]["condition"] == "none":
        notes = (guidance_left_out(config.cfg_scale),)
        config = config.model_copy(update={"cfg_scale": 1.0})
    conditions = conditioning.resolve(config, source.facts)
    text = None
    if conditions.captions is not None:
        text = generation.TextSource.checked(str(config.text_encoder), str(config.tokenizer))
        if source.facts.get("text") not in (None, text.digest):
            raise UserError(
                f"text_encoder {config.text_encoder}: the model was trained with another encoder or tokenizer"
            )
    settings = config.model_dump(exclude=_NOT_IN_FINGERPRINT)
    for key in _NOT_SAID_AT_DEFAULT:
        if settings[key] == SampleConfig.model_fields[key].default:
            del settings[key]
    files = [*conditions.from_files, *([text.digest] if text is not None else [])]
    facts = [source.weights.sha256, source.vae.sha256, source.facts["diffusion"]]
    if source.vae_known_by == "name":
        # Not implied by a digest: a file does not tell the heads of its attention or the groups of its normalisation.
        facts += [source.vae_model, *(source.facts[key] for key in ("scaling_factor", "model", "classes"))]
    fingerprint = manifest.fingerprint("sample", settings, *facts, *files)
    return _Set(
        uri=storage.join(config.root, "videos", config.name, fingerprint[:16]),
        fingerprint=fingerprint,
        source=source,
        conditions=conditions,
        text=text,
        cfg_scale=config.cfg_scale,
        notes=notes,
    )


def _count_fingerprint(made: _Set, num_videos: int) -> str:
    return manifest.fingerprint(made.fingerprint, num_videos)


def _planned(config: SampleConfig, plan_uri: str) -> _Set:
    made = _resolve(config)
    if manifest.read(plan_uri, "sample_plan").fingerprint != _count_fingerprint(made, config.num_videos):
        raise UserError(f"{plan_uri}: a plan of other settings; plan again")
    return made


def _clip_uri(made: _Set, index: int) -> str:
    return storage.join(made.uri, f"clip-{index:05d}.mkv")


def _records(made: _Set, indices: Sequence[int]) -> dict[int, dict[str, Any] | None]:
    """The record of each video, or None where it is not published whole."""

    def read(index: int) -> dict[str, Any] | None:
        record = manifest.read_record(_clip_uri(made, index))
        return record if record is not None and all(map(manifest.is_whole, _objects(record))) else None

    with ThreadPoolExecutor(_RECORD_THREADS, thread_name_prefix="records") as pool:
        return dict(zip(indices, pool.map(read, indices), strict=True))


def _objects(record: dict[str, Any]) -> list[manifest.Shard]:
    """The video and its preview."""
    return [manifest.Shard.model_validate(record[role]) for role in ("shard", "preview")]


def _generate(config: SampleConfig, made: _Set, indices: list[int], label: str) -> None:
    """Generate and publish videos, each in its batch of one shape: one compiled graph, and the same bits every time."""
    sample = generation.sampler(_recipe(config, made))
    bar = progress(total=len(indices), desc=label, unit="video")
    tell = teller(bar)
    for _, wanted in itertools.groupby(indices, lambda index: index // config.batch_size):
        group = list(wanted)
        first = group[0] - group[0] % config.batch_size
        batch = list(range(first, first + config.batch_size))
        started = time.monotonic()
        videos = sample(batch, lambda done: tell(f"denoising step {done + 1}"))
        seconds = (time.monotonic() - started) / len(group)
        for index in group:
            _publish(config, made, index, videos[index - first], seconds)
            bar.update()
    bar.close()


def _recipe(config: SampleConfig, made: _Set) -> generation.Recipe:
    source = made.source
    return generation.Recipe(
        weights=source.weights,
        model=source.facts["model"],
        vae=source.vae,
        vae_model=source.vae_model,
        scaling_factor=float(source.facts["scaling_factor"]),
        noise_schedule=source.facts["diffusion"]["noise_schedule"],
        method=config.method,
        num_sampling_steps=config.num_sampling_steps,
        cfg_scale=made.cfg_scale,
        cfg_channels=config.cfg_channels,
        precision=config.precision,
        seed=config.seed,
        conditions=made.conditions,
        text=made.text,
        decode_frames=config.decode_frames,
    )


def _publish(config: SampleConfig, made: _Set, index: int, frames: np.ndarray, seconds: float) -> None:
    """Preview first, then the video, its record last: a video with a record is whole."""
    from latte import video

    uri = _clip_uri(made, index)
    preview_uri = uri.removesuffix(".mkv") + ".mp4"
    with tempfile.TemporaryDirectory(prefix="latte-video-") as folder:
        lossless, preview = Path(folder) / "clip.mkv", Path(folder) / "clip.mp4"
        video.write_lossless(lossless, frames, config.fps)
        video.write_preview(preview, frames, config.fps)
        preview_ref = storage.upload(preview, preview_uri)
        item = {
            "index": index,
            "label": made.conditions.label(index),
            "seed": config.seed,
            "video": uri,
            "preview": preview_uri,
            "sha256": storage.sha256_file(lossless),
            "preview_sha256": preview_ref.sha256,
        }
        if made.text is not None:
            item["caption"] = made.conditions.caption(index)
        facts = {"uri": preview_ref.uri, "bytes": preview_ref.bytes, "sha256": preview_ref.sha256}
        manifest.publish_shard(lossless, uri, item=item, preview=facts, seconds=round(seconds, 3))


def _publish_contact_sheet(made: _Set, items: list[dict[str, Any]]) -> storage.Ref:
    """A picture of the first videos of the set."""
    from latte import video

    def read(item: dict[str, Any]) -> np.ndarray:
        with storage.as_local_file(item["video"], item["sha256"]) as path:
            return video.read_lossless(path)  # (F, H, W, 3)

    with ThreadPoolExecutor(_RECORD_THREADS, thread_name_prefix="sheet") as pool:
        videos = list(pool.map(read, items[: contact_sheet.MAX_VIDEOS]))
    return storage.write_bytes(storage.join(made.uri, CONTACT_SHEET), contact_sheet.draw(videos))
