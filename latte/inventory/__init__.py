"""Things under a root: runs, sets, scores, weights, datasets, reports and promoted models, by their manifests."""

import difflib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from latte import storage
from latte.errors import DamagedError, UnreadableError, UserError
from latte.facts import LatentsFacts, RunFacts, RunMetrics, ScoreFacts, VideoSetFacts, WeightsFacts
from latte.metrics.comparison import distance
from latte.storage import manifest, registry
from latte.storage.manifest import Manifest

# Folder under a root: what one of its places is.
FOLDERS = {
    "runs": "run",
    "videos": "set",
    "scores": "score",
    "reports": "report",
    "weights": "weights",
    "datasets": "dataset",
    "registry": "promoted",
}
_READ_THREADS = 16


@dataclass(frozen=True)
class Item:
    """One place under a root.

    Attributes:
        kind: "run", "set", "score", "report", "weights", "dataset" or "promoted".
        name: the user's.
        place: its folder as seen from the root, for example videos/trained/9b40….
        uri: the folder.
        bytes: of all objects in it.
        objects: how many.
        modified_s: when the manifest was written (of a place without one: its newest object), in seconds since 1970.
        finished: whether it has its manifest.
        made_by: what made it, in words.
        facts: the manifest's summary.
    """

    kind: str
    name: str
    place: str
    uri: str
    bytes: int
    objects: int
    modified_s: float
    finished: bool
    made_by: str
    facts: dict[str, Any]


def listing(root: str) -> list[Item]:
    """Every place under a root, kind by kind, the newest of a kind first.

    Raises:
        UserError: nothing lies there, or it is no root.
        StorageError: the store does not answer.
    """
    root = storage.root_uri(root).rstrip("/")
    listed = storage.list_objects(root)
    groups: dict[str, dict[str, storage.ObjectStat]] = {}
    for uri, info in listed.items():
        names = uri.removeprefix(root + "/").split("/")
        depth = 2 if names[0] == "registry" else 3
        if names[0] in FOLDERS and len(names) > depth:
            groups.setdefault("/".join(names[:depth]), {})[uri] = info
    if not groups:
        raise UserError(_why_nothing(root, list(listed)))
    with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="inventory") as pool:
        items = list(pool.map(lambda place: _item(root, place, groups[place]), groups))
    order = list(FOLDERS.values())
    return sorted(items, key=lambda item: (order.index(item.kind), -item.modified_s, item.place))


def find(items: Sequence[Item], name: str, where: str) -> list[Item]:
    """The places that a name means: trained, videos/trained or videos/trained/9b40; of a name the newest of each kind.

    Args:
        items: of a listing.
        name: of a place, with or without its folder and the beginning of its fingerprint.
        where: the root, for the error.

    Raises:
        UserError: there is none; names like it are told.
    """
    wanted = name.strip("/").removesuffix("/" + manifest.NAME)
    exact = [item for item in items if item.place.startswith(wanted) and wanted.count("/") == 2]
    if exact:
        return exact
    newest: dict[str, Item] = {}
    for item in items:
        named = item.place if item.kind == "promoted" else item.place.rpartition("/")[0]
        if wanted in (item.name, named):
            newest.setdefault(named, item)
    if newest:
        return list(newest.values())
    known = sorted({item.name for item in items} | {item.place.rpartition("/")[0] for item in items})
    near = difflib.get_close_matches(wanted, known, n=3) or known[:8]
    raise UserError(f"{name}: nothing of this name under {where}; there are {', '.join(near)}")


def detail(uri: str) -> tuple[Manifest, storage.ObjectStat]:
    """A manifest and when it was written.

    Args:
        uri: the manifest or its folder, as a URI or a local path.

    Raises:
        UserError: there is none.
    """
    place = manifest.located(uri)
    made = manifest.read(place)
    info = storage.stat(place)
    if info is None:
        raise UserError(f"{place}: no such object")
    return made, info


def _item(root: str, place: str, objects: dict[str, storage.ObjectStat]) -> Item:
    folder, name = place.split("/")[:2]
    uri = storage.join(root, place)
    key = storage.join(uri, "current.json" if folder == "registry" else manifest.NAME)
    made_by, facts, finished = "not finished", {}, key in objects
    try:
        if finished and folder == "registry":
            current, _ = registry.read_current(root, name)
            if current is not None:
                made_by = f"entry {current.number}: step {current.step}, {current.metric} {current.value:.4g}"
                facts = current.model_dump()
        elif finished:
            made = manifest.read(key)
            made_by, facts = told(made, root), made.summary()
    except (DamagedError, UnreadableError):
        made_by, finished = f"damaged; {DamagedError.REMEDY}", False
    newest = objects[key] if key in objects else max(objects.values(), key=lambda info: info.modified_s)
    return Item(
        kind=FOLDERS[folder],
        name=name,
        place=place,
        uri=uri,
        bytes=sum(info.bytes for info in objects.values()),
        objects=len(objects),
        modified_s=newest.modified_s,
        finished=finished,
        made_by=made_by,
        facts=facts,
    )


def told(made: Manifest, root: str) -> str:
    """Origin of a place in a few words; places under the root are said as seen from it."""

    def short(uri: Any) -> str:
        text = str(uri).removeprefix(root.rstrip("/") + "/").removesuffix("/" + manifest.NAME)
        return text if "://" not in text and not text.startswith("/") else text.rsplit("/", 1)[-1]

    words: dict[str, Callable[[], str]] = {
        "weights": lambda: _told_weights(made, short),
        "latents": lambda: _told_latents(made),
        "checkpoint": lambda: _told_run(made, short),
        "video_set": lambda: _told_videos(made, short),
        "score": lambda: _told_score(made, short),
        "report": lambda: str(made.metrics.get("verdict", "")),
    }
    try:
        return words[made.kind]()
    except (KeyError, UserError):  # a manifest of another version, a distance that is not finite
        return made.kind


def _told_weights(made: Manifest, short: Callable[[Any], str]) -> str:
    facts = WeightsFacts.of(made)
    if facts.random:
        return f"{facts.kind}, random, seed {facts.seed}"
    return f"{facts.kind} from {short(facts.source)}" if facts.source else made.kind


def _told_latents(made: Manifest) -> str:
    facts = LatentsFacts.of(made)
    return f"{made.counts['videos']} videos of {facts.videos}, {facts.image_size} pixels"


def _told_videos(made: Manifest, short: Callable[[Any], str]) -> str:
    facts = VideoSetFacts.of(made)
    step = f", step {facts.step}" if facts.step is not None else ""
    return f"{made.counts['videos']} clips by {short(facts.checkpoint)}{step}"


def _told_run(made: Manifest, short: Callable[[Any], str]) -> str:
    at = RunMetrics.of(made)
    loss = f", loss {at.loss:.4g}" if at.loss is not None else ""
    return f"step {at.step} on {short(RunFacts.of(made).train.latents)}{loss}"


def _told_score(made: Manifest, short: Callable[[Any], str]) -> str:
    name, value = distance(made)
    return f"{name} {value:.4g} of {short(ScoreFacts.of(made).videos)}"


def _why_nothing(root: str, uris: list[str]) -> str:
    folder = storage.path(root)
    if not uris and folder is not None and not folder.is_dir():
        return f"{root}: no such folder"
    if not uris:
        return f"{root}: nothing is there yet"
    if any(uri.endswith("/store/weed.log") for uri in uris) and folder is not None:
        return f"{root}: the folder of a run with a store of its own; latte-pipeline ls looks into it"
    for uri in uris:
        names = uri.removeprefix(root + "/").split("/")
        inner = next((number for number, name in enumerate(names[:-2]) if name in FOLDERS), 0)
        if inner:
            return f"{root}: not a root, but {storage.join(root, *names[:inner])} looks like one"
        if root.rpartition("/")[2] in FOLDERS or root.split("/")[-2] in FOLDERS:
            return f"{root}: not a root but a part of one; name the folder that holds {', '.join(FOLDERS)}"
    return f"{root}: not a root: none of {', '.join(FOLDERS)} is in it"
