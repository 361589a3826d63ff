"""The one contract between steps: a small JSON file that says what a step wrote, shard by shard, with checksums.

Heavy data goes straight to object storage. A shard is published whole or not at all: the data object first, its record
(`<shard>.record.json`) last, and only what has a record counts.
"""

import functools
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import pydantic

from latte import __version__, storage
from latte.config import Config
from latte.errors import DamagedError, NotThereError, UnreadableError, UserError
from latte.storage import documents, removal
from latte.terminal import shown

NAME = "manifest.json"
# Of converted weights that lie in a file of the user's, under no root.
BESIDE_SUFFIX = ".manifest.json"
RECORD_SUFFIX = ".record.json"
ITEMS = "items.json"
SHARD_ENDING = ".safetensors"
_READ_THREADS = 8
# A listing tells of a thousand objects in the time of one look.
_LOOKED_AT_SINGLY = 8


# What steps write manifests of; those of plans, parts and lookups are for the tasks of one run.
Kind = Literal[
    "weights", "latents", "checkpoint", "video_set", "features", "score", "promotion", "report",
    "encode_plan", "encode_part", "sample_plan", "sample_part", "promoted", "hello", "notice",
]  # fmt: skip


class Shard(Config):
    """An object that a step published, and what it must contain."""

    uri: str
    bytes: int
    sha256: str
    items: int = 1


# What the reason of a reject ends with where another run may take the video in.
RUN_AGAIN = "; run again"


class Reject(Config):
    """An input item that could not be used, and why."""

    item: str
    reason: str


class Manifest(Config):
    """Result of a step.

    Attributes:
        kind: what it is of.
        name: the user's name for it.
        uri: the folder under the root that holds it; of weights in a file of the user's, that file.
        fingerprint: SHA-256 over what made it (inputs' digests and the settings that change the output).
        shards: the published objects, in order.
        counts: how many of what, for example videos, frames.
        rejects: input items that were left out, with reasons.
        inputs: digests or URIs of what it was made from, by role.
        config: the settings that made it, and facts for later steps (`latte.facts`).
        metrics: numbers worth seeing, for example the last loss.
        seconds: how long the work took when it was done (not when it was found done).
    """

    kind: Kind
    name: str
    uri: str
    fingerprint: str
    shards: list[Shard] = []
    counts: dict[str, int] = {}
    rejects: list[Reject] = []
    inputs: dict[str, str] = {}
    config: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    seconds: float = 0.0
    code_version: str = __version__

    @property
    def file(self) -> str:
        """URI of the manifest in its place; weights that are a file of the user's have theirs beside that file."""
        if self.kind == "weights" and not self.uri.endswith(f"/{self.fingerprint[:16]}"):
            return self.weights_file().uri + BESIDE_SUFFIX
        return storage.join(self.uri, NAME)

    def shard(self, ending: str) -> Shard:
        """The one shard whose URI ends so.

        Raises:
            UserError: there is none, or there are several.
        """
        found = [shard for shard in self.shards if shard.uri.endswith(ending)]
        if len(found) != 1:
            raise UserError(f"{self.kind} manifest of {self.uri}: expected one object *{ending}, found {len(found)}")
        return found[0]

    def weights_file(self) -> Shard:
        """The one object of converted weights: model.safetensors in a place, or a file of the user's name.

        Raises:
            UserError: there is none, or there are several.
        """
        return self.shard("")

    def summary(self) -> dict[str, Any]:
        """Summary for the KFP UI: flat and small."""
        return {
            "kind": self.kind,
            "name": self.name,
            "uri": self.uri,
            "fingerprint": self.fingerprint[:16],
            "shards": len(self.shards),
            "bytes": sum(shard.bytes for shard in self.shards),
            "rejects": len(self.rejects),
            **self.counts,
            **{key: value for key, value in self.metrics.items() if isinstance(value, int | float | str)},
        }


# A number, but not that of a name such as float16.
_COUNTED = re.compile(r"(?<![0-9])(?<![A-Za-z]{2})[0-9]+")


def reject_rows(rejects: Sequence[Reject], limit: int = 20) -> list[str]:
    """Rejects as the lines of a table: how many for each reason, whatever its numbers, most first, with an example."""
    alike = [(_COUNTED.sub("…", reject.reason), reject) for reject in rejects]
    reasons = Counter(reason for reason, _ in alike)
    examples = dict(reversed(alike))
    told = [
        (count, shown(reason if count > 1 else examples[reason].reason), examples[reason].item)
        for reason, count in reasons.most_common(limit)
    ]
    rows = [f"  {count:>7}  {reason}  (for example {item!r})" for count, reason, item in told]
    left_out = len(reasons) - len(rows)
    return [*rows, f"  and {left_out} other reasons; see the manifest"] if left_out else rows


def write(manifest: Manifest, uri: str | Path, root: str | None = None, put: storage.Put = storage.keep_bytes) -> None:
    """Write a manifest to a URI or a local path; equal manifests are equal bytes.

    Args:
        manifest: what is written.
        uri: where to.
        root: that `uri` lies under; None writes absolute URIs, so that the file is of use wherever it goes.
        put: what puts the bytes there.
    """
    storage.write_json(str(uri), manifest.model_dump(), root, put=put)


def located(place: str | Path) -> str:
    """The URI of the manifest that a person means, by its URI or path, or by those of what it is of.

    Args:
        place: the manifest, the folder that holds it, or a file of weights that it lies beside.

    Raises:
        UserError: a folder that holds no manifest, or a path that cannot be.
    """
    uri = storage.from_path(place).rstrip("/")
    if uri.endswith(".json"):
        return uri
    inside = storage.join(uri, NAME)
    # The convert step prints where it wrote the weights.
    beside = [storage.join(uri.rpartition("/")[0], NAME)] if uri.endswith("/model.safetensors") else []
    for candidate in (inside, uri + BESIDE_SUFFIX, *beside):
        if storage.exists(candidate):
            return candidate
    path = storage.path(uri)
    if path is None:
        return uri if storage.exists(uri) else inside
    if path.is_dir():
        raise UserError(f"{place}: no {NAME} in this folder; name a manifest, or the folder of what a step has made")
    return uri


def read(uri: str | Path, kind: Kind | None = None, key: str | None = None) -> Manifest:
    """Read a manifest.

    Args:
        uri: the manifest, or what it is of, as a URI or a local path; see `located`.
        kind: what it has to be of.
        key: the setting that names it, for the error.

    Raises:
        UserError: there is none, it is not a manifest, or it is of another kind than asked for.
        DamagedError: it does not have the digest that it carries.
    """
    name = f"{key} {uri}" if key else str(uri)
    try:
        place = located(uri)
        data = storage.read_bytes(place)
        manifest = Manifest.model_validate(storage.parse_json(data, place))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "literal_error" and isinstance(first["input"], str):
            known = ", ".join(get_args(Kind))
            raise UserError(f"{name}: a manifest of {first['input']}, this version knows {known}") from None
        # One that is as it was written is another version's, which nothing here may replace.
        kind_of_error = UserError if documents.is_sealed(data) else UnreadableError
        raise kind_of_error(f"{name}: not a manifest: {first['msg']}") from None
    except UserError as error:
        raise type(error)(f"{key} {error}" if key else str(error)) from None
    if kind is not None and manifest.kind != kind:
        raise UserError(f"{name}: a manifest of {manifest.kind}, expected {kind}")
    return manifest


def read_weights(uri: str | Path, kind: str | Sequence[str], key: str) -> Manifest:
    """Read the manifest of converted weights.

    Args:
        uri: the manifest, or the weights; see `located`.
        kind: of the model, one of `latte.kinds`, or those that will do; manifests that name none are of the first.
        key: the setting that names it, for the error.

    Raises:
        UserError: there is none, or it is of something else.
    """
    kinds = (kind,) if isinstance(kind, str) else kind
    weights = read(uri, "weights", key)
    if weights.config.get("kind", kinds[0]) not in kinds:
        raise UserError(f"{key} {uri}: weights of {weights.config['kind']}, expected {' or '.join(kinds)}")
    return weights


def find(uri: str, kind: Kind) -> Manifest | None:
    """The manifest of a finished place (`<uri>/manifest.json`), or None if it is missing or an object of it is gone.

    One that cannot be read counts as not there, and is told: what makes the place makes it again.
    """
    place = storage.join(uri, NAME)
    try:
        manifest = read(place, kind)
    except NotThereError:
        return None
    except (DamagedError, UnreadableError) as error:
        say_not_done(error)
        return None
    return manifest if are_whole(manifest.shards, uri) else None


def items(videos: Manifest) -> list[dict[str, Any]]:
    """The items.json of a set of generated videos that its manifest names; one that grew later has a list of its own.

    Raises:
        UserError: there is none.
        DamagedError: it is another.
    """
    named = [shard for shard in videos.shards if shard.uri.endswith(f"/{ITEMS}")]
    uri = named[0].uri if named else storage.join(videos.uri, ITEMS)
    data = storage.read_recorded(uri, named[0].sha256) if named else storage.read_bytes(uri)
    return list(storage.parse_json(data, uri))


def say_not_done(error: DamagedError | UnreadableError) -> None:
    """Tell, in a line on standard error, of a document that is passed over; once a process, however often it is met."""
    _say(f"{error.what if isinstance(error, DamagedError) else error}; it counts as not done and is made again")


@functools.lru_cache(maxsize=1024)
def _say(line: str) -> None:
    print(line, file=sys.stderr)


def finish(manifest: Manifest, root: str | None = None, put: storage.Put = storage.keep_bytes) -> Manifest:
    """Write `<uri>/manifest.json`: from now on the place counts as done.

    Args:
        manifest: of the place.
        root: that the place lies under; None where the manifest names nothing that lies beside the place.
        put: what puts the bytes there.

    Raises:
        StorageError: the store failed, or the place was removed meanwhile; then it does not count as done.
    """
    write(manifest, storage.join(manifest.uri, NAME), root or manifest.uri, put)
    check_kept(manifest)
    return manifest


def check_kept(made: Manifest) -> None:
    """Whether what a manifest names was not removed while it was written; if it was, the place is not done.

    Raises:
        RemovedError: it was.
    """
    try:
        # The mark first: it goes last, so whoever has removed the objects is found out by one of the two.
        removal.check(made.uri)
        if not are_whole(made.shards, made.uri):
            raise removal.RemovedError(f"{made.uri}: objects of it were removed meanwhile; run again")
    except removal.RemovedError:
        storage.delete(storage.join(made.uri, NAME))
        raise


def fingerprint(*parts: Any) -> str:
    """SHA-256, hexadecimal, over the canonical JSON of the parts (mappings sorted, configs as their values)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def publish_shard(source: str | Path | bytes, uri: str, items: int = 1, **facts: Any) -> Shard:
    """Publish data (a local file or bytes) under `uri`, then its record; `facts` go into the record."""
    if read_record(uri) is None and storage.exists(uri + RECORD_SUFFIX):
        # Its object is gone. Killed before the new record, it would vouch for other bytes of the same size.
        storage.delete(uri + RECORD_SUFFIX)
    ref = storage.write_bytes(uri, source) if isinstance(source, bytes) else storage.upload(source, uri)
    shard = Shard(uri=uri, bytes=ref.bytes, sha256=ref.sha256, items=items)
    write_record(shard, **facts)
    return shard


def write_record(shard: Shard, **facts: Any) -> None:
    """Write the record of a published object; `facts` go into it, and what lies beside the object moves with it."""
    record = {"shard": shard.model_dump(), **facts}
    storage.write_json(shard.uri + RECORD_SUFFIX, record, shard.uri.rpartition("/")[0])


def read_record(uri: str) -> dict[str, Any] | None:
    """The record of a shard, or None where there is no record or its object is gone or has another size.

    One that cannot be read counts as not there, and is told.
    """
    found = _record(uri + RECORD_SUFFIX)
    return found[1] if found is not None and is_whole(found[0]) else None


def _record(uri: str) -> tuple[Shard, dict[str, Any]] | None:
    try:
        record = storage.read_json(uri)
        return Shard.model_validate(record["shard"]), record
    except NotThereError:
        return None
    except (DamagedError, UnreadableError) as error:
        say_not_done(error)
    except (KeyError, TypeError, pydantic.ValidationError):
        say_not_done(UnreadableError(f"{uri}: not the record of an object"))
    return None


def published(uri: str) -> Shard | None:
    """The shard that a run published under `uri`, though it may have been killed before its manifest; else None."""
    record = read_record(uri)
    return None if record is None else Shard.model_validate(record["shard"])


def read_records(prefix: str) -> list[tuple[Shard, dict[str, Any]]]:
    """Every safetensors shard below a prefix with its record, but for those whose object is gone or has another size.

    Records that cannot be read are left out, and told.

    Raises:
        StorageError: the store does not answer.
    """
    listed = storage.list_objects(prefix)
    uris = sorted(uri for uri in listed if uri.endswith(SHARD_ENDING + RECORD_SUFFIX))
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        found = [each for each in pool.map(_record, uris) if each is not None]
    return [(s, record) for s, record in found if s.uri in listed and listed[s.uri].bytes == s.bytes]


def shard_name(uri: str) -> str:
    """Name of a safetensors shard, without its ending."""
    return uri.rsplit("/", 1)[1].removesuffix(SHARD_ENDING)


def is_whole(shard: Shard) -> bool:
    """Whether the object is there and has the recorded size (its checksum is verified by whoever reads it)."""
    info = storage.stat(shard.uri)
    return info is not None and info.bytes == shard.bytes


def are_whole(shards: Sequence[Shard], place: str) -> bool:
    """Whether all of these are, most of which lie below `place`: one listing instead of a request for each."""
    listed = storage.list_objects(place) if len(shards) > _LOOKED_AT_SINGLY else {}
    return all(listed[s.uri].bytes == s.bytes if s.uri in listed else is_whole(s) for s in shards)


def _plain(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump()
    raise TypeError(f"cannot fingerprint a {type(value).__name__}")
