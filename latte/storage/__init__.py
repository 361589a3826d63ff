"""Objects by URI, in an S3 bucket (`s3://bucket/key`) or a folder (`file:///dir/name`).

Every write is atomic: an object is there whole or not at all. S3 access reads the standard environment of boto3
(`AWS_ENDPOINT_URL_S3`, `AWS_ACCESS_KEY_ID`, …); nothing here ever prints a secret.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from latte.errors import DamagedError, StorageError, UserError
from latte.storage import bucket, documents, local
from latte.storage.backend import Backend, ObjectStat, Ref, Sent
from latte.storage.backend import UnsupportedError as UnsupportedError
from latte.uris import from_path as from_path
from latte.uris import join, root_uri
from latte.uris import local_path as local_path

# Puts bytes under a URI.
Put = Callable[[str, bytes], Ref]


def store_of(uri: str) -> Backend:
    """The kind of store that a URI says: the only place that asks."""
    return bucket if uri.startswith(bucket.SCHEME) else local


def path(uri: str) -> Path | None:
    """The path under which programs of this machine open an object; None where they need a copy, `as_local_file`.

    Raises:
        UserError: no URI of a store.
    """
    return store_of(uri).path(uri)


def is_shared(uri: str) -> bool:
    """Whether other machines reach what lies there by the same URI; so it is in a bucket."""
    return store_of(uri).IS_SHARED


def etags_tell_content(uri: str) -> bool:
    """Whether equal contents have equal etags in this store, so that objects need not be read to be told apart."""
    return store_of(uri).ETAGS_TELL_CONTENT


def name_below(root: str, uri: str) -> str:
    """The name of an object below a root, as the store has it: a file's without the percent signs of its URI.

    Raises:
        UserError: it would lead out of the root.
    """
    name = uri.removeprefix(root.rstrip("/") + "/")
    join(root, name)
    return store_of(uri).name_of(name)


def stat(uri: str) -> ObjectStat | None:
    """Size and etag of an object, or None when there is none."""
    return store_of(uri).stat(uri)


def exists(uri: str) -> bool:
    """Whether there is an object under this URI."""
    return stat(uri) is not None


def read_bytes(uri: str, start: int = 0, length: int | None = None) -> bytes:
    """The object's bytes, or `length` of them from `start` (one ranged read).

    Raises:
        NotThereError: no such object.
        StorageError: the store does not answer, or the object ends before `start + length`.
    """
    if length == 0:
        return b""
    data = store_of(uri).read(uri, start, length)
    if length is not None and len(data) != length:
        raise StorageError(f"{uri}: wanted {length} bytes from {start}, the object has only {len(data)} there")
    return data


def read_json(uri: str) -> Any:
    """Parse a JSON object; every URI in it is absolute (`latte.uris`).

    Raises:
        UserError: no such object, or not JSON.
        DamagedError: it does not have the digest that it carries.
    """
    return parse_json(read_bytes(uri), uri)


def read_recorded(uri: str, sha256: str) -> bytes:
    """The bytes of an object, which must have the SHA-256 that is recorded of it.

    Raises:
        NotThereError: no such object.
        DamagedError: they have another one.
        StorageError: the store does not answer.
    """
    for _ in range(2):  # what was damaged on its way is whole the second time
        data = read_bytes(uri)
        if sha256_bytes(data) == sha256:
            return data
    raise damaged(uri, sha256)


def parse_json(data: bytes, uri: str) -> Any:
    """The same of an object's bytes that have been read from `uri`; see `latte.storage.documents.decode`."""
    return documents.decode(data, uri)


def write_bytes(uri: str, data: bytes) -> Ref:
    """Put an object, replacing what is there, atomically; what a store says it has is looked at afterwards."""
    return store_of(uri).write(uri, data)


def keep_bytes(uri: str, data: bytes) -> Ref:
    """Put an object unless just these bytes are there already: what is found done is not touched."""
    info = stat(uri)
    if info is not None and info.bytes == len(data) and read_bytes(uri) == data:
        return Ref(uri, len(data), sha256_bytes(data))
    return write_bytes(uri, data)


def write_json(uri: str, value: Any, root: str | None = None, compact: bool = False, put: Put = keep_bytes) -> Ref:
    """Put a JSON object by `put`; see `json_bytes`. Bytes that are there already are not written twice."""
    return put(uri, json_bytes(uri, value, root, compact))


def json_bytes(uri: str, value: Any, root: str | None = None, compact: bool = False) -> bytes:
    """A JSON object as it is stored; see `latte.storage.documents.encode`."""
    return documents.encode(uri, value, root, compact)


def upload(path: str | Path, uri: str, sent: Sent | None = None, like: str | None = None) -> Ref:
    """Copy a local file to an object, in parts where it is large; the object appears only when it is whole.

    Args:
        path: the file.
        uri: the object.
        sent: told how many more bytes are on their way to a bucket, in threads; those of another try once more.
        like: object of the same store that may have this content: a bucket copies it, and nothing is sent.
    """
    return store_of(uri).upload(Path(path), uri, sent, like)


def copy_new(path: str | Path, uri: str) -> bool:
    """Copy a local file to an object only if there is none; whether it was.

    Of two who do so at once, one does. Stores that know no such condition replace what has come in between.
    """
    return store_of(uri).upload_new(Path(path), uri)


def download(uri: str, path: str | Path, sha256: str | None = None) -> Path:
    """Copy an object to a local file, checking its SHA-256 when one is given; the file appears only when it is whole.

    Raises:
        NotThereError: no such object.
        StorageError: the store does not answer, or the content is not what `sha256` says.
    """
    path = Path(path)
    with local.told(str(path)), local.replacing(path) as temporary:
        store_of(uri).fetch(uri, temporary)
        _check_sha256(uri, temporary, sha256)
    return path


@contextlib.contextmanager
def as_local_file(uri: str, sha256: str | None = None) -> Iterator[Path]:
    """The object as a local file while a `with` block lasts: itself when it is local, a temporary copy otherwise."""
    with store_of(uri).as_file(uri) as path:
        _check_sha256(uri, path, sha256)
        yield path


def writing(uri: str) -> contextlib.AbstractContextManager[Path]:
    """A local file to fill while a `with` block lasts; it becomes the object, whole, only if the block ends well."""
    return store_of(uri).writing(uri)


def list_uris(prefix: str) -> list[str]:
    """Every object below a folder-like prefix, sorted bytewise (stores differ in their own order)."""
    return sorted(list_objects(prefix))


def list_objects(prefix: str) -> dict[str, ObjectStat]:
    """Size and etag of every object below a folder-like prefix, by URI."""
    prefix = prefix.rstrip("/") + "/"
    return store_of(prefix).listed(prefix)


def is_prefix(prefix: str) -> bool:
    """Whether there is any object below a folder-like prefix; in a bucket by one request."""
    prefix = prefix.rstrip("/") + "/"
    return store_of(prefix).is_prefix(prefix)


def delete(uri: str) -> None:
    """Remove an object; removing what is not there is no error."""
    store_of(uri).delete(uri)


def is_at_work(prefix: str) -> bool:
    """Whether something below a folder-like prefix is being written: by a process that lives, or within a day."""
    return store_of(prefix).is_at_work(prefix.rstrip("/") + "/")


def forget(prefix: str) -> None:
    """Clear what is left below a folder-like prefix when its objects are gone: empty folders, unfinished uploads."""
    store_of(prefix).forget(prefix.rstrip("/") + "/")


def swap(uri: str, data: bytes, etag: str | None) -> bool:
    """Compare and swap: put `data` only if the object still has `etag` (None: only if there is none).

    Returns:
        Whether it was put; False means that somebody else was first.
    """
    if etag == "":
        raise StorageError(f"{uri}: the store tells no ETag, so nothing can be replaced there on a condition")
    return store_of(uri).swap(uri, data, etag)


def check_root(root: str) -> None:
    """Write, read and delete a small object under `root`, so that wrong credentials end a run before its work begins.

    Raises:
        UserError: not a URI this product knows, wrong credentials, no such bucket, a folder that cannot be made.
        StorageError: the store does not answer, or the disk is full or read-only.
    """
    root = root_uri(root)
    if (folder := path(root)) is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(f"root {folder}: the folder cannot be made: {error.strerror}") from None
    probe = join(root, f"probe-{os.getpid()}")
    write_bytes(probe, b"latte")
    if read_bytes(probe) != b"latte":
        raise StorageError(f"{root}: the store does not give back what was written")
    delete(probe)


def sha256_bytes(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's content, hexadecimal, read in a stream."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(uri: str, sha256: str) -> DamagedError:
    """Message about an object that does not have its recorded SHA-256."""
    return DamagedError(f"{uri}: damaged: its content does not have the recorded SHA-256 {sha256[:12]}…")


def _check_sha256(uri: str, path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    with local.told(uri):
        if sha256_file(path) != sha256:
            raise damaged(uri, sha256)
