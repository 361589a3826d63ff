"""Planning an encoding job: what of a dataset is encoded already, and which shards the rest goes into.

Under a place (one autoencoder, one transform) content is encoded once, whatever the videos are called:

    shards/<fingerprint of its contents>.safetensors (+ record)
    catalogs/<fingerprint of the dataset's state>/plan.json, index.json
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

from latte import manifest, storage
from latte.catalog import Catalog, Entry
from latte.encoding import Planned, PlannedShard
from latte.errors import LatteError
from latte.latents import INDEX, EncodedVideo

PLAN = "plan.json"
_READ_THREADS = 8
_SHARD_ENDING = ".safetensors"


@dataclass(frozen=True)
class Known:
    """Content that has been looked at: where its latents are, or why it was rejected."""

    shard: str
    num_frames: int = 0
    offset: int = 0
    fps: float | None = None
    reject: str | None = None


@dataclass(frozen=True)
class Published:
    """The shards of a place by name, and what each content digest became."""

    shards: dict[str, manifest.Shard]
    known: dict[str, Known]


@dataclass(frozen=True)
class Plan:
    """A dataset's state and the shards that its new content goes into, each a list of entries."""

    catalog: Catalog
    shards: list[tuple[str, list[Entry]]]


def published(place: str) -> Published:
    """Read the records of a place; a record whose object is gone or has another size does not count.

    Raises:
        StorageError: the store does not answer.
    """
    listed = storage.list_objects(storage.join(place, "shards"))
    ending = _SHARD_ENDING + manifest.RECORD_SUFFIX
    uris = sorted(uri for uri in listed if uri.endswith(ending))
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        records = list(pool.map(storage.read_json, uris))
    shards: dict[str, manifest.Shard] = {}
    known: dict[str, Known] = {}
    for record in records:
        shard = manifest.Shard.model_validate(record["shard"])
        info = listed.get(shard.uri)
        if info is None or info.bytes != shard.bytes:
            continue
        name = _name(shard.uri)
        shards[name] = shard
        for item in record["videos"]:
            known[item["digest"]] = Known(name, item["num_frames"], item["offset"], item["fps"])
        for item in record["rejects"]:
            known.setdefault(item["digest"], Known(name, reject=item["reason"]))
    return Published(shards, known)


def make(catalog: Catalog, known: Iterable[str], shard_bytes: int, num_tasks: int) -> Plan:
    """Group the contents that are not known, each once, into shards of about `shard_bytes` of source video.

    Shards are smaller where there would be fewer of them than tasks.
    """
    seen = set(known)
    new: list[Entry] = []
    for entry in catalog.entries:
        if entry.digest not in seen:
            seen.add(entry.digest)
            new.append(entry)
    total = sum(entry.bytes for entry in new)
    target = max(1, min(shard_bytes, -(-total // num_tasks)))
    # An entry goes where its middle lies: shards end up alike, and none is empty of bytes for a rounding.
    before = itertools.accumulate((entry.bytes for entry in new), initial=0)
    numbered = [((start + entry.bytes // 2) // target, entry) for start, entry in zip(before, new, strict=False)]
    shards = []
    for _, group in itertools.groupby(numbered, key=lambda pair: pair[0]):
        entries = [entry for _, entry in group]
        shards.append((manifest.fingerprint("shard", [entry.digest for entry in entries])[:16], entries))
    return Plan(catalog, shards)


def write(plan: Plan, uri: str) -> manifest.Shard:
    """Publish a plan as one object."""
    numbers = {id(entry): number for number, entry in enumerate(plan.catalog.entries)}
    value = {
        "classes": plan.catalog.classes,
        "entries": [[e.id, e.uri, e.digest, e.label, e.caption, e.bytes] for e in plan.catalog.entries],
        "rejects": [[reject.item, reject.reason] for reject in plan.catalog.rejects],
        "shards": [[name, [numbers[id(entry)] for entry in entries]] for name, entries in plan.shards],
    }
    ref = _write_compact(uri, value)
    return manifest.Shard(uri=uri, bytes=ref.bytes, sha256=ref.sha256, items=len(plan.shards))


def read(uri: str) -> Plan:
    """Read a plan that `write` wrote.

    Raises:
        UserError: there is none.
    """
    value = storage.read_json(uri)
    entries = [Entry(*row) for row in value["entries"]]
    rejects = [manifest.Reject(item=item, reason=reason) for item, reason in value["rejects"]]
    shards = [(name, [entries[number] for number in numbers]) for name, numbers in value["shards"]]
    return Plan(Catalog(entries, value["classes"], rejects), shards)


def fits(plan: Plan, catalog: Catalog, known: Mapping[str, Known]) -> bool:
    """Whether a plan made earlier covers all that the dataset still lacks."""
    covered = {entry.digest for _, entries in plan.shards for entry in entries}
    return plan.catalog == catalog and all(e.digest in covered or e.digest in known for e in catalog.entries)


def task_shards(plan: Plan, place: str, task: int, num_tasks: int, hashed: bool) -> list[PlannedShard]:
    """The shards of one task: `task`, `task + num_tasks`, …; `hashed`: digests are SHA-256 of the files."""
    return [
        PlannedShard(
            shard_uri(place, name),
            tuple(Planned(e.id, e.uri, e.digest, e.digest if hashed else None, e.bytes) for e in entries),
        )
        for name, entries in plan.shards[task::num_tasks]
    ]


def shard_uri(place: str, name: str) -> str:
    """Where a shard lies."""
    return storage.join(place, "shards", name + _SHARD_ENDING)


@dataclass(frozen=True)
class Merged:
    """The videos of a dataset with their latents, the shards that hold them, and what was left out."""

    videos: list[EncodedVideo]
    shards: list[manifest.Shard]
    rejects: list[manifest.Reject]


def merge(catalog: Catalog, done: Published, min_frames: int) -> Merged:
    """Bring a dataset's state together with what is published.

    Raises:
        LatteError: some content has not been encoded yet.
    """
    missing = [entry.id for entry in catalog.entries if entry.digest not in done.known]
    if missing:
        raise LatteError(f"encode: {len(missing)} videos are not encoded yet, for example {missing[0]!r}; run again")
    rejects = list(catalog.rejects)
    used: dict[str, int] = {}
    videos = []
    for entry in catalog.entries:
        known = done.known[entry.digest]
        reason = known.reject
        if reason is None and known.num_frames < min_frames:
            reason = f"too short: {known.num_frames} frames, min_frames is {min_frames}"
        if reason is not None:
            rejects.append(manifest.Reject(item=entry.id, reason=reason))
            continue
        number = used.setdefault(known.shard, len(used))
        videos.append(
            EncodedVideo(
                entry.id, entry.label, known.num_frames, entry.uri, number, known.offset, known.fps, entry.caption
            )
        )
    rejects.sort(key=lambda reject: (reject.item, reject.reason))
    return Merged(videos, [done.shards[name] for name in used], rejects)


def write_index(merged: Merged, uri: str, row_shape: Sequence[int], dtype: str) -> manifest.Shard:
    """Publish what `latte.latents.LatentClips` reads: every video and where its frames lie."""
    names = [field.name for field in fields(EncodedVideo)]
    value: dict[str, Any] = {
        "dtype": dtype,
        "row_shape": list(row_shape),
        "shards": [f"shards/{_name(shard.uri)}{_SHARD_ENDING}" for shard in merged.shards],
        "videos": [{name: getattr(video, name) for name in names} for video in merged.videos],
    }
    ref = _write_compact(storage.join(uri, INDEX), value)
    return manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256, items=len(merged.videos))


def _write_compact(uri: str, value: dict[str, Any]) -> storage.Ref:
    """Put JSON without layout: laying out a million entries takes six times longer than encoding them."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return storage.keep_bytes(uri, text.encode())


def _name(uri: str) -> str:
    return uri.rsplit("/", 1)[1].removesuffix(_SHARD_ENDING)
