"""Whose a temporary file or folder is, told by its name: what a dead process left is cleared, a live one's never.

A name holds the machine (as long as it is up, and no longer), the process and when that was started. No clock is asked
of what is this machine's. What other machines left in a shared folder goes by its age, by the clock of that folder.
"""

import errno
import functools
import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_MARK = re.compile(r"(?<![0-9a-f])([0-9a-f]{8})([0-9a-f]{8})([0-9a-f]{8})(?=[0-9a-f]{8}(?![0-9a-f])|[-.]|$)")
_TEMPORARY = ".tmp-"
# The folder is the user's: whatever else lies in it stays.
_BESIDE = re.compile(r"\.tmp-[0-9a-f]{32}(\..*)?")
# File systems where a file has one name only say one of these.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}
_STALE_S = 86_400.0


def mark() -> str:
    """Token that names of this process' own things carry: 24 hexadecimal digits."""
    return f"{_machine()}{os.getpid() & 0xFFFFFFFF:08x}{_started(os.getpid()) or 0:08x}"


def is_alive(name: str) -> bool | None:
    """Whether the process that a name is of is at work still; None where another machine, or nobody, is named."""
    found = _MARK.search(name)
    if found is None or found[1] != _machine():
        return None
    return _started(int(found[2], 16)) == int(found[3], 16)


class Folder(tempfile.TemporaryDirectory[str]):
    """A temporary folder `latte-<purpose>-…` of this process; those of dead processes are cleared on the way."""

    def __init__(self, purpose: str) -> None:
        super().__init__(prefix=f"latte-{purpose}-{mark()}-")
        _clear_once(os.getpid(), str(Path(self.name).parent), "latte-*")


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """An empty file in the folder of `path` while a `with` block lasts; what dead processes left there is cleared."""
    temporary = path.parent / f"{_TEMPORARY}{mark()}{uuid.uuid4().hex[:8]}"
    temporary.touch(exist_ok=False)  # with the permissions that the user's umask gives; mkstemp shuts others out
    _clear_once(os.getpid(), str(path.parent), _TEMPORARY + "*")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def create(path: Path, fill: Callable[[Path], Any]) -> bool:
    """Make a file, filled by `fill`, only if there is none; no lock is taken that a stopped process could hold."""
    with temporary_beside(path) as temporary:
        fill(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if path.exists():
                return False
            temporary.replace(path)
    return True


def clear(found: Iterable[Path]) -> None:
    """Remove those of these files and folders whose process is dead.

    Those of other machines, or that carry no mark, are removed only where they are temporary files beside an object and
    have not grown for a day.
    """
    for path in found:
        with suppress(OSError):  # somebody else clears as well, or it is another user's
            info = path.lstat()
            alive = is_alive(path.name)
            if alive is None:
                alive = not _BESIDE.fullmatch(path.name) or _now(path.parent) - info.st_mtime < _STALE_S
            if alive or info.st_uid != os.getuid():
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def is_at_work(path: Path) -> bool:
    """Whether a temporary file is of a process that lives, or, where nobody here can tell, has grown within a day."""
    alive = is_alive(path.name)
    if alive is None:
        with suppress(OSError):
            return _now(path.parent) - path.lstat().st_mtime < _STALE_S
    return bool(alive)


@functools.lru_cache(maxsize=4096)
def _clear_once(_pid: int, folder: str, pattern: str) -> None:
    clear(Path(folder).glob(pattern))


def _now(folder: Path) -> float:
    """The folder's own time, where it is on another machine."""
    newest = max((path.stat().st_mtime for path in folder.glob(f"{_TEMPORARY}{mark()}*")), default=time.time())
    return min(newest, time.time())


@functools.cache
def _machine() -> str:
    """This machine since it was started, and the process numbers that are seen from here (a container has its own)."""
    seen = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(seen.encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; None where it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(rest[18]) & 0xFFFFFFFF
