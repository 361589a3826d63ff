"""Objects that are never overwritten: what is published under a name keeps its bytes, other bytes get another name."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from latte import storage
from latte.errors import NotThereError, StorageError

_PIECE_BYTES = 8 << 20
_MOST_TRIES = 50


def publish(path: str | Path, names: Iterable[str], recorded: str = "") -> storage.Ref:
    """Copy a local file to the first of these URIs that is free, or that has its very bytes already.

    Two who publish at once both find their bytes under the URI that they are told. Stores that ignore the conditions of
    a write (Swift, and Ceph's gateway where a file goes up in parts) promise it only to those who come one after the
    other.

    Args:
        path: the file.
        names: where it may go; the last one is made from its digest, and is healed where it has other bytes.
        recorded: SHA-256 that the first one is known to have; where it has not, and the file has, it is healed, too.

    Raises:
        StorageError: the store failed.
    """
    path = Path(path)
    size, sha256 = path.stat().st_size, storage.sha256_file(path)
    uri = ""
    for uri in names:
        if (not storage.exists(uri) and storage.copy_new(path, uri)) or _has(uri, size, sha256):
            return storage.Ref(uri, size, sha256)
        if sha256 == recorded:
            break
    return storage.upload(path, uri)


def write_json(uri: str, value: Any, root: str | None = None, compact: bool = False) -> storage.Ref:
    """Put a JSON object as `storage.write_json` does; where `uri` has another, into a folder of its digest there.

    Whoever holds a manifest that names the one of before finds it as it was.
    """
    data = storage.json_bytes(uri, value, root, compact)
    if _create(uri, data) or _is(uri, data):
        return storage.Ref(uri, len(data), storage.sha256_bytes(data))
    folder, _, name = uri.rpartition("/")
    return storage.write_json(storage.join(folder, storage.sha256_bytes(data)[:16], name), value, root, compact)


def write_bytes(uri: str, data: bytes) -> storage.Ref:
    """The same of bytes."""
    if not (_create(uri, data) or _is(uri, data)):
        folder, _, name = uri.rpartition("/")
        return storage.keep_bytes(storage.join(folder, storage.sha256_bytes(data)[:16], name), data)
    return storage.Ref(uri, len(data), storage.sha256_bytes(data))


def write_unless(uri: str, data: bytes, stands: Callable[[], bool]) -> bool:
    """Put an object in the place of what is there unless that stands; whether it was put.

    Of several who do so at once, each looks at what the others have put before it puts its own (compare and swap).
    Stores that ignore the conditions of a write promise it only to those who come one after the other.

    Args:
        uri: the object.
        data: its bytes.
        stands: whether what is there now has to stay.

    Raises:
        StorageError: the store failed, or others put theirs again and again.
    """
    for _ in range(_MOST_TRIES):
        # Before the look: what comes in between has another etag.
        info = storage.stat(uri)
        if info is not None and stands():
            return False
        if info is not None and info.bytes == len(data) and storage.read_bytes(uri) == data:
            return True
        try:
            if info is not None and not info.etag:
                raise storage.UnsupportedError(uri)
            if storage.swap(uri, data, info.etag if info is not None else None):
                return True
        except storage.UnsupportedError:
            storage.write_bytes(uri, data)
            return True
    raise StorageError(f"{uri}: others changed it {_MOST_TRIES} times; run again")


def sha256_of(uri: str) -> str:
    """SHA-256 of an object's content, hexadecimal, read back piece by piece.

    Raises:
        NotThereError: no such object.
        StorageError: the store does not answer.
    """
    info = storage.stat(uri)
    if info is None:
        raise NotThereError(f"{uri}: no such object")
    found = hashlib.sha256()
    for start in range(0, info.bytes, _PIECE_BYTES):
        found.update(storage.read_bytes(uri, start, min(_PIECE_BYTES, info.bytes - start)))
    return found.hexdigest()


def clear_unfinished(prefix: str, all_of_them: bool = False) -> None:
    """Give up uploads that nobody will finish, below a folder-like prefix of our own.

    Args:
        prefix: what lies below it is ours.
        all_of_them: whoever began them may not write there any more; else only those that are a day old by the store's
            own clock.
    """
    storage.store_of(prefix).clear_unfinished(prefix, all_of_them)


def _create(uri: str, data: bytes) -> bool:
    """Put an object where there is none; whether it was."""
    if storage.exists(uri):
        return False
    try:
        return storage.swap(uri, data, None)
    except storage.UnsupportedError:
        storage.write_bytes(uri, data)
    return True


def _is(uri: str, data: bytes) -> bool:
    info = storage.stat(uri)
    return info is not None and info.bytes == len(data) and storage.read_bytes(uri) == data


def _has(uri: str, size: int, sha256: str) -> bool:
    info = storage.stat(uri)
    return info is not None and info.bytes == size and sha256_of(uri) == sha256
