"""Needs of what lies under a root: a graph over manifests, from what has to stay to all that it was made from.

A place needs every place that its documents name, by URI or by digest: a score its set and its features, a set its
checkpoint, a run its latents and its start, all of them the autoencoder's and the detector's weights. What has to stay
is said by the registry (the promoted models and all that their history can go back to), by notes of use, by what
launched jobs were asked to do, by age, and by the user.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from latte import places, storage, texts, uses
from latte.errors import NotThereError, UnreadableError, UserError
from latte.inventory import FOLDERS
from latte.storage import manifest, removal

# Kinds of places that may be removed; a kind goes before those that it was made from.
REMOVABLE = (
    "reports", "scores", "features", "launched", "videos", "texts", "runs", "datasets", "weights", "uploads",
)  # fmt: skip
# Those of them that never have a manifest of their own.
BARE = ("launched", "texts", "uploads")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LARGE = (manifest.RECORD_SUFFIX, "/index.json", "/plan.json", f"/{manifest.ITEMS}")
_READ_THREADS = 16


@dataclass
class FoundPlace:
    """A place as it lies there.

    Attributes:
        name: of the place as seen from the root, for example videos/trained/9b40….
        objects: by URI, but for a mark of removal.
        marked: whether its removal was begun.
        documents: what was read of it: its manifest, or all documents of a place that has none.
    """

    name: str
    objects: dict[str, storage.ObjectStat] = field(default_factory=dict)
    marked: bool = False
    documents: list[Any] = field(default_factory=list)

    @property
    def folder(self) -> str:
        """The kind of the place by its folder, for example videos."""
        return self.name.split("/")[0]

    @property
    def label(self) -> str:
        """Folder and name, which all places of one name share, for example videos/trained."""
        return self.name.rpartition("/")[0]

    @property
    def bytes(self) -> int:
        """Size of all objects."""
        return sum(info.bytes for info in self.objects.values())

    def changed_s(self) -> float:
        """When anything in it was written last, in seconds since 1970; endless where the store does not tell."""
        times = [info.modified_s or float("inf") for info in self.objects.values()]
        return max(times, default=0.0)


@dataclass
class Root:
    """All places of a root.

    Attributes:
        uri: of the root.
        found: places by name.
        notes: notes of use by URI.
    """

    uri: str
    found: dict[str, FoundPlace]
    notes: dict[str, storage.ObjectStat]

    @cached_property
    def has_texts(self) -> bool:
        """Whether states of captions are kept in it."""
        return any(place.folder == texts.FOLDER for place in self.found.values())

    def finished(self, name: str) -> bool:
        """Whether a place has its manifest."""
        return storage.join(self.uri, name, manifest.NAME) in self.found[name].objects


def read(root: str) -> Root:
    """List a root and read the documents that tell what it needs.

    Raises:
        UserError: it is no root, or one of another version.
        DamagedError: a manifest does not have the digest that it carries.
        StorageError: the store does not answer.
    """
    uri = storage.root_uri(root).rstrip("/")
    listed = storage.list_objects(uri)
    known = Root(uri, {}, {})
    for each, info in listed.items():
        name = places.name_of(uri, each)
        if name is None:
            if each.startswith(storage.join(uri, uses.FOLDER) + "/"):
                known.notes[each] = info
            continue
        place = known.found.setdefault(name, FoundPlace(name))
        if each == storage.join(uri, name, removal.MARK):
            place.marked = True
        else:
            place.objects[each] = info
    if not any(place.folder in FOLDERS for place in known.found.values()):
        raise UserError(f"{root}: not a root: none of {', '.join(FOLDERS)} is in it")
    with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="documents") as pool:
        for place in known.found.values():
            documents = pool.map(_of_upload if place.folder == "uploads" else _read, list(_wanted(known, place)))
            place.documents = [each for each in documents if each is not None]
    return known


def _wanted(known: Root, place: FoundPlace) -> Iterator[str]:
    """Documents that tell what a place needs."""
    if place.folder == "texts":
        return
    if place.folder == "uploads":
        # Of a folder that was uploaded any file may end in .json; what names anything is a manifest that goes with one.
        yield from (uri for uri in place.objects if uri.endswith("/" + manifest.NAME))
        return
    if known.finished(place.name) and place.folder != "registry":
        yield storage.join(known.uri, place.name, manifest.NAME)
        return
    for uri in place.objects:
        # A decision says what was looked at once; what is promoted and can be gone back to is in the history.
        is_decision = place.folder == "registry" and "/decisions/" in uri
        if uri.endswith(".json") and not uri.endswith(_LARGE) and not is_decision:
            yield uri


def _read(uri: str) -> Any:
    try:
        if uri.endswith("/" + manifest.NAME):
            return manifest.read(uri).model_dump()
        return storage.read_json(uri)
    except NotThereError:  # gone since it was listed
        return None


def _of_upload(uri: str) -> Any:
    """A manifest in an upload; a file of the user's may have the same name and be anything."""
    try:
        return _read(uri)
    except UnreadableError:
        return None


def needed(known: Root, roots: dict[str, str]) -> dict[str, str]:
    """All that these places need, and they themselves.

    Args:
        known: the root.
        roots: places that have to stay, and why.

    Returns:
        Places by name, and why each stays.
    """
    by_digest: dict[str, set[str]] = {}
    for place in known.found.values():
        for digest in _digests(place):
            by_digest.setdefault(digest, set()).add(place.name)
    kept = dict(roots)
    waiting = [name for name in roots if name in known.found]
    while waiting:
        name = waiting.pop()
        for other in named_in(known, known.found[name].documents, by_digest):
            if other not in kept:
                kept[other] = f"needed by {name}"
                waiting.append(other)
    return kept


def named_in(known: Root, documents: list[Any], by_digest: dict[str, set[str]] | None = None) -> set[str]:
    """Places of the root that documents name."""
    found: set[str] = set()
    pieces = list(documents)
    while pieces:
        piece = pieces.pop()
        if isinstance(piece, dict):
            pieces += piece.values()
        elif isinstance(piece, list):
            pieces += piece
        elif isinstance(piece, str):
            if _DIGEST.fullmatch(piece):
                found |= (by_digest or {}).get(piece, set())
                if known.has_texts:
                    found |= known.found.keys() & texts.places_of(piece)
            elif (name := places.name_of(known.uri, piece)) in known.found:
                found.add(str(name))
    return found


def _digests(place: FoundPlace) -> Iterator[str]:
    """Digests by which others name a place: of what made it, and of weights that were converted."""
    for document in place.documents:
        if isinstance(document, dict) and isinstance(document.get("kind"), str):
            yield str(document.get("fingerprint"))
            if document["kind"] == "weights":
                yield from (str(shard["sha256"]) for shard in document.get("shards", []))
