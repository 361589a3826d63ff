"""The sample step: a checkpoint becomes a set of generated videos. Plan, shards (fanned out), merge.

Video i of a set follows from the checkpoint, the settings, the seed and i alone: its label or caption, its start noise
and the noise of its every step come from streams of its own. Who generates it and after which interruptions does not
matter. It is always computed in the batch of videos b B to b B + B - 1 that it belongs to, wanted or not: on a CPU the
last bits of a matrix product depend on the place in the batch. A set grows in place: a larger `num_videos` generates
only the new ones. It never shrinks: a smaller one reads the first so many, and the manifest of the larger set stays.
"""

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from latte import networks, owners, storage, texts
from latte.errors import DamagedError, NotThereError, UnreadableError, UserError
from latte.facts import LatteFacts, PlanMetrics, VideoSetFacts
from latte.places import Place
from latte.progress import progress, teller
from latte.sampling import conditions as conditioning
from latte.sampling import contact_sheet, generation, sources
from latte.sampling.conditions import Conditions
from latte.sampling.config import MAX_TASKS, SampleConfig
from latte.sampling.sources import WeightsSource
from latte.storage import manifest, publishing

CONTACT_SHEET = "contact-sheet.png"
_RECORD_THREADS = 16


# These say where, how many and in which portions, not what video i is; what lies there counts by its content.
_NOT_IN_FINGERPRINT = {
    "root", "name", "checkpoint", "vae", "step", "num_videos", "batch_size", "decode_frames", "num_tasks",
    "latents", "captions", "text_encoder", "tokenizer", "adapt",
}  # fmt: skip
# Came later: sets that were made before keep their place.
_NOT_SAID_AT_DEFAULT = ("cfg_channels", "precision", "num_frames")
_IN_MANIFEST = {
    "weights", "method", "num_sampling_steps", "cfg_scale", "cfg_channels", "precision", "labels", "fps", "seed",
}  # fmt: skip


@dataclass(frozen=True)
class _Set:
    """Ingredients of a set, resolved and checked.

    Attributes:
        place: of the set; its fingerprint is of what makes video i, whatever their number.
        source: the networks.
        conditions: what the videos show.
        text: what embeds their captions, or None without captions.
        num_frames: of a video.
        cfg_scale: guidance, 1 where it was left out.
        notes: what was adapted to the model.
    """

    place: Place
    source: WeightsSource
    conditions: Conditions
    text: networks.TextSource | None
    num_frames: int
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
    publishing.clear_unfinished(made.place.uri)
    batches = -(-config.num_videos // config.batch_size)
    fingerprint = _count_fingerprint(made, config.num_videos)
    return manifest.finish(
        Place.under("sample_plan", fingerprint, made.place.uri, "plan").manifest(
            config.name,
            counts={"videos": config.num_videos},
            # The networks that a set at work needs; its own manifest comes last.
            inputs={"weights": made.source.weights.uri, "vae": made.source.vae.uri},
            config={"notes": _notes(made)},
            metrics=PlanMetrics(num_tasks=min(config.num_tasks, batches, MAX_TASKS), batches=batches).said(),
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
    fingerprint = manifest.fingerprint(made.place.fingerprint, task, num_tasks, config.num_videos)
    return Place("sample_part", made.place.uri, fingerprint).manifest(
        config.name,
        shards=shards,
        counts={"videos": len(indices), "generated": len(missing)},
        seconds=time.monotonic() - started,
    )


def merge(config: SampleConfig, plan_uri: str) -> manifest.Manifest:
    """List all videos in items.json and write the manifest of the set, unless there is that of a larger one.

    Returns:
        The manifest of these videos; that of a larger set stays where it is.

    Raises:
        UserError: the plan is of other settings, or a video is not there.
    """
    made = _planned(config, plan_uri)
    place = replace(made.place, fingerprint=_count_fingerprint(made, config.num_videos))
    done = place.found
    if done is not None and done.fingerprint == place.fingerprint:
        return done
    source = made.source
    items, shards, seconds = [], [], 0.0
    for index, record in _records(made, range(config.num_videos)).items():
        if record is None:
            raise UserError(f"{_clip_uri(made, index)}: not generated yet; run the tasks of the plan first")
        items.append(_item(made, index, record))
        shards += _objects(record)
        seconds += float(record["seconds"])
    for ref in (
        _publish_contact_sheet(made, items),
        publishing.write_json(storage.join(made.place.uri, manifest.ITEMS), items, root=made.place.uri),
    ):
        shards.append(manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256, items=len(items)))
    whole = place.manifest(
        config.name,
        shards=shards,
        counts={"videos": len(items)},
        # The text's digest is that by which `latte gc` knows the kept states of captions.
        inputs={
            "weights": source.weights.sha256,
            "vae": source.vae.sha256,
            **({"text": made.text.digest} if made.text is not None else {}),
        },
        config=VideoSetFacts(
            checkpoint=source.checkpoint.file,
            step=source.step,
            vae_known_by=source.vae_known_by,
            classes=source.facts.classes,
            num_frames=made.num_frames,
            image_size=source.facts.image_size,
            **{**config.model_dump(include=_IN_MANIFEST), "cfg_scale": made.cfg_scale},
            notes=_notes(made),
        ).said(),
        metrics={} if source.step is None else {"step": source.step},
        seconds=seconds,
    )
    data = storage.json_bytes(whole.file, whole.model_dump(), config.root)
    publishing.write_unless(whole.file, data, lambda: _size(made) > config.num_videos)
    manifest.check_kept(whole)
    return whole


def guidance_left_out(cfg_scale: float) -> str:
    """Message where guidance is left out."""
    return f"cfg_scale {cfg_scale:g} is left out: the model has no condition to guide by"


def _resolve(config: SampleConfig) -> _Set:
    source = sources.resolve(config.checkpoint, config.vae, config.step, config.weights)
    notes: tuple[str, ...] = ()
    if config.adapt and config.cfg_scale != 1.0 and source.facts.latte.condition == "none":
        notes = (guidance_left_out(config.cfg_scale),)
        config = config.model_copy(update={"cfg_scale": 1.0})
    num_frames = _frames(config, source.facts)
    conditions = conditioning.resolve(config, source.facts)
    text = None
    if conditions.captions is not None:
        model = source.facts.latte
        text = networks.TextSource.checked(
            str(config.text_encoder), str(config.tokenizer), model.text_encoder, model.text_shape
        )
        if source.facts.text not in (None, text.digest):
            raise UserError(
                f"text_encoder {config.text_encoder}: the model was trained with another encoder or tokenizer"
            )
    settings = config.model_dump(exclude=_NOT_IN_FINGERPRINT)
    for key in _NOT_SAID_AT_DEFAULT:
        if settings[key] == SampleConfig.model_fields[key].default:
            del settings[key]
    files = [*conditions.from_files, *([text.digest] if text is not None else [])]
    facts: list[Any] = [source.weights.sha256, source.vae.sha256, source.facts.diffusion.said()]
    if source.vae_known_by == "name":
        # Not implied by a digest: a file does not tell the heads of its attention or the groups of its normalisation.
        facts += [source.vae_model, source.facts.scaling_factor, source.facts.model, source.facts.classes]
    fingerprint = manifest.fingerprint("sample", settings, *facts, *files)
    return _Set(
        place=Place.under("video_set", fingerprint, config.root, "videos", config.name),
        source=source,
        conditions=conditions,
        text=text,
        num_frames=num_frames,
        cfg_scale=config.cfg_scale,
        notes=notes,
    )


def _notes(made: _Set) -> list[str]:
    """Words for whoever reads the plan or the set."""
    captions = made.conditions.captions
    told = [] if made.text is None or captions is None else texts.notes(made.text, captions)
    return [*made.notes, *told]


def _frames(config: SampleConfig, facts: LatteFacts) -> int:
    """Frames of a video: the model's, or 1 of a model whose temporal blocks were trained on images as well.

    Raises:
        UserError: the model makes no such videos.
    """
    own = int(facts.latte.num_frames)
    able = (own, 1) if facts.kind == "latte_t2v" else (own,)
    if config.num_frames is not None and config.num_frames not in able:
        raise UserError(
            f"num_frames={config.num_frames}: the model of {config.checkpoint} makes videos of {own} frames"
            + (", or images with num_frames=1" if len(able) > 1 else "; leave it out")
        )
    return config.num_frames or own


def _count_fingerprint(made: _Set, num_videos: int) -> str:
    return manifest.fingerprint(made.place.fingerprint, num_videos)


def _size(made: _Set) -> int:
    """Number of videos that the manifest of the set names; 0 where there is none that can be read."""
    try:
        found = manifest.read(storage.join(made.place.uri, manifest.NAME), "video_set")
    except NotThereError:
        return 0
    except (DamagedError, UnreadableError) as error:
        manifest.say_not_done(error)
        return 0
    count = found.counts.get("videos", 0)
    return count if found.fingerprint == _count_fingerprint(made, count) else 0


def _planned(config: SampleConfig, plan_uri: str) -> _Set:
    made = _resolve(config)
    if manifest.read(plan_uri, "sample_plan").fingerprint != _count_fingerprint(made, config.num_videos):
        raise UserError(f"{plan_uri}: a plan of other settings; plan again")
    return made


def _clip_uri(made: _Set, index: int) -> str:
    return storage.join(made.place.uri, f"clip-{index:05d}.mkv")


def _records(made: _Set, indices: Sequence[int]) -> dict[int, dict[str, Any] | None]:
    """The record of each video, or None where it is not published whole."""
    with ThreadPoolExecutor(_RECORD_THREADS, thread_name_prefix="records") as pool:
        return dict(zip(indices, pool.map(lambda index: _record(made, index), indices), strict=True))


def _record(made: _Set, index: int) -> dict[str, Any] | None:
    record = manifest.read_record(_clip_uri(made, index))
    return record if record is not None and all(map(manifest.is_whole, _objects(record))) else None


def _item(made: _Set, index: int, record: dict[str, Any]) -> dict[str, Any]:
    """A video's entry in items.json; its class has its name beside its number."""
    item: dict[str, Any] = record["item"]
    label, classes = item["label"], made.source.facts.classes
    return {**item, "class": classes[label]} if label is not None and label < len(classes) else item


def _objects(record: dict[str, Any]) -> list[manifest.Shard]:
    """The video and its preview."""
    return [manifest.Shard.model_validate(record[role]) for role in ("shard", "preview")]


def _generate(config: SampleConfig, made: _Set, indices: list[int], label: str) -> None:
    """Generate and publish videos, each in its batch of one shape: one compiled graph, and the same bits every time."""
    size = config.batch_size
    batches = {index // size: range(index - index % size, index - index % size + size) for index in indices}
    sample = generation.sampler(_recipe(config, made), list(itertools.chain(*batches.values())))
    bar = progress(total=len(indices), desc=label, unit="video")
    tell = teller(bar)
    for number, wanted in itertools.groupby(indices, lambda index: index // size):
        group, batch = list(wanted), list(batches[number])
        started = time.monotonic()
        videos = sample(batch, lambda done: tell(f"denoising step {done + 1}"))
        seconds = (time.monotonic() - started) / len(group)
        for index in group:
            _publish(config, made, index, videos[index - batch[0]], seconds)
            bar.update()
    bar.close()


def _recipe(config: SampleConfig, made: _Set) -> generation.Recipe:
    source = made.source
    return generation.Recipe(
        root=config.root,
        kind=source.facts.kind,
        weights=source.weights,
        model=source.facts.model,
        num_frames=made.num_frames,
        vae=source.vae,
        vae_model=source.vae_model,
        scaling_factor=source.facts.scaling_factor,
        diffusion=source.facts.diffusion,
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
    """Preview first, then the video, its record last: a video with a record is whole.

    Another job may make the same video, in batches of another size with other last bits: neither overwrites what the
    other has published, and the video that has its record first is the set's.
    """
    from latte.video import clip_files

    uri = _clip_uri(made, index)
    with owners.Folder("video") as folder:
        lossless, preview = Path(folder) / "clip.mkv", Path(folder) / "clip.mp4"
        clip_files.write_lossless(lossless, frames, config.fps)
        clip_files.write_preview(preview, frames, config.fps)
        of_preview = _put(preview, uri.removesuffix(".mkv") + ".mp4")
        of_video = _put(lossless, uri)
    item = {
        "index": index,
        "label": made.conditions.label(index),
        "seed": config.seed,
        "video": of_video.uri,
        "preview": of_preview.uri,
        "sha256": of_video.sha256,
        "preview_sha256": of_preview.sha256,
    }
    if made.text is not None:
        item["caption"] = made.conditions.caption(index)
    shard, facts = ({"uri": ref.uri, "bytes": ref.bytes, "sha256": ref.sha256} for ref in (of_video, of_preview))
    record = {"shard": {**shard, "items": 1}, "item": item, "preview": facts, "seconds": round(seconds, 3)}
    record_uri = uri + manifest.RECORD_SUFFIX
    data = storage.json_bytes(record_uri, record, made.place.uri)
    publishing.write_unless(record_uri, data, lambda: _record(made, index) is not None)


def _put(path: Path, uri: str) -> storage.Ref:
    folder, _, name = uri.rpartition("/")
    return publishing.publish(path, (uri, storage.join(folder, storage.sha256_file(path)[:16], name)))


def _publish_contact_sheet(made: _Set, items: list[dict[str, Any]]) -> storage.Ref:
    """A picture of the first videos of the set."""
    from latte.video import clip_files

    def read(item: dict[str, Any]) -> np.ndarray:
        with storage.as_local_file(item["video"], item["sha256"]) as path:
            return clip_files.read_lossless(path)  # (F, H, W, 3)

    with ThreadPoolExecutor(_RECORD_THREADS, thread_name_prefix="sheet") as pool:
        videos = list(pool.map(read, items[: contact_sheet.MAX_VIDEOS]))
    titles = [contact_sheet.title(item) for item in items[: contact_sheet.MAX_VIDEOS]]
    return publishing.write_bytes(storage.join(made.place.uri, CONTACT_SHEET), contact_sheet.draw(videos, titles))
