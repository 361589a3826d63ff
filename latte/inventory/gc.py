"""Housekeeping: what may go from a root, and its removal, safe beside jobs at work and after a kill at any moment.

A place goes where nothing that stays needs it (`latte.inventory.needs`) and it is neither among the newest of its name
nor young. Removing takes three steps. All that is to go is marked; then the root is read once more, and what has come
into use meanwhile stays; then each place is looked at a last time and loses its manifest, its other documents, its
objects and, last, its mark. A killed removal leaves marks: the next one goes on with them.
"""

import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from latte import inventory, storage, uses
from latte.errors import NotThereError, UserError
from latte.inventory import needs
from latte.inventory.needs import FoundPlace, Root
from latte.progress import progress
from latte.storage import manifest, removal

# Of a place that has no manifest yet, and of uploads.
UNFINISHED_S = 7 * 86_400.0
_SECONDS = {"h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
_THREADS = 16


@dataclass(frozen=True)
class Keep:
    """Things that stay whether they are needed or not.

    Attributes:
        newest: how many finished places of each name.
        young_s: all that was written within so many seconds.
        names: places, with or without fingerprint and folder.
        others: places that something outside of the root needs, and why; folder/name stands for its newest place.
        knows_runs: whether `others` are all that schedules and running runs of a cluster name; without them nobody can
            say whether an upload is needed, and no step makes one again.
    """

    newest: int = 1
    young_s: float = uses.FRESH_S
    names: tuple[str, ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    knows_runs: bool = False


@dataclass(frozen=True)
class Going:
    """A place that may go.

    Attributes:
        kind: "run", "set", "score", "report", "weights" or "dataset", or its folder: "features", "texts", "launched",
            "uploads".
        place: its folder as seen from the root.
        bytes: of all its objects.
        objects: how many.
        age_s: since anything in it was written.
        why: it may go.
    """

    kind: str
    place: str
    bytes: int
    objects: int
    age_s: float
    why: str


@dataclass(frozen=True)
class Survey:
    """Plan of a collection: the places that may go, and those that stay.

    Attributes:
        going: in the order in which they would go.
        kept: places that stay, and why.
        kept_bytes: of all that stays.
    """

    going: tuple[Going, ...]
    kept: dict[str, str]
    kept_bytes: int


@dataclass(frozen=True)
class Removed:
    """Places that were removed, and those that came into use meanwhile and so have stayed."""

    gone: tuple[Going, ...]
    spared: tuple[Going, ...]


def keep(words: Sequence[str]) -> Keep:
    """Wishes of the user for what to keep.

    Args:
        words: each a number of places, an age (12h, 14d, 4w) or a place's name.

    Raises:
        UserError: none is given, or one cannot be meant.
    """
    if not words:
        raise UserError("say what stays: --keep 5 (newest of each name), --keep 14d (age), --keep videos/NAME")
    wanted = Keep()
    for word in words:
        age = re.fullmatch(r"(\d+)([hdw])", word)
        if word.isdigit():
            wanted = replace(wanted, newest=int(word))
        elif age is not None:
            wanted = replace(wanted, young_s=max(uses.FRESH_S, int(age[1]) * _SECONDS[age[2]]))
        elif re.fullmatch(r"-?[\d.]+\w{0,2}", word):
            raise UserError(f"--keep {word}: expected a number, an age such as 12h, 14d, 4w, or a place's name")
        else:
            wanted = replace(wanted, names=(*wanted.names, word))
    return wanted


def survey(root: str, wanted: Keep, now_s: float | None = None) -> Survey:
    """Find what may go; nothing is changed.

    Args:
        root: s3://bucket/prefix, file:///dir or the path of a folder.
        wanted: what is to stay in any case.
        now_s: the store's time, in seconds since 1970; None for this machine's.

    Raises:
        UserError: it is no root, one of another version, or there is no place of a name that is to stay.
        DamagedError: a manifest is damaged, so that nobody can say what it needs.
        StorageError: the store does not answer.
    """
    return _survey(needs.read(root), wanted, time.time() if now_s is None else now_s)


def _survey(known: Root, wanted: Keep, now_s: float) -> Survey:
    roots = _roots(known, wanted, now_s)
    kept = needs.needed(known, roots)
    idle = [name for name, place in known.found.items() if place.folder in needs.REMOVABLE and name not in kept]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="at-work") as pool:
        at_work = pool.map(lambda name: storage.is_at_work(storage.join(known.uri, name)), idle)
        written = {name: "being written" for name, yes in zip(idle, at_work, strict=True) if yes}
    if written:
        kept = needs.needed(known, {**roots, **written})
    going = []
    for place in known.found.values():
        if place.folder in needs.REMOVABLE and place.name not in kept:
            age_s = max(0.0, now_s - place.changed_s()) if place.objects else 0.0
            kind = inventory.FOLDERS.get(place.folder, place.folder)
            why = _why(known, place)
            going.append(Going(kind, place.name, place.bytes, len(place.objects), age_s, why))
    going.sort(key=lambda each: (needs.REMOVABLE.index(each.place.split("/")[0]), each.place))
    gone = {each.place for each in going}
    stays = {name: place for name, place in known.found.items() if name not in gone}
    reasons = {name: kept.get(name, "never removed by this command") for name in stays}
    return Survey(tuple(going), reasons, sum(place.bytes for place in stays.values()))


def _roots(known: Root, wanted: Keep, now_s: float) -> dict[str, str]:
    """Places that have to stay, and why."""
    roots = {name: "promoted models" for name, place in known.found.items() if place.folder == "registry"}
    for name in _of_names(known, wanted.names):
        roots.setdefault(name, "asked for by --keep")
    others = dict(wanted.others)
    for name in others.keys() & known.found.keys():
        roots.setdefault(name, others[name])
    for uri, info in known.notes.items():
        if now_s - (info.modified_s or now_s) < uses.FRESH_S:
            for name in needs.named_in(known, [_read_note(uri)]):
                roots.setdefault(name, "in use within the last day")
    by_label: dict[str, list[FoundPlace]] = {}
    for place in known.found.values():
        if place.folder not in needs.REMOVABLE:
            continue
        is_bare = place.folder in needs.BARE
        is_whole = is_bare or known.finished(place.name)
        limit_s = wanted.young_s
        # Who was stopped may want to go on; a run that waits for its turn has not touched its uploads yet.
        if not place.marked and (not is_whole or place.folder == "uploads"):
            limit_s = max(limit_s, UNFINISHED_S)
        if place.objects and now_s - place.changed_s() < limit_s:
            roots.setdefault(place.name, "young" if is_whole else "not finished, and young")
        if place.folder == "uploads" and not wanted.knows_runs:
            roots.setdefault(place.name, "schedules may name it: latte-pipeline gc --host asks them")
        if not is_bare and place.folder != "features" and is_whole:
            by_label.setdefault(place.label, []).append(place)
    for label, same in by_label.items():
        same.sort(key=lambda place: (_made_s(known, place), place.name), reverse=True)
        for place in same[: wanted.newest]:
            roots.setdefault(place.name, f"among the newest of {label}")
        if label in others:
            roots.setdefault(same[0].name, others[label])
    return roots


def _made_s(known: Root, place: FoundPlace) -> float:
    """When a finished place was."""
    return place.objects[storage.join(known.uri, place.name, manifest.NAME)].modified_s


def _of_names(known: Root, names: Iterable[str]) -> list[str]:
    places = []
    for given in names:
        name = given.strip("/").removesuffix("/" + manifest.NAME)
        meant = [
            place.name
            for place in known.found.values()
            if name in (place.name, place.label, place.label.partition("/")[2])
            or (name.count("/") == 2 and place.name.startswith(name))
        ]
        if not meant:
            labels = sorted({place.label for place in known.found.values() if place.folder in needs.REMOVABLE})
            raise UserError(f"--keep {given}: no place of this name; there are {', '.join(labels[:12])}")
        places += meant
    return places


def _read_note(uri: str) -> object:
    try:
        return storage.read_json(uri)
    except NotThereError:
        return None


_WHY_BARE = {
    "launched": "of Jobs that have ended",
    "texts": "no set that stays is of this text encoder",
    "uploads": "no schedule and no running run names it, and nothing that stays was made from it",
}


def _why(known: Root, place: FoundPlace) -> str:
    if place.marked:
        return "its removal was begun"
    if place.folder in _WHY_BARE:
        return _WHY_BARE[place.folder]
    if not known.finished(place.name):
        return "not finished, and nobody has gone on with it"
    if place.folder == "features":
        return "features of no score that stays"
    newer = sum(
        other.label == place.label and known.finished(other.name) and _made_s(known, other) > _made_s(known, place)
        for other in known.found.values()
    )
    return f"{newer} newer of this name, and nothing that stays needs it"


def remove(root: str, wanted: Keep, going: Sequence[Going]) -> Removed:
    """Remove what a survey has found, but for what has come into use since.

    Args:
        root: that was surveyed.
        wanted: what is to stay in any case.
        going: of the survey.

    Raises:
        UserError: as `survey`.
        StorageError: the store does not answer; another call goes on.
    """
    uri = storage.root_uri(root).rstrip("/")
    ahead_s = 0.0
    for each in going:
        mark = storage.join(uri, each.place, removal.MARK)
        storage.write_json(mark, {"why": each.why}, put=storage.write_bytes)
    if going:
        info = storage.stat(storage.join(uri, going[0].place, removal.MARK))
        ahead_s = info.modified_s - time.time() if info is not None and info.modified_s else 0.0
    # From here on whoever begins to use one of them finds its mark; who did so before has left a note, or its work.
    known = needs.read(uri)
    _clear_notes(known, time.time() + ahead_s)
    asked = {each.place for each in going}
    now = _survey(known, wanted, time.time() + ahead_s)
    may_go = {each.place for each in now.going}
    gone, spared = [], []
    with progress(total=len(going), desc="gc", unit="place") as bar:
        for each in going:
            place = known.found.get(each.place)
            if each.place in may_go and place is not None and _unchanged(uri, place):
                _take_away(uri, place)
                gone.append(each)
            else:
                storage.delete(storage.join(uri, each.place, removal.MARK))
                spared.append(each)
            bar.update()
    for name, place in known.found.items():
        if place.marked and name not in asked and name not in may_go:  # of a removal that was killed, needed by now
            storage.delete(storage.join(uri, name, removal.MARK))
    return Removed(tuple(gone), tuple(spared))


def _unchanged(root: str, place: FoundPlace) -> bool:
    """Whether nobody has written into a place since it was listed."""
    uri = storage.join(root, place.name)
    now = storage.list_objects(uri)
    now.pop(storage.join(uri, removal.MARK), None)
    return all(each in place.objects and place.objects[each] == info for each, info in now.items())


def _take_away(root: str, place: FoundPlace) -> None:
    """Delete the manifest first, so that the place does not count as done from then on, and the mark last."""
    uri = storage.join(root, place.name)
    own = storage.join(uri, manifest.NAME)
    storage.delete(own)
    documents = [each for each in place.objects if each.endswith(".json") and each != own]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="gc") as pool:
        list(pool.map(storage.delete, documents))
        list(pool.map(storage.delete, [each for each in place.objects if not each.endswith(".json")]))
    storage.delete(storage.join(uri, removal.MARK))
    storage.forget(uri)


def _clear_notes(known: Root, now_s: float) -> None:
    """Delete notes of use that count no longer."""
    for uri, info in known.notes.items():
        if info.modified_s and now_s - info.modified_s > 2 * uses.FRESH_S:
            storage.delete(uri)
