"""Objects in an S3 bucket: `latte.storage.backend.Backend` by the requests of s3.py."""

import contextlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from latte import owners
from latte.errors import LatteError, NotThereError, StorageError, UserError
from latte.storage import local, s3
from latte.storage.backend import ObjectStat, Ref, Sent, UnsupportedError

SCHEME = "s3://"
ETAGS_TELL_CONTENT = True
IS_SHARED = True
_PART_BYTES = 8 << 20
_MOST_PARTS = 9000
_THREADS = 4
_STALE_S = 86_400.0


def path(uri: str) -> Path | None:
    """None: what lies in a bucket has to be copied."""
    return None


def name_of(text: str) -> str:
    """The same: keys are spelled as they are."""
    return text


def stat(uri: str) -> ObjectStat | None:
    """Size and etag of an object, or None when there is none."""
    try:
        answer = s3.call("head_object", uri, **_place(uri))
    except NotThereError:
        return None
    return _told(uri, answer.get("ContentLength"), answer)


def listed(prefix: str) -> dict[str, ObjectStat]:
    """Size and etag of every object below `prefix`, which ends with a slash, by URI."""
    bucket, key = _split(prefix + "x")
    found: dict[str, ObjectStat] = {}
    token: dict[str, str] = {}
    while True:
        page = s3.call("list_objects_v2", prefix, Bucket=bucket, Prefix=key[:-1], **token)
        for item in page.get("Contents", []):
            if not item["Key"].endswith("/"):
                uri = f"{SCHEME}{bucket}/{item['Key']}"
                found[uri] = _told(uri, item.get("Size"), item)
        if not page.get("IsTruncated"):
            return found
        before, token = token, {"ContinuationToken": page.get("NextContinuationToken", "")}
        if token == before or not token["ContinuationToken"]:
            raise StorageError(f"{prefix}: the store does not tell where its listing goes on")


def is_prefix(prefix: str) -> bool:
    """Whether there is any object below `prefix`, which ends with a slash; one request."""
    bucket, key = _split(prefix + "x")
    return bool(s3.call("list_objects_v2", prefix, Bucket=bucket, Prefix=key[:-1], MaxKeys=1).get("Contents"))


def read(uri: str, start: int, length: int | None) -> bytes:
    """Bytes of an object, `length` of them from `start`, by one request."""
    last = "" if length is None else start + length - 1
    extra = {"Range": f"bytes={start}-{last}"} if start or length is not None else {}
    data: bytes = s3.call("get_object", uri, **_place(uri), **extra)["Data"]
    return data


def fetch(uri: str, path: Path) -> None:
    """Copy an object to a local file, in parts where it is large."""
    s3.call("download_file", uri, **_place(uri), Filename=str(path))


@contextlib.contextmanager
def as_file(uri: str) -> Iterator[Path]:
    """A temporary copy of the object, of its name."""
    with owners.Folder("object") as folder:
        path = Path(folder) / uri.rsplit("/", 1)[-1]
        with local.told(str(path)):
            fetch(uri, path)
        yield path


def write(uri: str, data: bytes) -> Ref:
    """Put an object, and look at what the store has then."""
    digests = s3.digests(io.BytesIO(data))
    s3.put("put_object", uri, digests, **_place(uri), Body=data)
    return Ref(uri, len(data), digests.sha256)


def upload(path: Path, uri: str, sent: Sent | None = None, like: str | None = None) -> Ref:
    """Copy a local file to an object, in parts where it is large; without sending it where `like` has the content."""
    place: dict[str, Any] = _place(uri)
    with path.open("rb") as file:
        digests = s3.digests(file)
    if like is None or not s3.copied(_place(like), uri, digests, place):
        extra = {} if sent is None else {"Callback": sent}
        s3.put("upload_file", uri, digests, Filename=str(path), **place, **extra)
    return Ref(uri, digests.bytes, digests.sha256)


def upload_new(path: Path, uri: str) -> bool:
    """Copy a local file to an object only if there is none; whether it was.

    Stores that know no such condition get it as by `upload`.
    """
    place = _place(uri)
    size = path.stat().st_size
    try:
        with path.open("rb") as body:
            digests = s3.digests(body)
        if size <= _PART_BYTES:
            s3.put("put_object", uri, digests, **place, Body=path.read_bytes(), IfNoneMatch="*")
        else:
            _put_parts(path, uri, size, place)
            if not s3.is_stored(uri, digests, place):
                raise StorageError(f"{uri}: the store answered that it was written, but does not have it so")
    except s3.ConflictError:
        return False
    except UnsupportedError:
        upload(path, uri)
    return True


@contextlib.contextmanager
def writing(uri: str) -> Iterator[Path]:
    """A temporary file that is uploaded when the block ends well."""
    with owners.Folder("object") as folder:
        path = Path(folder) / "object"
        yield path
        upload(path, uri)


def swap(uri: str, data: bytes, etag: str | None) -> bool:
    """Put an object only if there is one of this etag, or none for None; whether it was."""
    place = _place(uri)
    # Ceph's gateway compares If-Match with the bare ETag, so a quoted one never fits there.
    conditions = [{"IfNoneMatch": "*"}] if etag is None else [{"IfMatch": etag}, {"IfMatch": etag.strip('"')}]
    for condition in conditions:
        with contextlib.suppress(s3.ConflictError):
            s3.call("put_object", uri, **place, Body=data, **condition)
            return True
    return False


def delete(uri: str) -> None:
    """Remove an object; removing what is not there is no error."""
    s3.call("delete_object", uri, **_place(uri))


def clear_unfinished(prefix: str, all_of_them: bool) -> None:
    """Give up uploads in parts below `prefix`: those that are a day old by the store's own clock, or all of them."""
    bucket, _ = _split(prefix.rstrip("/") + "/x")
    # Not every store and every key may list them: then they are the bucket's to expire, and no reason to fail.
    with contextlib.suppress(LatteError):
        for upload, age_s in _unfinished(prefix):
            if all_of_them or age_s > _STALE_S:
                _abort(prefix, Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def is_at_work(prefix: str) -> bool:
    """Whether an upload in parts below `prefix` was begun within the last day."""
    with contextlib.suppress(LatteError):
        return any(age_s < _STALE_S for _, age_s in _unfinished(prefix))
    return False


def forget(prefix: str) -> None:
    """Give up all uploads below `prefix`; there are no folders."""
    clear_unfinished(prefix, all_of_them=True)


def _unfinished(prefix: str) -> list[tuple[dict[str, Any], float]]:
    """Uploads in parts below `prefix`, with their age in seconds by the store's own clock."""
    bucket, key = _split(prefix.rstrip("/") + "/x")
    answer = s3.call("list_multipart_uploads", prefix, Bucket=bucket, Prefix=key[:-1])
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return [(upload, (now - upload["Initiated"]).total_seconds()) for upload in answer.get("Uploads", [])]


def _put_parts(path: Path, uri: str, size: int, place: dict[str, str]) -> None:
    """Upload in parts, each repeated by itself where it fails; the object appears with the last request."""
    upload = {**place, "UploadId": s3.call("create_multipart_upload", uri, **place)["UploadId"]}
    length = max(_PART_BYTES, -(-size // _MOST_PARTS))

    def put(number: int) -> dict[str, Any]:
        with path.open("rb") as file:
            file.seek(number * length)
            answer = s3.call("upload_part", uri, **upload, PartNumber=number + 1, Body=file.read(length))
        return {"PartNumber": number + 1, "ETag": answer["ETag"]}

    try:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="parts") as pool:
            parts = list(pool.map(put, range(-(-size // length))))
        s3.call("complete_multipart_upload", uri, **upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
    except s3.ConflictError:
        _abort(uri, **upload)
        raise
    except StorageError as error:
        # The answer of an earlier try was lost; whoever asked looks what is there. Others are given up by the next run.
        if "NoSuchUpload" not in str(error):
            raise
        raise s3.ConflictError(uri) from None


def _abort(uri: str, **upload: str) -> None:
    s3.call("abort_multipart_upload", uri, **upload)


def _told(uri: str, size: int | None, answer: dict[str, Any]) -> ObjectStat:
    """Facts that S3 tells of an object, by HEAD or in a listing; stores leave out some of them."""
    if size is None:
        raise StorageError(f"{uri}: the store does not tell how long it is")
    modified = answer.get("LastModified")
    return ObjectStat(size, answer.get("ETag", ""), modified.timestamp() if modified is not None else 0.0)


def _place(uri: str) -> dict[str, str]:
    bucket, key = _split(uri)
    return {"Bucket": bucket, "Key": key}


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    names = key.rstrip("/").split("/")
    if not bucket or not key or any(name in ("", ".", "..") for name in names):
        raise UserError(f"{uri}: expected s3://bucket/key, without empty, '.' or '..' names")
    return bucket, key
