"""Objects by URI, in an S3 bucket (`s3://bucket/key`) or a folder (`file:///dir/name`).

Every write is atomic: an object is there whole or not at all. S3 access reads the standard environment of boto3
(`AWS_ENDPOINT_URL_S3`, `AWS_ACCESS_KEY_ID`, …); nothing here ever prints a secret.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from latte import s3, uris
from latte.errors import NotThereError, StorageError, UserError
from latte.uris import from_path, is_s3, join, local_path, root_uri

_CHUNK_BYTES = 8 << 20
# What a path of the user's can be wrong by; other errors are the machine's.
_MISTAKES = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
    errno.ENXIO, errno.EBUSY,
}  # fmt: skip


@dataclass(frozen=True)
class Ref:
    """An object and what it must contain."""

    uri: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ObjectStat:
    """What the store says of an object without reading it; `etag` serves `swap` only.

    Attributes:
        bytes: size.
        etag: changes with the content.
        modified_s: when it was written, in seconds since 1970 (S3 tells whole ones).
    """

    bytes: int
    etag: str
    modified_s: float


def stat(uri: str) -> ObjectStat | None:
    """Size and etag of an object, or None when there is none."""
    if not is_s3(uri):
        with _local_errors(uri):
            try:
                info = _path(uri).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return ObjectStat(info.st_size, f"{info.st_ino}-{info.st_mtime_ns}-{info.st_size}", info.st_mtime)
    bucket, key = _split(uri)
    try:
        answer = s3.call("head_object", uri, Bucket=bucket, Key=key)
    except NotThereError:
        return None
    return ObjectStat(answer["ContentLength"], answer["ETag"], answer["LastModified"].timestamp())


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
    if not is_s3(uri):
        with _local_errors(uri), _path(uri).open("rb") as file:
            file.seek(start)
            data = file.read() if length is None else file.read(length)
    else:
        bucket, key = _split(uri)
        last = "" if length is None else start + length - 1
        extra = {"Range": f"bytes={start}-{last}"} if start or length is not None else {}
        data = s3.call("get_object", uri, Bucket=bucket, Key=key, **extra)["Data"]
    if length is not None and len(data) != length:
        raise StorageError(f"{uri}: wanted {length} bytes from {start}, the object has only {len(data)} there")
    return data


def read_json(uri: str) -> Any:
    """Parse a JSON object; every URI in it is absolute (`latte.uris`).

    Raises:
        UserError: no such object, or not JSON.
    """
    return parse_json(read_bytes(uri), uri)


def parse_json(data: bytes, uri: str) -> Any:
    """The same of an object's bytes that have been read from `uri`.

    Raises:
        UserError: not JSON.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{uri}: not JSON: {error}") from None
    # A walk through a plan of a million videos takes seconds.
    return uris.resolve(value, from_path(uri)) if uris.SCHEME.encode() in data else value


def write_bytes(uri: str, data: bytes) -> Ref:
    """Put an object, replacing what is there, atomically."""
    if is_s3(uri):
        bucket, key = _split(uri)
        s3.call("put_object", uri, Bucket=bucket, Key=key, Body=data)
    else:
        with writing(uri) as temporary:
            temporary.write_bytes(data)
    return Ref(uri, len(data), sha256_bytes(data))


def keep_bytes(uri: str, data: bytes) -> Ref:
    """Put an object unless just these bytes are there already: what is found done is not touched."""
    info = stat(uri)
    if info is not None and info.bytes == len(data) and read_bytes(uri) == data:
        return Ref(uri, len(data), sha256_bytes(data))
    return write_bytes(uri, data)


def write_json(uri: str, value: Any, root: str | None = None, compact: bool = False) -> Ref:
    """Put a JSON object; see `json_bytes`. Bytes that are there already are not written twice."""
    return keep_bytes(uri, json_bytes(uri, value, root, compact))


def json_bytes(uri: str, value: Any, root: str | None = None, compact: bool = False) -> bytes:
    """A JSON object as it is stored: sorted keys, so that equal values are equal bytes.

    Args:
        uri: where it will lie.
        value: JSON values.
        root: URIs of what lies under it are said so that they stay right when it is moved (`latte.uris`).
        compact: without layout: laying out a million entries takes six times longer than encoding them.
    """

    def encoded(value: Any) -> str:
        layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 2}
        return json.dumps(value, sort_keys=True, ensure_ascii=False, **layout) + ("" if compact else "\n")

    text = encoded(value)
    known = [uris.SCHEME, *(uris.spellings(root) if root is not None else [])]
    if any(json.dumps(each, ensure_ascii=False)[1:-1] in text for each in known):
        text = encoded(uris.relative(value, from_path(uri), root))
    return text.encode()


def upload(path: str | Path, uri: str) -> Ref:
    """Copy a local file to an object, in parts where it is large; the object appears only when it is whole."""
    path = Path(path)
    if is_s3(uri):
        bucket, key = _split(uri)
        s3.call("upload_file", uri, Filename=str(path), Bucket=bucket, Key=key)
    else:
        with _local_errors(uri), _replacing(_path(uri)) as temporary:
            _copy_file(path, temporary)
    return Ref(uri, path.stat().st_size, sha256_file(path))


def download(uri: str, path: str | Path, sha256: str | None = None) -> Path:
    """Copy an object to a local file, checking its SHA-256 when one is given; the file appears only when it is whole.

    Raises:
        NotThereError: no such object.
        StorageError: the store does not answer, or the content is not what `sha256` says.
    """
    path = Path(path)
    with _local_errors(str(path)), _replacing(path) as temporary:
        if is_s3(uri):
            bucket, key = _split(uri)
            s3.call("download_file", uri, Bucket=bucket, Key=key, Filename=str(temporary))
        else:
            with _local_errors(uri):
                _copy_file(_path(uri), temporary)
        _check_sha256(uri, temporary, sha256)
    return path


@contextlib.contextmanager
def as_local_file(uri: str, sha256: str | None = None) -> Iterator[Path]:
    """The object as a local file while a `with` block lasts: itself when it is local, a temporary copy otherwise."""
    if not is_s3(uri):
        path = _path(uri)
        with _local_errors(uri):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # a pipe that nobody writes to would wait
            _check_sha256(uri, path, sha256)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="latte-") as folder:
        yield download(uri, Path(folder) / uri.rsplit("/", 1)[-1], sha256)


@contextlib.contextmanager
def writing(uri: str) -> Iterator[Path]:
    """A local file to fill while a `with` block lasts; it becomes the object, whole, only if the block ends well."""
    if is_s3(uri):
        with tempfile.TemporaryDirectory(prefix="latte-") as folder:
            path = Path(folder) / "object"
            yield path
            upload(path, uri)
        return
    with _local_errors(uri), _replacing(_path(uri)) as temporary:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


def list_uris(prefix: str) -> list[str]:
    """Every object below a folder-like prefix, sorted bytewise (stores differ in their own order)."""
    return sorted(list_objects(prefix))


def list_objects(prefix: str) -> dict[str, ObjectStat]:
    """Size and etag of every object below a folder-like prefix, by URI."""
    prefix = prefix.rstrip("/") + "/"
    if not is_s3(prefix):
        root = _path(prefix)
        paths = [Path(base, name) for base, _, names in os.walk(root) for name in names if not name.startswith(".tmp-")]
        # Spelled as the caller spells the prefix, so that what it has written is found among them.
        found = {uri: stat(uri) for path in paths if (uri := prefix + _in_uri(path.relative_to(root)))}
        return {uri: info for uri, info in found.items() if info is not None}
    bucket, key = _split(prefix + "x")
    listed: dict[str, ObjectStat] = {}
    token: dict[str, str] = {}
    while True:
        page = s3.call("list_objects_v2", prefix, Bucket=bucket, Prefix=key[:-1], **token)
        for item in page.get("Contents", []):
            if not item["Key"].endswith("/"):
                modified_s = item["LastModified"].timestamp()
                listed[f"s3://{bucket}/{item['Key']}"] = ObjectStat(item["Size"], item["ETag"], modified_s)
        if not page.get("IsTruncated"):
            return listed
        token = {"ContinuationToken": page["NextContinuationToken"]}


def delete(uri: str) -> None:
    """Remove an object; removing what is not there is no error."""
    if is_s3(uri):
        bucket, key = _split(uri)
        s3.call("delete_object", uri, Bucket=bucket, Key=key)
    else:
        with _local_errors(uri):
            _path(uri).unlink(missing_ok=True)


def swap(uri: str, data: bytes, etag: str | None) -> bool:
    """Compare and swap: put `data` only if the object still has `etag` (None: only if there is none).

    Returns:
        Whether it was put; False means that somebody else was first.
    """
    if is_s3(uri):
        bucket, key = _split(uri)
        # Ceph's gateway compares If-Match with the bare ETag, so a quoted one never fits there.
        conditions = [{"IfNoneMatch": "*"}] if etag is None else [{"IfMatch": etag}, {"IfMatch": etag.strip('"')}]
        for condition in conditions:
            with contextlib.suppress(s3.ConflictError):
                s3.call("put_object", uri, Bucket=bucket, Key=key, Body=data, **condition)
                return True
        return False
    import filelock

    path = _path(uri)
    with _local_errors(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f".tmp-{path.name}.lock")):
            now = stat(uri)
            if (now.etag if now else None) != etag:
                return False
            write_bytes(uri, data)
    return True


def check_root(root: str) -> None:
    """Write, read and delete a small object under `root`, so that wrong credentials end a run before its work begins.

    Raises:
        UserError: not a URI this product knows, wrong credentials, no such bucket.
        StorageError: the store does not answer, or the disk is full or read-only.
    """
    root = root_uri(root)
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


def _check_sha256(uri: str, path: Path, sha256: str | None) -> None:
    if sha256 is not None and sha256_file(path) != sha256:
        raise StorageError(f"{uri}: damaged: its content does not have the recorded SHA-256 {sha256[:12]}…")


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    names = key.rstrip("/").split("/")
    if not bucket or not key or any(name in ("", ".", "..") for name in names):
        raise UserError(f"{uri}: expected s3://bucket/key, without empty, '.' or '..' names")
    return bucket, key


def _path(uri: str) -> Path:
    path = local_path(uri)
    if "://" in uri and ".." in path.parts:
        raise UserError(f"{uri}: '..' is not allowed in a URI")
    return path


def _in_uri(path: Path) -> str:
    """A relative path as the end of a URI; only what would be read as something else is quoted."""
    text = str(path)
    return text if unquote(text) == text else text.replace("%", "%25")


@contextlib.contextmanager
def _local_errors(uri: str) -> Iterator[None]:
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
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place when the block ends well, and is gone when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    temporary.touch(exist_ok=False)  # with the permissions that the user's umask gives; mkstemp shuts others out
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_file(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, _CHUNK_BYTES)
        writing.flush()
        os.fsync(writing.fileno())
