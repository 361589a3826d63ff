"""Planning an encoding job: what of a dataset is encoded already, and which shards the rest goes into.

Under a place (one autoencoder, one transform) content is encoded once, whatever the videos are called. A mirrored copy
is a content of its own; the captions' embeddings lie beside the shards (`latte.data.captions`).

    shards/<fingerprint of its contents>.safetensors (+ record)
    catalogs/<fingerprint of the dataset's state>/plan.json, index.json, latents.json
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from latte import storage
from latte.data import captions
from latte.data.captions import CaptionShard
from latte.data.encoding import Planned, PlannedShard
from latte.data.entries import Catalog, CatalogEntry
from latte.data.latents import INDEX, EncodedVideo
from latte.errors import DamagedError, LatteError
from latte.models.configs import TEXT_SHAPE
from latte.storage import manifest, publishing
from latte.storage.manifest import RUN_AGAIN
from latte.video.decoders import Limits
from latte.video.views import View

PLAN = "plan.json"
# Manifest of one state of the dataset; the place has that of the newest.
STATE = "latents.json"
# Behind the digest of a video's content it means the mirrored copy, which is a content of its own.
MIRRORED = "-mirrored"


@dataclass(frozen=True)
class Known:
    """Content that has been looked at: where its latents are, or why it was rejected.

    `again`: it was rejected, and is to be tried again. `digests`: of its latents' blocks, as in EncodedVideo.
    """

    shard: str
    num_frames: int = 0
    offset: int = 0
    fps: float | None = None
    reject: str | None = None
    again: bool = False
    digests: str | None = None


@dataclass(frozen=True)
class Published:
    """The shards of a place by name, and what each content digest became."""

    shards: dict[str, manifest.Shard]
    known: dict[str, Known]

    def lacks(self, entry: CatalogEntry) -> bool:
        """Whether an entry's content is still to be encoded."""
        known = self.known.get(entry.digest)
        return known is None or known.again


@dataclass(frozen=True)
class EncodePlan:
    """A dataset's state, the shards that its new content goes into, lists of entries, and those of its captions."""

    catalog: Catalog
    shards: list[tuple[str, list[CatalogEntry]]]
    captions: list[CaptionShard] = field(default_factory=list)


def published(place: str, limits: Limits) -> Published:
    """Read the records of a place; a record whose object is gone or has another size does not count.

    Args:
        place: of the latents.
        limits: of decoding; what was too much for lower ones is to be tried again.

    Raises:
        StorageError: the store does not answer.
    """
    shards: dict[str, manifest.Shard] = {}
    known: dict[str, Known] = {}
    again: dict[str, Known] = {}
    for shard, record in manifest.read_records(storage.join(place, "shards")):
        name = manifest.shard_name(shard.uri)
        shards[name] = shard
        for item in record["videos"]:
            known[item["digest"]] = Known(
                name, item["num_frames"], item["offset"], item["fps"], digests=item.get("digests")
            )
        for item in record["rejects"]:
            into = again if _may_pass(item, limits) else known
            into.setdefault(item["digest"], Known(name, reject=item["reason"], again=into is again))
    return Published(shards, again | known)


def frames(done: Published) -> dict[str, int]:
    """Encoded frames of what has been looked at, by its digest; 0 where it was rejected for good."""
    return {digest: known.num_frames for digest, known in done.known.items() if not known.again}


def is_done(uri: str, limits: Limits) -> bool:
    """Whether a shard is published, and nothing that it was to hold is to be tried again."""
    record = manifest.read_record(uri)
    return record is not None and not any(_may_pass(reject, limits) for reject in record["rejects"])


def left_to_encode(shards: Iterable[PlannedShard], place: str, limits: Limits) -> list[PlannedShard]:
    """The shards that are not published; of those that are, shards of their own for what is to be tried again.

    A published shard stays as it is, whoever holds a manifest that names it.
    """
    found = []
    for shard in shards:
        tries = itertools.count(1)
        while not is_done(shard.uri, limits):
            record = manifest.read_record(shard.uri)
            if record is None:
                found.append(shard)
                break
            again = {reject["digest"] for reject in record["rejects"] if _may_pass(reject, limits)}
            videos = tuple(video for video in shard.videos if video.digest in again)
            name = manifest.fingerprint("shard", [video.digest for video in videos], next(tries))[:16]
            shard = PlannedShard(shard_uri(place, name), videos)
    return found


def _may_pass(reject: dict[str, Any], limits: Limits) -> bool:
    """Whether a video was rejected for trouble that was not its own, or by a limit that is higher now."""
    beyond = reject.get("beyond", {})
    return bool(reject.get("passing")) or any(getattr(limits, name) > value for name, value in beyond.items())


def contents(catalog: Catalog, mirrored: bool) -> list[CatalogEntry]:
    """Videos of a dataset that are to be encoded, then their mirrored copies if they are wanted."""
    return [*catalog.entries, *(map(_mirrored, catalog.entries) if mirrored else ())]


def make(catalog: Catalog, done: Published, shard_bytes: int, num_tasks: int, mirrored: bool = False) -> EncodePlan:
    """Group the contents that are still to be encoded, each once, into shards of about `shard_bytes` of source video.

    Shards are smaller where there would be fewer of them than tasks.
    """
    new = list({entry.digest: entry for entry in reversed(contents(catalog, mirrored)) if done.lacks(entry)}.values())
    new.reverse()  # the first of several with the same content
    total = sum(entry.bytes for entry in new)
    target = max(1, min(shard_bytes, -(-total // num_tasks)))
    # An entry goes where its middle lies: shards end up alike, and none is empty of bytes for a rounding.
    before = itertools.accumulate((entry.bytes for entry in new), initial=0)
    numbered = [((start + entry.bytes // 2) // target, entry) for start, entry in zip(before, new, strict=False)]
    shards = []
    for _, group in itertools.groupby(numbered, key=lambda pair: pair[0]):
        entries = [entry for _, entry in group]
        shards.append((manifest.fingerprint("shard", [entry.digest for entry in entries])[:16], entries))
    return EncodePlan(catalog, shards)


def write(plan: EncodePlan, uri: str, root: str) -> manifest.Shard:
    """Publish a plan as one object under a root."""
    numbers = {entry.id: number for number, entry in enumerate(plan.catalog.entries)}

    def number_of(entry: CatalogEntry) -> int:
        number = numbers[entry.id]
        return -1 - number if entry.digest.endswith(MIRRORED) else number

    captioned = {entry.caption: number for number, entry in enumerate(plan.catalog.entries)} | {captions.EMPTY: -1}
    value = {
        "classes": plan.catalog.classes,
        "entries": [
            [e.id, e.uri, e.digest, e.label, e.caption, e.bytes, *(() if e.view is None else (e.view.row,))]
            for e in plan.catalog.entries
        ],
        "rejects": [[reject.item, reject.reason] for reject in plan.catalog.rejects],
        "shards": [[name, [number_of(entry) for entry in entries]] for name, entries in plan.shards],
        "left_out": plan.catalog.left_out,
        "captions": [[shard.name, [captioned[caption] for caption in shard.captions]] for shard in plan.captions],
    }
    ref = publishing.write_json(uri, value, root, compact=True)
    return manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256, items=len(plan.shards))


def read(uri: str, sha256: str | None = None) -> EncodePlan:
    """Read a plan that `write` wrote.

    Raises:
        UserError: there is none.
        DamagedError: it does not have the SHA-256 that is given.
    """
    data = storage.read_bytes(uri) if sha256 is None else storage.read_recorded(uri, sha256)
    value = storage.parse_json(data, uri)
    entries = [
        CatalogEntry(*row) if len(row) == 6 else replace(CatalogEntry(*row[:6]), view=View.of(row[6]))
        for row in value["entries"]
    ]
    rejects = [manifest.Reject(item=item, reason=reason) for item, reason in value["rejects"]]
    shards = [
        (name, [entries[n] if n >= 0 else _mirrored(entries[-1 - n]) for n in numbers])
        for name, numbers in value["shards"]
    ]
    texts = [
        CaptionShard(name, [captions.EMPTY if n < 0 else str(entries[n].caption) for n in numbers])
        for name, numbers in value["captions"]
    ]
    return EncodePlan(Catalog(entries, value["classes"], rejects, value["left_out"]), shards, texts)


def of(document: manifest.Manifest) -> EncodePlan:
    """The plan that a manifest is of.

    Raises:
        DamagedError: it does not have its recorded SHA-256.
    """
    shard = document.shard(f"/{PLAN}")
    return read(shard.uri, shard.sha256)


def earlier(folder: str) -> EncodePlan | None:
    """The plan that an earlier run has left; None where there is none, or where it cannot be read, which is told."""
    found = manifest.find(folder, "encode_plan")
    try:
        return None if found is None else of(found)
    except DamagedError as error:
        manifest.say_not_done(error)
        return None


def fits(
    plan: EncodePlan,
    catalog: Catalog,
    done: Published,
    new_captions: Iterable[str] = (),
    mirrored: bool = False,
) -> bool:
    """Whether a plan made earlier covers all that the dataset still lacks."""
    # A shard that is published is no longer to be encoded, though something in it may be tried again.
    waiting = [entries for name, entries in plan.shards if name not in done.shards]
    covered = {entry.digest for entries in waiting for entry in entries}
    texts = {caption for shard in plan.captions for caption in shard.captions}
    return (
        plan.catalog == catalog
        and all(e.digest in covered or not done.lacks(e) for e in contents(catalog, mirrored))
        and texts.issuperset(new_captions)
    )


def task_shards(plan: EncodePlan, place: str, task: int, num_tasks: int, by_etag: bool) -> list[PlannedShard]:
    """The shards of one task: `task`, `task + num_tasks`, …; `by_etag` as in `latte.video.sources.VideoSource`."""
    return [
        PlannedShard(
            shard_uri(place, name),
            tuple(_planned(entry, by_etag) for entry in entries),
        )
        for name, entries in plan.shards[task::num_tasks]
    ]


def _planned(entry: CatalogEntry, by_etag: bool) -> Planned:
    once = replace(entry, digest=entry.digest.removesuffix(MIRRORED))
    mirrored = once.digest != entry.digest
    return Planned(entry.id, entry.uri, entry.digest, once.content, entry.bytes, mirrored, by_etag, entry.view)


def _mirrored(entry: CatalogEntry) -> CatalogEntry:
    return replace(entry, digest=entry.digest + MIRRORED)


def shard_uri(place: str, name: str) -> str:
    """URI of a shard."""
    return storage.join(place, "shards", name + manifest.SHARD_ENDING)


@dataclass(frozen=True)
class Merged:
    """The videos of a dataset with their latents, the shards that hold them and their captions, and what was left out.

    `null_text` is shard, offset and digest of the empty caption's embedding.
    """

    videos: list[EncodedVideo]
    shards: list[manifest.Shard]
    rejects: list[manifest.Reject]
    null_text: tuple[Any, ...] | None = None


def merge(
    catalog: Catalog,
    done: Published,
    min_frames: int,
    texts: captions.Embedded | None = None,
    mirrored: bool = False,
) -> Merged:
    """Bring a dataset's state together with what is published; `texts` where its captions are embedded.

    Raises:
        LatteError: some content has not been encoded yet.
    """
    missing = [entry.id for entry in contents(catalog, mirrored) if entry.digest not in done.known]
    if missing:
        raise LatteError(f"encode: {len(missing)} videos are not encoded yet, for example {missing[0]!r}; run again")
    rejects = list(catalog.rejects)
    used: dict[manifest.Shard, int] = {}
    videos = []

    def number_of(shard: manifest.Shard) -> int:
        return used.setdefault(shard, len(used))

    def place_of(shard: manifest.Shard, offset: int, digest: str | None) -> tuple[Any, ...]:
        return (number_of(shard), offset) if digest is None else (number_of(shard), offset, digest)

    def place_of_text(caption: str | None) -> tuple[Any, ...] | None:
        if texts is None or caption is None:
            return None
        name, offset, digest = texts.find(caption)
        return place_of(texts.shards[name], offset, digest)

    for entry in catalog.entries:
        known = done.known[entry.digest]
        copy = done.known[entry.digest + MIRRORED] if mirrored else None
        reason = _problem(known, copy, min_frames)
        if reason is not None:
            rejects.append(manifest.Reject(item=entry.id, reason=reason))
            continue
        videos.append(
            EncodedVideo(
                id=entry.id,
                label=entry.label,
                num_frames=known.num_frames,
                uri=entry.uri,
                shard=number_of(done.shards[known.shard]),
                offset=known.offset,
                mirrored=None if copy is None else place_of(done.shards[copy.shard], copy.offset, copy.digests),
                fps=known.fps,
                caption=entry.caption,
                text=place_of_text(entry.caption),
                digests=known.digests,
                content=entry.content,
                view=None if entry.view is None else entry.view.row,
            )
        )
    rejects.sort(key=lambda reject: (reject.item, reject.reason))
    null_text = place_of_text(captions.EMPTY)
    return Merged(videos, list(used), rejects, null_text)


def _problem(known: Known, copy: Known | None, min_frames: int) -> str | None:
    """Why a video is left out; one without its mirrored copy is, so that all videos of a dataset are alike."""
    if known.reject is not None:
        return known.reject
    if known.num_frames < min_frames:
        return f"too short: {known.num_frames} frames, min_frames is {min_frames}"
    if copy is None:
        return None
    if copy.reject is not None:
        return f"mirrored copy: {copy.reject}"
    return None if copy.num_frames == known.num_frames else f"its content changed while it was encoded{RUN_AGAIN}"


def write_index(
    merged: Merged, place: str, uri: str, row_shape: Sequence[int], dtype: str, root: str
) -> manifest.Shard:
    """Publish what `LatentClips` reads: every video and where its frames and its caption's embedding lie.

    Args:
        merged: the videos.
        place: of the latents.
        uri: folder that the index goes to.
        row_shape: (2, C, h, w), of one frame's mean and log-variance.
        dtype: of latents and embeddings.
        root: that all of it lies under.
    """
    always = [known.name for known in fields(EncodedVideo) if known.default is MISSING]
    others = [known.name for known in fields(EncodedVideo) if known.default is not MISSING]
    value: dict[str, Any] = {
        "dtype": dtype,
        "row_shape": list(row_shape),
        "shards": [shard.uri.removeprefix(place + "/") for shard in merged.shards],
        "videos": [
            {name: getattr(video, name) for name in always}
            | {name: known for name in others if (known := getattr(video, name)) is not None}
            for video in merged.videos
        ],
    }
    if merged.null_text is not None:
        value["text"] = {"shape": TEXT_SHAPE, "null": merged.null_text}
    ref = publishing.write_json(storage.join(uri, INDEX), value, root, compact=True)
    return manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256, items=len(merged.videos))
