"""Copies of places in a local folder, laid out as under the root, so that the folder is a root itself.

Every file is checked against the SHA-256 that the place's documents record for it. A copy that was stopped goes on:
what is there is kept, a file begun is gone on with. A file that this did not write, or that was changed since, is never
overwritten.
"""

import contextlib
import errno
import fnmatch
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latte import storage
from latte.errors import StorageError, UserError
from latte.progress import progress

# What was written, by path below the folder: its SHA-256 then.
LEDGER = ".latte-copied.jsonl"
_THREADS = 4
_PART_BYTES = 8 << 20
_DOCUMENTS = (".json", ".jsonl")


@dataclass(frozen=True)
class Copied:
    """Content of a copy.

    Attributes:
        files: the files, by path below the folder.
        fetched: how many of them were not there before.
        bytes: of all files.
        checked: how many had a recorded SHA-256, and have it.
    """

    files: tuple[str, ...]
    fetched: int
    bytes: int
    checked: int


def copy(root: str, places: Sequence[str], folder: Path, only: str | None = None) -> Copied:
    """Copy places of a root into a folder.

    Args:
        root: that they lie under.
        places: folders below it, for example videos/trained/9b40….
        folder: where to.
        only: names of the files that are wanted, for example "*.mp4"; None for all.

    Raises:
        UserError: the folder cannot be written, a file there is not ours, or nothing is of that name.
        StorageError: the store stayed away, or an object is damaged.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    listed = {uri: info for place in places for uri, info in storage.list_objects(storage.join(root, place)).items()}
    recorded = _recorded(uri for uri in listed if uri.endswith(".json"))
    wanted = {uri: info for uri, info in listed.items() if only is None or fnmatch.fnmatch(uri.rsplit("/", 1)[1], only)}
    if not wanted:
        raise UserError(f"{only}: no file of this name in {', '.join(places)}")
    ledger = _Ledger(folder)
    work = [_File(uri, info, folder / storage.name_below(root, uri), recorded.get(uri)) for uri, info in wanted.items()]
    total = sum(info.bytes for info in wanted.values())
    bar = progress(total=total, desc=f"copy to {folder}", unit="B", scaled=True)
    with bar, ThreadPoolExecutor(_THREADS, thread_name_prefix="copy") as pool:
        kept = list(pool.map(lambda file: _is_kept(file, ledger), work))  # a foreign file ends it before the first copy
        bar.update(sum(file.info.bytes for file, there in zip(work, kept, strict=True) if there))
        todo = [file for file, there in zip(work, kept, strict=True) if not there]
        for _ in pool.map(lambda file: _fetch(file, ledger, bar.update), todo):
            pass
    names = tuple(file.path.relative_to(folder).as_posix() for file in work)
    return Copied(names, len(todo), total, sum(file.sha256 is not None for file in work))


@dataclass(frozen=True)
class _File:
    uri: str
    info: storage.ObjectStat
    path: Path
    sha256: str | None


class _Ledger:
    """The SHA-256 of each file when it was written: only what still has it may be replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / LEDGER
        self._known: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in self._path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # the last line of a copy that was killed
                    self._known |= json.loads(line)

    def wrote(self, path: Path, sha256: str) -> None:
        """Note a file before it takes its place."""
        line = json.dumps({self._name(path): sha256}, ensure_ascii=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def is_ours(self, path: Path, sha256: str) -> bool:
        return self._known.get(self._name(path)) == sha256

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()


def _recorded(documents: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of every object that a document names beside its URI."""
    found: dict[str, str] = {}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="records") as pool:
        pieces: list[Any] = list(pool.map(storage.read_json, documents))
    while pieces:
        piece = pieces.pop()
        if isinstance(piece, dict):
            if isinstance(piece.get("uri"), str) and isinstance(piece.get("sha256"), str):
                found[piece["uri"]] = piece["sha256"]
            pieces += piece.values()
        elif isinstance(piece, list):
            pieces += piece
    return found


def _is_kept(file: _File, ledger: _Ledger) -> bool:
    """Whether the copy is there and is the object.

    Raises:
        UserError: something else is there.
    """
    if not file.path.exists():
        return False
    if not file.path.is_file():
        raise UserError(f"{file.path}: in the way of {file.uri}; name another folder")
    sha256 = storage.sha256_file(file.path)
    # Documents and logs have no recorded SHA-256 and are small; of the rest the size has to do.
    known = file.sha256 or (_digest_of(file) if file.path.name.endswith(_DOCUMENTS) else None)
    if sha256 == known or (known is None and file.path.stat().st_size == file.info.bytes):
        return True
    if ledger.is_ours(file.path, sha256):
        return False
    raise UserError(f"{file.path}: not what this command wrote; move it away, or name another folder")


def _digest_of(file: _File) -> str:
    return storage.sha256_bytes(storage.read_bytes(file.uri))


def _fetch(file: _File, ledger: _Ledger, tell: Callable[[int], Any]) -> None:
    """Copy one object in parts; what an earlier try has of this very version is gone on with."""
    version = storage.sha256_bytes(f"{file.uri} {file.info.etag} {file.info.bytes}".encode())[:16]
    part = file.path.with_name(f".tmp-{version}")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as target:
            at = target.tell()
            if at > file.info.bytes:
                at = target.truncate(0)
            tell(at)
            while at < file.info.bytes:
                data = storage.read_bytes(file.uri, at, min(_PART_BYTES, file.info.bytes - at))
                target.write(data)
                at += len(data)
                tell(len(data))
        sha256 = storage.sha256_file(part)
        if file.sha256 is not None and sha256 != file.sha256:
            part.unlink()
            raise StorageError(
                f"{file.uri}: damaged: its content does not have the recorded SHA-256 {file.sha256[:12]}…"
            )
        ledger.wrote(file.path, sha256)
        part.replace(file.path)
    except OSError as error:
        kind = StorageError if error.errno in (errno.ENOSPC, errno.EDQUOT) else UserError
        raise kind(f"{file.path}: {error.strerror}") from None
