"""The encode step: a dataset's videos become latents. Planned once, encoded shard by shard, merged.

Content that was encoded before under the same autoencoder and transform, in whatever run and under whatever name, is
not encoded again; a killed job goes on with the shards that it lacks and ends with the same bytes.
"""

import math
import time
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from latte import captions, encode_plan, manifest, storage, uris
from latte.catalog import SECOND_ROW, DatasetConfig, Entry, scan
from latte.config import Config, Root, build
from latte.decoders import Limits
from latte.decoding import TRANSFORM_VERSION
from latte.errors import LatteError, UserError
from latte.generation import TextSource
from latte.models.configs import AutoencoderKLConfig, nearest_multiple
from latte.steps import dataset_demands, demands

MAX_TASKS = 32
STATE_MANIFEST = "latents.json"
_COUNTED_VIDEOS = 8
# Latents take at most about so many times the bytes of their video.
_MOST_GROWTH = 100


class EncodeConfig(Config):
    """Settings of encoding a dataset; the defaults are those of 256x256 training."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the dataset; its latents lie under datasets/<name>/")
    dataset: DatasetConfig = Field(description="which videos: videos, layout, csv, labels, split, limit, s3_digest")
    vae: str = Field(description="manifest of the autoencoder's weights (file or URI)")
    text_encoder: str | None = Field(
        default=None, description="manifest of CLIP's text weights (file or URI): captions are embedded too"
    )
    tokenizer: str | None = Field(default=None, description="CLIP's tokenizer.json (path or URI), for text_encoder")
    image_size: int = Field(default=256, gt=0, le=8192, description="side of the frames after scaling and cropping")
    dtype: Literal["float16", "float32"] = Field(default="float16", description="how latents are stored")
    batch_size: int | None = Field(
        default=None,
        gt=0,
        le=4096,
        description="frames encoded at once; unset: as many pixels as 8 frames of 256x256, up to 32",
    )
    frame_stride: int = Field(
        default=1,
        gt=0,
        description="every so many frames one is encoded; all other frame counts and strides count these",
    )
    min_frames: int = Field(default=1, gt=0, description="videos with fewer encoded frames are left out, with a reason")
    max_frames: int | None = Field(default=None, gt=0, description="frames of each video that are encoded at most")
    mirrored: bool = Field(
        default=False, description="encode a mirrored copy of each video too; training draws either of them"
    )
    shard_mb: float = Field(default=256, gt=0, le=1e6, description="megabytes of latents in a shard, about")
    num_tasks: int = Field(default=8, gt=0, le=MAX_TASKS, description="tasks that encoding is fanned out over, at most")
    decode_workers: int = Field(default=2, gt=0, description="processes that decode, per task")
    decode_limit_s: float = Field(default=300, gt=0, description="seconds for decoding a video, besides 0.1 s a frame")
    decode_memory_gb: float = Field(
        default=4, ge=0.5, le=1e6, description="gigabytes of memory that a process may take to decode a video"
    )
    max_reject_share: float = Field(default=0.5, ge=0, le=1, description="larger shares of rejected videos are fatal")

    @model_validator(mode="after")
    def _fits(self) -> "EncodeConfig":
        if (self.text_encoder is None) != (self.tokenizer is None):
            raise ValueError("text_encoder and tokenizer go together; give both or neither")
        if self.max_frames is not None and self.max_frames < self.min_frames:
            raise ValueError(f"min_frames {self.min_frames} is more than max_frames {self.max_frames}")
        return self


def plan(config: EncodeConfig, sections: demands.Sections | None = None) -> manifest.Manifest:
    """List the dataset and plan shards for what is new in it; the same dataset gets the same plan again.

    Args:
        config: the step's settings.
        sections: settings of the steps that will use the dataset, for what they ask of it.

    Raises:
        UserError: the dataset, the autoencoder's manifest or the text encoder is missing or unusable, or a later step
            asks for more than the dataset has.
        StorageError: the store does not answer.
    """
    vae = _vae(config)
    asked = demands.Asked() if sections is None else demands.read(sections, config)
    demands.check_settings(asked, _model(vae))
    row_shape = _row_shape(config, vae)
    text = _text(config)
    place, fingerprint = _place(config, vae)
    catalog = scan(config.dataset)
    dataset_demands.check(dataset_demands.listed(catalog), asked)
    contents = encode_plan.contents(catalog, config.mirrored)
    done = encode_plan.published(place, _limits(config))
    dataset_demands.counted(catalog, asked, encode_plan.frames(done))
    inputs = {"vae": _vae_digest(vae), "catalog": catalog.digest}
    texts, new_captions = None, []
    if text is not None:
        if catalog.entries and all(entry.caption is None for entry in catalog.entries):
            raise UserError("text_encoder: the dataset has no captions; name a CSV file with some or leave it out")
        inputs["text"] = text.digest
        texts = captions.published(captions.text_place(place, text, config.dtype))
        new_captions = texts.lacks(captions.distinct(catalog))
    folder = _folder(config, place, inputs)
    uri = storage.join(folder, encode_plan.PLAN)
    planned = encode_plan.read(uri) if storage.exists(uri) else None
    if planned is None or not encode_plan.fits(planned, catalog, done, new_captions, config.mirrored):
        source_bytes = _source_bytes(config, list(filter(done.lacks, contents)), row_shape)
        planned = encode_plan.make(catalog, done, source_bytes, config.num_tasks, config.mirrored)
        planned = replace(planned, captions=captions.plan(new_captions, config.num_tasks))
    shard = encode_plan.write(planned, uri, config.root)
    # What is stored depends on the plan alone; what is left to do changes from run to run and is only handed on.
    stored = manifest.finish(
        manifest.Manifest(
            kind="encode_plan",
            name=config.name,
            uri=folder,
            fingerprint=fingerprint,
            shards=[shard],
            counts={"videos": len(catalog.entries), "planned_shards": len(planned.shards) + len(planned.captions)},
            rejects=catalog.rejects,
            inputs=inputs,
        ),
        config.root,
    )
    waiting = sum(name not in done.shards or any(map(done.lacks, entries)) for name, entries in planned.shards)
    if texts is not None:
        waiting = max(waiting, sum(shard.name not in texts.shards for shard in planned.captions))
    new_videos = len({entry.id for entry in filter(done.lacks, contents)})
    metrics = {"num_tasks": max(1, min(config.num_tasks, waiting)), "shards_to_encode": waiting}
    return stored.model_copy(update={"metrics": metrics, "counts": {**stored.counts, "new_videos": new_videos}})


def encode_shards(config: EncodeConfig, plan_uri: str, task: int, num_tasks: int) -> manifest.Manifest:
    """Encode the shards `task`, `task + num_tasks`, … of a plan; those with a valid record are skipped.

    Raises:
        UserError: the plan is of other settings, or the autoencoder does not fit.
        StorageError: the store stayed away for too long, or the disk is full.
    """
    started = time.monotonic()
    if not 0 <= task < num_tasks:
        raise UserError(f"task {task}: expected 0 to {num_tasks - 1}")
    vae = _vae(config)
    plan_manifest, place = _read_plan(config, vae, plan_uri)
    planned = encode_plan.read(plan_manifest.shard(encode_plan.PLAN).uri)
    by_etag = storage.is_s3(config.dataset.videos) and config.dataset.s3_digest == "etag"
    mine = encode_plan.task_shards(planned, place, task, num_tasks, by_etag)
    todo = [shard for shard in mine if not encode_plan.is_done(shard.uri, _limits(config))]
    new_captions = _embed_captions(config, place, planned.captions[task::num_tasks])
    if todo:
        from latte import encoding

        settings = encoding.Settings(
            image_size=config.image_size,
            batch_size=_batch_size(config),
            dtype=config.dtype,
            row_shape=_row_shape(config, vae),
            max_frames=config.max_frames,
            decode_workers=config.decode_workers,
            limits=_limits(config),
            frame_stride=config.frame_stride,
        )
        encode = encoding.load_encoder(vae, settings.batch_size, config.image_size)
        encoding.encode_all(todo, settings, encode)
    records = [record for shard in mine if (record := manifest.read_record(shard.uri)) is not None]
    part = manifest.Manifest(
        kind="encode_part",
        name=config.name,
        uri=storage.join(plan_manifest.uri, "parts", f"{task:02d}-of-{num_tasks:02d}"),
        fingerprint=plan_manifest.fingerprint,
        shards=[manifest.Shard.model_validate(record["shard"]) for record in records],
        counts={
            "videos": sum(len(record["videos"]) for record in records),
            "encoded_shards": len(todo),
            "embedded_captions": new_captions,
        },
        rejects=[
            manifest.Reject(item=reject["id"], reason=reject["reason"])
            for record in records
            for reject in record["rejects"]
        ],
        inputs=plan_manifest.inputs,
        seconds=time.monotonic() - started,
    )
    return manifest.finish(part, config.root) if todo or new_captions else part


def merge(config: EncodeConfig, plan_uri: str, sections: demands.Sections | None = None) -> manifest.Manifest:
    """Write the manifest and the index of the dataset's latents.

    Args:
        config: the step's settings.
        plan_uri: manifest of the plan.
        sections: settings of the steps that will use the dataset, for what they ask of it.

    Raises:
        LatteError: a task has not done its shards, or too many videos are rejected.
        UserError: the plan is of other settings, or a later step asks for more than the dataset has.
    """
    started = time.monotonic()
    vae = _vae(config)
    plan_manifest, place = _read_plan(config, vae, plan_uri)
    catalog = encode_plan.read(plan_manifest.shard(encode_plan.PLAN).uri).catalog
    text = _text(config)
    texts = None if text is None else captions.published(captions.text_place(place, text, config.dtype))
    done = encode_plan.published(place, _limits(config))
    merged = encode_plan.merge(catalog, done, config.min_frames, texts, config.mirrored)
    _check_rejects(config, len(merged.videos) + catalog.left_out, merged.rejects)
    frames = [video.num_frames for video in merged.videos]
    asked = demands.Asked() if sections is None else demands.read(sections, config)
    dataset_demands.check(replace(dataset_demands.listed(catalog), num_videos=len(frames), frames=frames), asked)
    row_shape = _row_shape(config, vae)
    index = encode_plan.write_index(merged, place, plan_manifest.uri, row_shape, config.dtype, config.root)
    shards = [*merged.shards, index]
    fingerprint = _final_fingerprint(config, plan_manifest, merged.rejects)
    found = manifest.find(place, "latents")
    if found is not None and (found.fingerprint, found.shards, found.rejects) == (fingerprint, shards, merged.rejects):
        return found
    counts = {"videos": len(merged.videos), "frames": sum(video.num_frames for video in merged.videos)}
    if texts is not None:
        counts["captions"] = len({video.caption for video in merged.videos})
    parts = [
        manifest.read(uri, "encode_part")
        for uri in storage.list_uris(storage.join(plan_manifest.uri, "parts"))
        if uri.endswith("/manifest.json")
    ]
    made = manifest.Manifest(
        kind="latents",
        name=config.name,
        uri=place,
        fingerprint=fingerprint,
        shards=shards,
        counts=counts,
        rejects=merged.rejects,
        inputs=plan_manifest.inputs,
        config={
            "classes": catalog.classes,
            "image_size": config.image_size,
            "latent_channels": row_shape[1],
            "latent_size": row_shape[2],
            "scaling_factor": _model(vae).scaling_factor,
            "dtype": config.dtype,
            **config.model_dump(include={"frame_stride", "min_frames", "max_frames", "mirrored"}),
            "videos": storage.from_path(config.dataset.videos),
            "split": config.dataset.split,
        },
        seconds=sum(part.seconds for part in parts) + time.monotonic() - started,
    )
    # The place's own manifest comes last: it says that all is done. It is of the newest state (split, captions, ...).
    state = storage.join(plan_manifest.uri, STATE_MANIFEST)
    manifest.write(made.model_copy(update={"seconds": 0.0}), state, config.root)
    return manifest.finish(made, config.root)


def run(config: EncodeConfig) -> manifest.Manifest:
    """Plan, encode every shard here, merge; see `plan`, `encode_shards` and `merge`."""
    planned = plan(config)
    encode_shards(config, planned.file, 0, 1)
    return merge(config, planned.file)


def _limits(config: EncodeConfig) -> Limits:
    return Limits(config.decode_limit_s, config.decode_memory_gb)


def _place(config: EncodeConfig, vae: manifest.Manifest) -> tuple[str, str]:
    """Where latents of this autoencoder and transform lie, and the fingerprint of both."""
    settings = config.model_dump(include={"image_size", "dtype", "max_frames", "frame_stride"})
    fingerprint = manifest.fingerprint("encode", TRANSFORM_VERSION, settings, _vae_digest(vae), _model(vae))
    return storage.join(config.root, "datasets", config.name, fingerprint[:16]), fingerprint


def _folder(config: EncodeConfig, place: str, inputs: dict[str, str]) -> str:
    """Where the plan and the index of one state of the dataset lie; other locations have other URIs in them.

    Videos below the root are in the same location when the root is moved.
    """
    videos = uris.relative(storage.from_path(config.dataset.videos), storage.join(place, manifest.NAME), config.root)
    state = manifest.fingerprint("state", inputs, videos, config.min_frames, config.mirrored)
    return storage.join(place, "catalogs", state[:16])


def _final_fingerprint(config: EncodeConfig, planned: manifest.Manifest, rejects: list[manifest.Reject]) -> str:
    """What training knows the dataset by: a reject that a later run lets in makes it another one."""
    settings = (planned.fingerprint, planned.inputs, config.min_frames, config.mirrored)
    return manifest.fingerprint("latents", *settings, [reject.item for reject in rejects])


def _text(config: EncodeConfig) -> TextSource | None:
    """What embeds the captions, or None where they are not wanted."""
    if config.text_encoder is None or config.tokenizer is None:
        return None
    return TextSource.checked(config.text_encoder, config.tokenizer)


def _embed_captions(config: EncodeConfig, place: str, planned: list[captions.CaptionShard]) -> int:
    """Embed the captions of those shards that have no valid record; returns how many captions that were."""
    text = _text(config)
    if text is None:
        return 0
    folder = captions.text_place(place, text, config.dtype)
    todo = [shard for shard in planned if manifest.read_record(captions.shard_uri(folder, shard)) is None]
    if todo:
        captions.embed_all(todo, folder, text, config.dtype)
    return sum(len(shard.captions) for shard in todo)


def _batch_size(config: EncodeConfig) -> int:
    """Small frames need many at once to keep the cores busy, large ones few to stay within memory."""
    return config.batch_size or max(1, min(32, 8 * 256**2 // config.image_size**2))


def _source_bytes(config: EncodeConfig, entries: list[Entry], row_shape: tuple[int, ...]) -> int:
    """How much source video becomes `shard_mb` of latents, by the frame counts of a few videos."""
    from latte import decoders

    wanted_bytes = int(config.shard_mb * 1e6)
    if sum(entry.bytes for entry in entries) * _MOST_GROWTH <= wanted_bytes * config.num_tasks:
        return wanted_bytes  # one shard a task at most, so there is no need to look
    few = entries[:: -(-len(entries) // _COUNTED_VIDEOS)]
    counts = [-(-count // config.frame_stride) for count in decoders.count_frames([entry.uri for entry in few])]
    frames = sum(min(count, config.max_frames or count) for count in counts)
    source_bytes = sum(entry.bytes for entry, count in zip(few, counts, strict=True) if count)
    if not frames:
        return wanted_bytes
    latent_bytes = frames * math.prod(row_shape) * np.dtype(config.dtype).itemsize
    return max(1, wanted_bytes * source_bytes // latent_bytes)


def _vae_digest(vae: manifest.Manifest) -> str:
    return vae.weights_file().sha256


def _row_shape(config: EncodeConfig, vae: manifest.Manifest) -> tuple[int, int, int, int]:
    """Shape (2, C, h, w) of one frame's mean and log-variance."""
    model = _model(vae)
    if config.image_size % model.downsampling:
        raise UserError(
            f"image_size={config.image_size}: not a multiple of {model.downsampling}, the autoencoder's downsampling; "
            f"image_size={nearest_multiple(config.image_size, model.downsampling)} works"
        )
    size = config.image_size // model.downsampling
    return 2, model.latent_channels, size, size


def _vae(config: EncodeConfig) -> manifest.Manifest:
    """The autoencoder's manifest, which is of nothing else."""
    vae = manifest.read(config.vae, "weights", "vae")
    if vae.config.get("kind", "vae") != "vae":
        raise UserError(f"vae {config.vae}: weights of kind {vae.config['kind']}, expected vae")
    return vae


def _model(vae: manifest.Manifest) -> AutoencoderKLConfig:
    return build(AutoencoderKLConfig, vae.config.get("model", {}), vae.file)


def _read_plan(config: EncodeConfig, vae: manifest.Manifest, uri: str) -> tuple[manifest.Manifest, str]:
    planned = manifest.read(uri, "encode_plan")
    place, fingerprint = _place(config, vae)
    text = _text(config)
    made_with = (planned.fingerprint, planned.inputs.get("text"), planned.uri)
    if made_with != (fingerprint, text and text.digest, _folder(config, place, planned.inputs)):
        raise UserError(f"plan {uri}: it was made with other settings; plan again")
    return planned, place


def _check_rejects(config: EncodeConfig, num_videos: int, rejects: list[manifest.Reject]) -> None:
    rejected = len({reject.item for reject in rejects if not reject.reason.endswith(SECOND_ROW)})
    total = num_videos + rejected
    if num_videos and rejected <= config.max_reject_share * total:
        return
    allowed = f"more than max_reject_share={config.max_reject_share:g} allows" if num_videos else "so none is left"
    raise LatteError(
        f"{config.dataset.videos}: {rejected} of {total} videos are rejected, {allowed}:\n"
        + "\n".join(manifest.reject_rows(rejects))
    )
