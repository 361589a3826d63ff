"""The one contract between steps: a small JSON file that says what a step wrote, shard by shard, with checksums.

Heavy data goes straight to object storage. A shard is published whole or not at all: the data object first, its record
(`<shard>.record.json`) last, and only what has a record counts.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pydantic

from latte import __version__, storage
from latte.config import Config
from latte.errors import UserError

NAME = "manifest.json"
# Of converted weights that lie in a file of the user's, under no root.
BESIDE_SUFFIX = ".manifest.json"
RECORD_SUFFIX = ".record.json"
SHARD_ENDING = ".safetensors"
_READ_THREADS = 8


class Shard(Config):
    """An object that a step published, and what it must contain."""

    uri: str
    bytes: int
    sha256: str
    items: int = 1


class Reject(Config):
    """An input item that could not be used, and why."""

    item: str
    reason: str


class Manifest(Config):
    """What a step wrote.

    Attributes:
        kind: "weights", "latents", "checkpoint", "video_set", "score" or "report".
        name: the user's name for it.
        uri: the folder under the root that holds it; of weights in a file of the user's, that file.
        fingerprint: SHA-256 over what made it (inputs' digests and the settings that change the output).
        shards: the published objects, in order.
        counts: how many of what, for example videos, frames.
        rejects: input items that were left out, with reasons.
        inputs: digests or URIs of what it was made from, by role.
        config: the settings that made it.
        metrics: numbers worth seeing, for example the last loss.
        seconds: how long the work took when it was done (not when it was found done).
    """

    kind: str
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
        """What the KFP UI shows of it: flat and small."""
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
    rows = [
        f"  {count:>7}  {reason if count > 1 else examples[reason].reason}  (for example {examples[reason].item!r})"
        for reason, count in reasons.most_common(limit)
    ]
    left_out = len(reasons) - len(rows)
    return [*rows, f"  and {left_out} other reasons; see the manifest"] if left_out else rows


def write(manifest: Manifest, uri: str | Path, root: str | None = None) -> None:
    """Write a manifest to a URI or a local path; equal manifests are equal bytes.

    Args:
        manifest: what is written.
        uri: where to.
        root: that `uri` lies under; None writes absolute URIs, so that the file is of use wherever it goes.
    """
    storage.write_json(str(uri), manifest.model_dump(), root)


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
    if storage.is_s3(uri):
        return uri if storage.exists(uri) else inside
    if storage.local_path(uri).is_dir():
        raise UserError(f"{place}: no {NAME} in this folder; name a manifest, or the folder of what a step has made")
    return uri


def read(uri: str | Path, kind: str | None = None, key: str | None = None) -> Manifest:
    """Read a manifest.

    Args:
        uri: the manifest, or what it is of, as a URI or a local path; see `located`.
        kind: what it has to be of.
        key: the setting that names it, for the error.

    Raises:
        UserError: there is none, it is not a manifest, or it is of another kind than asked for.
    """
    name = f"{key} {uri}" if key else str(uri)
    try:
        manifest = Manifest.model_validate(storage.read_json(located(uri)))
    except pydantic.ValidationError as error:
        raise UserError(f"{name}: not a manifest: {error.errors()[0]['msg']}") from None
    except UserError as error:
        raise type(error)(f"{key} {error}" if key else str(error)) from None
    if kind is not None and manifest.kind != kind:
        raise UserError(f"{name}: a manifest of {manifest.kind}, expected {kind}")
    return manifest


def find(uri: str, kind: str) -> Manifest | None:
    """The manifest of a finished place (`<uri>/manifest.json`), or None if it is missing or an object of it is gone."""
    place = storage.join(uri, NAME)
    if not storage.exists(place):
        return None
    manifest = read(place, kind)
    return manifest if all(is_whole(shard) for shard in manifest.shards) else None


def finish(manifest: Manifest, root: str | None = None) -> Manifest:
    """Write `<uri>/manifest.json`: from now on the place counts as done.

    Args:
        manifest: of the place.
        root: that the place lies under; None where the manifest names nothing that lies beside the place.
    """
    write(manifest, storage.join(manifest.uri, NAME), root or manifest.uri)
    return manifest


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
    """The record of a shard, or None where there is no record or its object is gone or has another size."""
    try:
        record = storage.read_json(uri + RECORD_SUFFIX)
    except storage.NotThereError:
        return None
    return record if is_whole(Shard.model_validate(record["shard"])) else None


def published(uri: str) -> Shard | None:
    """The shard that a run published under `uri`, though it may have been killed before its manifest; else None."""
    record = read_record(uri)
    return None if record is None else Shard.model_validate(record["shard"])


def read_records(prefix: str) -> list[tuple[Shard, dict[str, Any]]]:
    """Every safetensors shard below a prefix with its record, but for those whose object is gone or has another size.

    Raises:
        StorageError: the store does not answer.
    """
    listed = storage.list_objects(prefix)
    uris = sorted(uri for uri in listed if uri.endswith(SHARD_ENDING + RECORD_SUFFIX))
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        records = list(pool.map(storage.read_json, uris))
    found = [(Shard.model_validate(record["shard"]), record) for record in records]
    return [(s, record) for s, record in found if s.uri in listed and listed[s.uri].bytes == s.bytes]


def shard_name(uri: str) -> str:
    """Name of a safetensors shard, without its ending."""
    return uri.rsplit("/", 1)[1].removesuffix(SHARD_ENDING)


def is_whole(shard: Shard) -> bool:
    """Whether the object is there and has the recorded size (its checksum is verified by whoever reads it)."""
    info = storage.stat(shard.uri)
    return info is not None and info.bytes == shard.bytes


def _plain(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump()
    raise TypeError(f"cannot fingerprint a {type(value).__name__}")
