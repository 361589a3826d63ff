"""Places in use and places that are being removed: how a step at work and `latte gc` keep out of each other's way.

    used/<digest>.json         places that a step reads, or has found done; written before it looks at them
    <place>/removing.json      the place is being removed (`latte.storage.removal`)

A step notes what it reads and looks for marks of removal after that; `latte gc` marks what it is about to remove and
reads the notes after that. So one of the two sees the other, whatever comes in between: either the place stays, or the
step ends with one line. A note counts for a day by the store's clock, and a step that takes longer renews its own.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from latte import places, storage
from latte.errors import LatteError
from latte.storage import manifest, removal

FOLDER = "used"
# What was written or noted within this time is in use.
FRESH_S = 86_400.0
_RENEWED_S = 3600.0
# KFP hands manifests over as files; no larger one is taken for a manifest, nor opened.
_MOST_BYTES = 64 << 20


def found_in(root: str, *values: Any) -> list[str]:
    """Places of a root that values name: by URIs below it, or by files of this machine that hold a manifest."""
    found: set[str] = set()
    pieces = list(values)
    while pieces:
        piece = pieces.pop()
        if isinstance(piece, dict):
            pieces += piece.values()
        elif isinstance(piece, list | tuple):
            pieces += piece
        elif isinstance(piece, str) and piece:
            place = places.name_of(root, piece) or _of_file(root, piece)
            found |= {place} if place is not None else set()
    return sorted(found)


def note(root: str, names: Iterable[str]) -> None:
    """Note that these places are in use, and look whether they may be.

    Args:
        root: that they lie under.
        names: places as seen from it, for example videos/trained/9b40….

    Raises:
        StorageError: one is being removed, or the store does not answer.
    """
    uris = [storage.join(root, name) for name in names]
    if not uris:
        return
    _write(root, uris)
    for uri in uris:
        removal.check(uri)


@contextlib.contextmanager
def noted(root: str, names: Iterable[str]) -> Iterator[None]:
    """The same; while a `with` block lasts the note is renewed.

    Raises:
        StorageError: one is being removed, or the store does not answer.
    """
    names = list(names)
    uris = [storage.join(root, name) for name in names]
    note(root, names)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEWED_S):
            with contextlib.suppress(LatteError):  # the store is away: whoever has something to write will say so
                _write(root, uris)

    thread = threading.Thread(target=renew, name="notes-of-use", daemon=True)
    if uris:
        thread.start()
    try:
        yield
    finally:
        ended.set()


def _write(root: str, uris: list[str]) -> None:
    name = f"{manifest.fingerprint([uri.removeprefix(root) for uri in uris])[:16]}.json"
    # Written even where it is there: when that was is what counts.
    storage.write_json(storage.join(root, FOLDER, name), {"places": uris}, root, put=storage.write_bytes)


def _of_file(root: str, text: str) -> str | None:
    if "://" in text or "\0" in text:
        return None
    path = Path(text)
    try:
        if not path.is_absolute() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return None
        with path.open("rb") as file:
            if file.read(1) != b"{":
                return None
    except OSError:
        return None
    with contextlib.suppress(LatteError):
        return places.name_of(root, manifest.read(path).uri)
    return None
