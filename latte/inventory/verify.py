"""Whether what lies under a root is still what was written: every document, and every object against its SHA-256.

What is damaged is told with what would make it again. Repairing puts back what the root has another copy of. It removes
the rest, together with the record that vouches for it, so that the next run of that step finds it missing and makes it
again; but promoted weights and entries of the registry, which no step makes again, are left to a person.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pydantic

from latte import storage
from latte.errors import DamagedError, NotThereError, UnreadableError, UserError
from latte.inventory import FOLDERS
from latte.progress import progress
from latte.storage import documents, manifest, registry
from latte.training.resume import COMMIT, LOG, METRICS

_THREADS = 4
_PART_BYTES = 8 << 20
# Large, so they are looked at by the SHA-256 that a manifest has of them, as other objects are.
_RECORDED_DOCUMENTS = ("/index.json", "/plan.json", f"/{manifest.ITEMS}")
_MADE_BY = {
    "weights": "latte convert, from the published file",
    "datasets": "latte encode",
    "curation": "latte encode",
    "runs": "latte train",
    "videos": "latte sample",
    "texts": "latte sample",
    "features": "latte score",
    "scores": "latte score",
    "reports": "latte report",
    "launched": "the step that was launched",
    "used": "the next step that uses it",
}
_BY_HAND = "nothing here: put a copy back"


@dataclass(frozen=True)
class Damage:
    """Something that is not what it was.

    Attributes:
        uri: an object or a document.
        what: what is wrong with it.
        remedy: what makes it again.
        done: what repairing did about it; "" where nothing was done.
    """

    uri: str
    what: str
    remedy: str
    done: str = ""


@dataclass(frozen=True)
class Found:
    """Objects that were looked at, and those of them that are damaged.

    Attributes:
        documents: JSON documents that were read.
        objects: objects that were compared with their SHA-256.
        bytes: of these objects.
        unrecorded: objects that nothing records a SHA-256 of, for example TensorBoard files.
        damages: the damaged ones, by URI.
    """

    documents: int
    objects: int
    bytes: int
    unrecorded: int
    damages: tuple[Damage, ...]

    @property
    def left(self) -> int:
        """Number of damages that are there still."""
        return sum(not damage.done for damage in self.damages)


@dataclass(frozen=True)
class _Record:
    """Record of an object in a document."""

    document: str
    sha256: str
    bytes: int | None

    @property
    def vouches(self) -> bool:
        """Whether the document was written right after the object, to say that it is whole."""
        return self.document.endswith((manifest.RECORD_SUFFIX, "/" + COMMIT))


@dataclass
class _Root:
    """Objects under a root, and what its documents say of them."""

    uri: str
    listed: dict[str, storage.ObjectStat]
    values: dict[str, Any] = field(default_factory=dict)
    records: dict[str, list[_Record]] = field(default_factory=dict)
    sound: dict[str, str] = field(default_factory=dict)  # SHA-256: an object that has it

    def remedy(self, uri: str) -> str:
        names = uri.removeprefix(self.uri + "/").split("/")
        if names[0] != "registry":
            return _MADE_BY.get(names[0], _BY_HAND)
        if "versions" in names:
            return "a run that has these weights still, or a copy of yours"
        return "the decisions and the history, where they know it" if names[2] != "decisions" else "nothing needs it"


def verify(root: str, repair: bool = False) -> Found:
    """Read all that lies under a root; not while a step writes there.

    Args:
        root: s3://bucket/prefix, file:///dir or the path of a folder.
        repair: remove what is damaged, or put it back.

    Raises:
        UserError: nothing lies there, or it is no root.
        StorageError: the store does not answer.
    """
    uri = storage.root_uri(root).rstrip("/")
    known = _Root(uri, storage.list_objects(uri))
    if not any(each.removeprefix(uri + "/").split("/")[0] in FOLDERS for each in known.listed):
        raise UserError(f"{root}: not a root: none of {', '.join(FOLDERS)} is in it")
    damages = [*_read_documents(known)]
    _collect(known)
    recorded = {each: known.records[each] for each in known.listed if each in known.records}
    total = sum(known.listed[each].bytes for each in recorded)
    bar = progress(total=total, desc="verify", unit="B", scaled=True)
    with bar, ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
        for found in pool.map(lambda each: _compare(known, each, bar.update), recorded):
            damages += found
    damages += [*_missing(known), *_pointers(known)]
    damages = list({damage.uri: damage for damage in reversed(damages)}.values())
    damages.sort(key=lambda damage: damage.uri)
    if repair:
        damages = [replace(damage, done=_repair(known, damage)) for damage in damages]
    unrecorded = len(known.listed) - len(recorded) - len(known.values)
    return Found(len(known.values), len(recorded), total, max(0, unrecorded), tuple(damages))


def _read_documents(known: _Root) -> Iterator[Damage]:
    uris = [each for each in known.listed if each.endswith(".json") and not each.endswith(_RECORDED_DOCUMENTS)]

    def read(uri: str) -> Any:
        try:
            return storage.read_json(uri)
        except (DamagedError, UnreadableError) as error:
            return error

    label = "verify: documents"
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="documents") as pool:
        answers = progress(pool.map(read, uris), total=len(uris), desc=label, unit="document")
        for uri, value in zip(uris, answers, strict=True):
            if isinstance(value, DamagedError | UnreadableError):
                what = value.what if isinstance(value, DamagedError) else str(value)
                yield Damage(uri, what.removeprefix(f"{uri}: "), known.remedy(uri))
            else:
                known.values[uri] = value
                if (problem := _not_valid(uri, value)) is not None:
                    yield Damage(uri, problem, known.remedy(uri))


def _not_valid(uri: str, value: Any) -> str | None:
    """Fault of a manifest or an entry of a version that wrote no digests."""
    model: type[pydantic.BaseModel] | None = None
    if _is_manifest(uri):
        model = manifest.Manifest
    elif "/registry/" in uri and (uri.endswith("/current.json") or "/history/" in uri):
        model = registry.HistoryEntry
    try:
        if model is not None:
            model.model_validate(value)
    except pydantic.ValidationError as error:
        return f"not what it is taken for: {error.errors()[0]['msg']}"
    return None


def _collect(known: _Root) -> None:
    """Records that the documents have of the objects below the root."""
    for document, value in known.values.items():
        pieces = [value]
        while pieces:
            piece = pieces.pop()
            if isinstance(piece, dict):
                uri, sha256 = piece.get("uri"), piece.get("sha256")
                if isinstance(uri, str) and isinstance(sha256, str) and uri.startswith(known.uri + "/"):
                    known.records.setdefault(uri, []).append(_Record(document, sha256, piece.get("bytes")))
                pieces += piece.values()
            elif isinstance(piece, list):
                pieces += piece
    _collect_logs(known)


def _collect_logs(known: _Root) -> None:
    """Records of the logs of finished runs: such a log is what the last checkpoint kept of it."""
    newest: dict[str, dict[str, Any]] = {}  # by the run's folder
    for document, value in known.values.items():
        if document.endswith("/" + COMMIT) and isinstance(value, dict) and isinstance(value.get("step"), int):
            folder = document.rpartition("/checkpoints/")[0]
            newest[folder] = max(newest.get(folder, value), value, key=lambda commit: commit["step"])
    for folder, commit in newest.items():
        document = storage.join(folder, manifest.NAME)
        log = commit.get("shards", {}).get(LOG)
        if log and known.values.get(document, {}).get("metrics", {}).get("step") == commit["step"]:
            record = _Record(document, log["sha256"], log["bytes"])
            known.records.setdefault(storage.join(folder, METRICS), []).append(record)


def _compare(known: _Root, uri: str, tell: Callable[[int], Any]) -> list[Damage]:
    """Whether an object is what its documents say; those that say otherwise than the rest are of what it was before."""
    records = known.records[uri]
    wanted = _wanted(records)
    size = known.listed[uri].bytes
    try:
        sha256 = _sha256(uri, size, tell)
        if sha256 not in wanted:
            sha256 = _sha256(uri, size, lambda _: None)  # what was damaged on its way is whole the second time
    except NotThereError:
        return [Damage(uri, "vanished while it was looked at", known.remedy(uri))]
    if sha256 not in wanted:
        sizes = {record.bytes for record in records if record.sha256 in wanted}
        what = "another SHA-256 than was recorded" if size in sizes else f"{size} bytes, not {_numbers(sizes)}"
        return [Damage(uri, what, known.remedy(uri))]
    known.sound[sha256] = uri
    older = sorted({each.document for each in records if each.sha256 != sha256 and _is_manifest(each.document)})
    what = f"names what {uri.removeprefix(known.uri + '/')} was before it was made anew"
    return [Damage(document, what, known.remedy(document)) for document in older]


def _wanted(records: list[_Record]) -> set[str]:
    """The SHA-256 that an object may have: what vouches for it was written last."""
    return {record.sha256 for record in records if record.vouches} or {record.sha256 for record in records}


def _is_manifest(document: str) -> bool:
    """Whether a document says that a place is finished."""
    return document.endswith("/" + manifest.NAME)


def _sha256(uri: str, size: int, tell: Callable[[int], Any]) -> str:
    content = hashlib.sha256()
    for start in range(0, size, _PART_BYTES):
        data = storage.read_bytes(uri, start, min(_PART_BYTES, size - start))
        content.update(data)
        tell(len(data))
    return content.hexdigest()


def _numbers(sizes: set[int | None]) -> str:
    return " or ".join(str(size) for size in sorted(size for size in sizes if size is not None))


def _missing(known: _Root) -> Iterator[Damage]:
    """Objects of finished places that are gone."""
    for uri, records in known.records.items():
        holders = [record.document for record in records if _is_manifest(record.document)]
        if uri not in known.listed and any(not _has_gone_on(known, holder) for holder in holders):
            yield Damage(uri, "missing", known.remedy(uri))


def _has_gone_on(known: _Root, holder: str) -> bool:
    """Whether a training run is at work, or was stopped, beyond what its manifest says: it drops old checkpoints."""
    made = known.values[holder]
    folder = storage.join(holder.rpartition("/")[0], "checkpoints")
    steps = [value["step"] for uri, value in known.values.items() if uri.startswith(folder + "/") and "step" in value]
    return made["kind"] == "checkpoint" and max(steps, default=0) > made["metrics"].get("step", 0)


def _pointers(known: _Root) -> Iterator[Damage]:
    """Pointers of the registry that are gone although there is a history."""
    start = storage.join(known.uri, "registry") + "/"
    for model in sorted({uri.removeprefix(start).split("/")[0] for uri in known.listed if uri.startswith(start)}):
        pointer = storage.join(start, model, "current.json")
        if pointer not in known.listed and any(uri.startswith(f"{start}{model}/history/") for uri in known.listed):
            yield Damage(pointer, "missing although there is a history", known.remedy(pointer))


def _repair(known: _Root, damage: Damage) -> str:
    """Put back or remove what is damaged; what was done, in words."""
    uri = damage.uri
    names = uri.removeprefix(known.uri + "/").split("/")
    if names[0] == "registry" and (names[2] == "current.json" or names[2] == "history"):
        return _put_entry_back(known, uri, names[1], names[-1])
    if names[0] == "registry" and "versions" in names and _is_manifest(uri):
        return _put_version_back(known, uri, names[1])
    records = known.records.get(uri, [])
    copy = next((known.sound[sha256] for sha256 in _wanted(records) if sha256 in known.sound), None)
    if copy is not None:
        with storage.as_local_file(copy) as path:
            storage.upload(path, uri)
        return f"put back from {copy.removeprefix(known.uri + '/')}"
    if names[0] == "registry" and records:
        return ""
    for record in records:
        if record.vouches:
            storage.delete(record.document)
    storage.delete(uri)
    return "removed"


def _put_version_back(known: _Root, uri: str, model: str) -> str:
    """Write the manifest of promoted weights again from that of the run that they are a copy of."""
    for document, value in known.values.items():
        if not _is_manifest(document) or value.get("kind") != "checkpoint" or "/registry/" in document:
            continue
        run = manifest.Manifest.model_validate(value)
        for weights in run.shards:
            fingerprint = manifest.fingerprint("version", run.fingerprint, weights.sha256)
            if uri.endswith(f"/{fingerprint[:16]}/{manifest.NAME}"):
                storage.delete(uri)
                registry.keep_checkpoint(known.uri, model, run, weights)
                return f"put back from {document.removeprefix(known.uri + '/')}"
    return ""


def _put_entry_back(known: _Root, uri: str, model: str, name: str) -> str:
    """Write an entry of the registry again from a decision or the history; of the pointer the newest that is known."""
    folder = registry.place(known.uri, model)
    entries: dict[int, registry.HistoryEntry] = {}
    for document, value in known.values.items():
        if not document.startswith(folder + "/"):
            continue
        said = value.get("config", {}).get("current") if value.get("kind") == "promotion" else value
        try:
            entry = registry.HistoryEntry.model_validate(said)
        except pydantic.ValidationError:
            continue
        if entry.number and document != uri:
            entries[entry.number] = entry
    number = max(entries, default=0) if name == "current.json" else int(name.removesuffix(".json"))
    if number not in entries:
        return ""
    storage.write_bytes(uri, documents.encode(uri, entries[number].model_dump(), known.uri))
    return f"put back: entry {number}" + (", the newest that is known" if name == "current.json" else "")
