"""The encode step: a dataset's videos become latents. Planned once, encoded shard by shard, merged.

Content that was encoded before under the same autoencoder and transform, in whatever run and under whatever name, is
not encoded again; a killed job goes on with the shards that it lacks and ends with the same bytes.
"""

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from latte import storage, uris
from latte.config import build
from latte.data import captions, encode_plan
from latte.data.catalog import SECOND_ROW, scan
from latte.data.config import EncodeConfig
from latte.data.curation import gate, rules
from latte.data.entries import CatalogEntry
from latte.errors import LatteError, UserError
from latte.facts import LatentsFacts, PlanMetrics, WeightsFacts
from latte.models.configs import AutoencoderKLConfig, nearest_multiple
from latte.networks import TextSource
from latte.places import Place
from latte.steps import dataset_demands, demands
from latte.storage import manifest, publishing
from latte.video.decoder_process import TRANSFORM_VERSION
from latte.video.decoders import Limits

_COUNTED_VIDEOS = 8
# Latents take at most about so many times the bytes of their video.
_MOST_GROWTH = 100


@dataclass(frozen=True)
class _Encoding:
    """All that follows from the settings, resolved and checked once a command.

    Attributes:
        config: the settings.
        vae: manifest of the autoencoder's weights.
        model: its settings.
        row_shape: (2, C, h, w) of one frame's mean and log-variance.
        text: encoder of the captions, or None where they are not wanted.
        place: of the latents of this autoencoder and transform, in whatever state of the dataset.
        limits: on decoding a video.
        asked: what later steps ask of the dataset.
    """

    config: EncodeConfig
    vae: manifest.Manifest
    model: AutoencoderKLConfig
    row_shape: tuple[int, int, int, int]
    text: TextSource | None
    place: Place
    limits: Limits
    asked: demands.Asked

    @property
    def text_place(self) -> str | None:
        """URI of the captions' embeddings."""
        return None if self.text is None else captions.text_place(self.place.uri, self.text, self.config.dtype)

    def folder(self, inputs: dict[str, str]) -> str:
        """URI of the plan and the index of one state of the dataset; other locations have other URIs in them.

        Videos below the root are in the same location when the root is moved.
        """
        config, within = self.config, storage.join(self.place.uri, manifest.NAME)
        videos = uris.relative(storage.from_path(config.dataset.videos), within, config.root)
        state = manifest.fingerprint("state", inputs, videos, config.min_frames, config.mirrored)
        return storage.join(self.place.uri, "catalogs", state[:16])


def _resolve(config: EncodeConfig, sections: demands.Sections | None = None) -> _Encoding:
    vae = manifest.read_weights(config.vae, "vae", "vae")
    model = build(AutoencoderKLConfig, WeightsFacts.of(vae).model, vae.file)
    text = None
    if config.text_encoder is not None and config.tokenizer is not None:
        try:
            text = TextSource.checked(config.text_encoder, config.tokenizer)
        except UserError as error:
            raise UserError(f"encode.{error}" if sections is not None else str(error)) from None
    asked = demands.Asked() if sections is None else demands.read(sections, config, text)
    demands.check_settings(asked, model)
    if config.image_size % model.downsampling:
        raise UserError(
            f"image_size={config.image_size}: not a multiple of {model.downsampling}, the autoencoder's downsampling; "
            f"image_size={nearest_multiple(config.image_size, model.downsampling)} works"
        )
    size = config.image_size // model.downsampling
    settings = config.model_dump(include={"image_size", "dtype", "max_frames", "frame_stride"})
    fingerprint = manifest.fingerprint("encode", TRANSFORM_VERSION, settings, vae.weights_file().sha256, model)
    return _Encoding(
        config=config,
        vae=vae,
        model=model,
        row_shape=(2, model.latent_channels, size, size),
        text=text,
        place=Place.under("latents", fingerprint, config.root, "datasets", config.name),
        limits=Limits(config.decode_limit_s, config.decode_memory_gb),
        asked=asked,
    )


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
    return _plan(_resolve(config, sections))


def _plan(encoding: _Encoding) -> manifest.Manifest:
    config, place, asked, text = encoding.config, encoding.place, encoding.asked, encoding.text
    publishing.clear_unfinished(place.uri)
    catalog = scan(config.dataset)
    dataset_demands.check(dataset_demands.listed(catalog), asked)
    if config.curate is not None:
        catalog = gate.curated(config, catalog)
        dataset_demands.check(dataset_demands.listed(catalog), asked)
    contents = encode_plan.contents(catalog, config.mirrored)
    done = encode_plan.published(place.uri, encoding.limits)
    dataset_demands.counted(catalog, asked, encode_plan.frames(done))
    inputs = {"vae": encoding.vae.weights_file().sha256, "catalog": catalog.digest}
    texts, new_captions = None, []
    if text is not None and encoding.text_place is not None:
        if catalog.entries and all(entry.caption is None for entry in catalog.entries):
            raise UserError("text_encoder: the dataset has no captions; name a CSV file with some or leave it out")
        inputs["text"] = text.digest
        texts = captions.published(encoding.text_place)
        new_captions = texts.lacks(captions.distinct(catalog))
    folder = encoding.folder(inputs)
    uri = storage.join(folder, encode_plan.PLAN)
    planned = encode_plan.earlier(folder)
    if planned is None or not encode_plan.fits(planned, catalog, done, new_captions, config.mirrored):
        source_bytes = _source_bytes(config, list(filter(done.lacks, contents)), encoding.row_shape)
        planned = encode_plan.make(catalog, done, source_bytes, config.num_tasks, config.mirrored)
        planned = replace(planned, captions=captions.plan(new_captions, config.num_tasks))
    shard = encode_plan.write(planned, uri, config.root)
    # What is stored depends on the plan alone; what is left to do changes from run to run and is only handed on.
    stored = manifest.finish(
        Place("encode_plan", folder, place.fingerprint).manifest(
            config.name,
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
    metrics = PlanMetrics(num_tasks=max(1, min(config.num_tasks, waiting)), shards_to_encode=waiting).said()
    return stored.model_copy(update={"metrics": metrics, "counts": {**stored.counts, "new_videos": new_videos}})


def encode_shards(config: EncodeConfig, plan_uri: str, task: int, num_tasks: int) -> manifest.Manifest:
    """Encode the shards `task`, `task + num_tasks`, … of a plan; those with a valid record are skipped.

    Raises:
        UserError: the plan is of other settings, or the autoencoder does not fit.
        StorageError: the store stayed away for too long, or the disk is full.
    """
    if not 0 <= task < num_tasks:
        raise UserError(f"task {task}: expected 0 to {num_tasks - 1}")
    return _encode_shards(_resolve(config), plan_uri, task, num_tasks)


def _encode_shards(encoding: _Encoding, plan_uri: str, task: int, num_tasks: int) -> manifest.Manifest:
    started = time.monotonic()
    config, place = encoding.config, encoding.place.uri
    plan_manifest = _read_plan(encoding, plan_uri)
    planned = encode_plan.of(plan_manifest)
    by_etag = storage.etags_tell_content(config.dataset.videos) and config.dataset.s3_digest == "etag"
    mine = encode_plan.task_shards(planned, place, task, num_tasks, by_etag)
    todo = encode_plan.left_to_encode(mine, place, encoding.limits)
    new_captions = _embed_captions(encoding, planned.captions[task::num_tasks])
    if todo:
        from latte.data import encoding as shards

        settings = shards.Settings(
            image_size=config.image_size,
            batch_size=_batch_size(config),
            dtype=config.dtype,
            row_shape=encoding.row_shape,
            max_frames=config.max_frames,
            decode_workers=config.decode_workers,
            limits=encoding.limits,
            frame_stride=config.frame_stride,
        )
        encode = shards.load_encoder(encoding.vae, settings.batch_size, config.image_size)
        shards.encode_all(todo, settings, encode)
    uris_of_all = dict.fromkeys(shard.uri for shard in (*mine, *todo))
    records = [record for shard_uri in uris_of_all if (record := manifest.read_record(shard_uri)) is not None]
    uri = storage.join(plan_manifest.uri, "parts", f"{task:02d}-of-{num_tasks:02d}")
    part = Place("encode_part", uri, plan_manifest.fingerprint).manifest(
        config.name,
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
    return _merge(_resolve(config, sections), plan_uri)


def _merge(encoding: _Encoding, plan_uri: str) -> manifest.Manifest:
    started = time.monotonic()
    config, place = encoding.config, encoding.place.uri
    plan_manifest = _read_plan(encoding, plan_uri)
    catalog = encode_plan.of(plan_manifest).catalog
    texts = None if encoding.text_place is None else captions.published(encoding.text_place)
    done = encode_plan.published(place, encoding.limits)
    merged = encode_plan.merge(catalog, done, config.min_frames, texts, config.mirrored)
    _check_rejects(config, len(merged.videos) + catalog.left_out, merged.rejects)
    frames = [video.num_frames for video in merged.videos]
    dataset = replace(dataset_demands.listed(catalog), num_videos=len(frames), frames=frames)
    dataset_demands.check(dataset, encoding.asked)
    row_shape = encoding.row_shape
    index = encode_plan.write_index(merged, place, plan_manifest.uri, row_shape, config.dtype, config.root)
    shards = [*merged.shards, index]
    final = replace(encoding.place, fingerprint=_final_fingerprint(config, plan_manifest, merged.rejects))
    state = storage.join(plan_manifest.uri, encode_plan.STATE)
    found = final.found if storage.exists(state) else None
    made_of = (final.fingerprint, shards, merged.rejects)
    if found is not None and (found.fingerprint, found.shards, found.rejects) == made_of:
        return found
    counts = {"videos": len(merged.videos), "frames": sum(video.num_frames for video in merged.videos)}
    if texts is not None:
        counts["captions"] = len({video.caption for video in merged.videos})
    parts = [
        manifest.read(uri, "encode_part")
        for uri in storage.list_uris(storage.join(plan_manifest.uri, "parts"))
        if uri.endswith("/manifest.json")
    ]
    latents = final.manifest(
        config.name,
        shards=shards,
        counts=counts,
        rejects=merged.rejects,
        inputs=plan_manifest.inputs,
        config=LatentsFacts(
            classes=catalog.classes,
            image_size=config.image_size,
            latent_channels=row_shape[1],
            latent_size=row_shape[2],
            scaling_factor=encoding.model.scaling_factor,
            dtype=config.dtype,
            **config.model_dump(include={"frame_stride", "min_frames", "max_frames", "mirrored"}),
            videos=storage.from_path(config.dataset.videos),
            split=config.dataset.split,
        ).said()
        | ({} if config.curate is None else {"curate": config.curate.model_dump(exclude_none=True)}),
        seconds=sum(part.seconds for part in parts) + time.monotonic() - started,
    )
    # The place's own manifest comes last: it says that all is done. It is of the newest state (split, captions, ...).
    manifest.write(latents.model_copy(update={"seconds": 0.0}), state, config.root)
    return manifest.finish(latents, config.root)


def run(config: EncodeConfig) -> manifest.Manifest:
    """Plan, encode every shard here, merge; see `plan`, `encode_shards` and `merge`."""
    encoding = _resolve(config)
    planned = _plan(encoding)
    _encode_shards(encoding, planned.file, 0, 1)
    return _merge(encoding, planned.file)


def _final_fingerprint(config: EncodeConfig, planned: manifest.Manifest, rejects: list[manifest.Reject]) -> str:
    """Fingerprint that training knows the dataset by: a reject that a later run lets in makes it another one."""
    settings = (planned.fingerprint, planned.inputs, config.min_frames, config.mirrored)
    return manifest.fingerprint("latents", *settings, [reject.item for reject in rejects])


def _embed_captions(encoding: _Encoding, planned: list[captions.CaptionShard]) -> int:
    """Embed the captions of those shards that have no valid record; returns how many captions that were."""
    text, folder = encoding.text, encoding.text_place
    if text is None or folder is None:
        return 0
    todo = [shard for shard in planned if manifest.read_record(captions.shard_uri(folder, shard)) is None]
    if todo:
        captions.embed_all(todo, folder, text, encoding.config.dtype)
    return sum(len(shard.captions) for shard in todo)


def _batch_size(config: EncodeConfig) -> int:
    """Small frames need many at once to keep the cores busy, large ones few to stay within memory."""
    return config.batch_size or max(1, min(32, 8 * 256**2 // config.image_size**2))


def _source_bytes(config: EncodeConfig, entries: list[CatalogEntry], row_shape: tuple[int, ...]) -> int:
    """Source video that becomes `shard_mb` of latents, by the frame counts of a few videos."""
    from latte.video import decoders

    wanted_bytes = int(config.shard_mb * 1e6)
    if sum(entry.bytes for entry in entries) * _MOST_GROWTH <= wanted_bytes * config.num_tasks:
        return wanted_bytes  # one shard a task at most, so there is no need to look
    few = entries[:: -(-len(entries) // _COUNTED_VIDEOS)]
    shots = [None if entry.view is None else entry.view.count(config.frame_stride) for entry in few]
    counted = decoders.count_frames([entry.uri for entry in few])
    counts = [shot or -(-count // config.frame_stride) for shot, count in zip(shots, counted, strict=True)]
    frames = sum(min(count, config.max_frames or count) for count in counts)
    source_bytes = sum(entry.bytes for entry, count in zip(few, counts, strict=True) if count)
    if not frames:
        return wanted_bytes
    latent_bytes = frames * math.prod(row_shape) * np.dtype(config.dtype).itemsize
    return max(1, wanted_bytes * source_bytes // latent_bytes)


def _read_plan(encoding: _Encoding, uri: str) -> manifest.Manifest:
    planned = manifest.read(uri, "encode_plan")
    made_with = (planned.fingerprint, planned.inputs.get("text"), planned.uri)
    text = encoding.text and encoding.text.digest
    if made_with != (encoding.place.fingerprint, text, encoding.folder(planned.inputs)):
        raise UserError(f"plan {uri}: it was made with other settings; plan again")
    return planned


def _check_rejects(config: EncodeConfig, num_videos: int, rejects: list[manifest.Reject]) -> None:
    # What curation leaves out it counts itself (curate.max_reject_share), before anything is encoded.
    trouble = [reject for reject in rejects if not reject.reason.endswith(SECOND_ROW) and not rules.rule_of(reject)]
    rejected = len({reject.item for reject in trouble})
    total = num_videos + rejected
    if num_videos and rejected <= config.max_reject_share * total:
        return
    allowed = f"more than max_reject_share={config.max_reject_share:g} allows" if num_videos else "so none is left"
    raise LatteError(
        f"{config.dataset.videos}: {rejected} of {total} videos are rejected, {allowed}:\n"
        + "\n".join(manifest.reject_rows(rejects))
    )
