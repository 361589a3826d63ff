"""Objects in a folder: `latte.storage.backend.Backend` by paths; their errors in one line, files that appear whole."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from latte import owners
from latte.errors import NotThereError, StorageError, UserError
from latte.storage.backend import ObjectStat, Ref, Sent
from latte.uris import local_path

# Of an inode and a time.
ETAGS_TELL_CONTENT = False
IS_SHARED = False
_CHUNK_BYTES = 8 << 20

# What a path of the user's can be wrong by; other errors are the machine's.
_MISTAKES = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
    errno.ENXIO, errno.EBUSY,
}  # fmt: skip


def path(uri: str) -> Path | None:
    """The path of a file:// URI or a path, which may climb with `..`."""
    return local_path(uri)


def name_of(text: str) -> str:
    """Part of a URI as the name of a file."""
    return unquote(text)


def stat(uri: str) -> ObjectStat | None:
    """Size and etag of a file, or None when there is none."""
    with told(uri):
        try:
            info = _path_of(uri).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return ObjectStat(info.st_size, f"{info.st_ino}-{info.st_mtime_ns}-{info.st_size}", info.st_mtime)


def listed(prefix: str) -> dict[str, ObjectStat]:
    """Size and etag of every file below `prefix`, which ends with a slash, by URI."""
    root = _path_of(prefix)
    paths = [Path(base, name) for base, _, names in os.walk(root) for name in names if not name.startswith(".tmp-")]
    # Spelled as the caller spells the prefix, so that what it has written is found among them.
    found = {uri: stat(uri) for path in paths if (uri := prefix + _in_uri(path.relative_to(root)))}
    return {uri: info for uri, info in found.items() if info is not None}


def is_prefix(prefix: str) -> bool:
    """Whether there is any file below `prefix`, which ends with a slash."""
    return bool(listed(prefix))


def read(uri: str, start: int, length: int | None) -> bytes:
    """At most `length` bytes of a file from `start`; all that follow for None."""
    with told(uri), _path_of(uri).open("rb") as file:
        file.seek(start)
        return file.read() if length is None else file.read(length)


def fetch(uri: str, path: Path) -> None:
    """Copy a file to another."""
    with told(uri):
        _copy(_path_of(uri), path)


@contextlib.contextmanager
def as_file(uri: str) -> Iterator[Path]:
    """The file itself."""
    path = _path_of(uri)
    with told(uri):
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # a pipe that nobody writes to would wait
    yield path


def write(uri: str, data: bytes) -> Ref:
    """Put a file, replacing what is there."""
    with writing(uri) as temporary:
        temporary.write_bytes(data)
    return Ref(uri, len(data), hashlib.sha256(data).hexdigest())


def upload(path: Path, uri: str, sent: Sent | None = None, like: str | None = None) -> Ref:
    """Copy a file, replacing what is there; nothing is sent, and it is no use to know another one like it."""
    with told(uri), replacing(_path_of(uri)) as temporary:
        _copy(path, temporary)
    with path.open("rb") as file:
        return Ref(uri, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def upload_new(path: Path, uri: str) -> bool:
    """Copy a file only if there is none; whether it was."""
    return _create(uri, lambda temporary: _copy(path, temporary))


@contextlib.contextmanager
def writing(uri: str) -> Iterator[Path]:
    """A temporary file beside the one that it replaces when the block ends well."""
    with told(uri), replacing(_path_of(uri)) as temporary:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


def swap(uri: str, data: bytes, etag: str | None) -> bool:
    """Put a file only if there is one of this etag, or none for None; whether it was."""
    if etag is None:
        return _create(uri, lambda temporary: temporary.write_bytes(data))
    import filelock

    path = _path_of(uri)
    with told(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(_lock_of(path)):
            now = stat(uri)
            if (now.etag if now else None) != etag:
                return False
            write(uri, data)
    return True


def delete(uri: str) -> None:
    """Remove a file and the lock that `swap` left beside it; removing what is not there is no error."""
    with told(uri):
        path = _path_of(uri)
        path.unlink(missing_ok=True)
        _lock_of(path).unlink(missing_ok=True)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".tmp-{path.name}.lock")


def clear_unfinished(prefix: str, all_of_them: bool) -> None:
    """Nothing: files begin beside their place, and whoever writes there next clears them."""


def is_at_work(prefix: str) -> bool:
    """Whether a temporary file below `prefix` is of a process that lives, or has grown within the last day."""
    return any(owners.is_at_work(path) for path in _path_of(prefix).rglob(".tmp-*") if path.suffix != ".lock")


def forget(prefix: str) -> None:
    """Clear what dead processes left below `prefix`, and folders without files."""
    folder = _path_of(prefix)
    for base, _, names in os.walk(folder, topdown=False):
        owners.clear(Path(base, name) for name in names if name.startswith(".tmp-") and not name.endswith(".lock"))
        with contextlib.suppress(OSError):  # somebody writes there again
            for name in names:
                if name.startswith(".tmp-") and name.endswith(".lock"):
                    Path(base, name).unlink()
            Path(base).rmdir()
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


@contextlib.contextmanager
def told(uri: str) -> Iterator[None]:
    """Say in one line what keeps a file from being read or written: the user's to mend, or the disk is full."""
    try:
        yield
    except FileNotFoundError:
        raise NotThereError(f"{uri}: no such object") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{uri}: no space left on the disk") from None
        if error.errno in _MISTAKES:
            raise UserError(f"{uri}: {error.strerror}") from None
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with owners.temporary_beside(path) as temporary:
        yield temporary
        temporary.replace(path)


def _path_of(uri: str) -> Path:
    """The path of a file:// URI or a path.

    Raises:
        UserError: a URI that leads out of its folder.
    """
    path = local_path(uri)
    if "://" in uri and ".." in path.parts:
        raise UserError(f"{uri}: '..' is not allowed in a URI")
    return path


def _in_uri(path: Path) -> str:
    """A relative path as the end of a URI; only what would be read as something else is quoted."""
    text = str(path)
    return text if unquote(text) == text else text.replace("%", "%25")


def _create(uri: str, fill: Callable[[Path], Any]) -> bool:
    path = _path_of(uri)
    with told(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        return owners.create(path, fill)


def _copy(source: Path, target: Path) -> None:
    """Copy a file's content to the disk itself, not only to its cache."""
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, _CHUNK_BYTES)
        writing.flush()
        os.fsync(writing.fileno())
