"""Requests to an S3 store: one client a process, retries while the store is unwell, errors said in one clear line.

Credentials and endpoint come from the standard environment of boto3 (`s3_client`); nothing here ever prints a secret.
"""

import functools
import hashlib
import time
from dataclasses import dataclass
from typing import Any, BinaryIO

import tenacity

from latte.errors import NotThereError, StorageError, UserError
from latte.storage import s3_answers, s3_client
from latte.storage.backend import UnsupportedError
from latte.storage.s3_answers import UnwellError

# Before each try of a PUT that was answered and not stored.
_PUT_PAUSES_S = (0.0, 0.5, 2.0)
_CLIENTS = 8  # that are kept: of stores that the environment of this process has named in turn
_VIRTUAL = "this store wants buckets as names of hosts; set LATTE_S3_ADDRESSING_STYLE=virtual"
_USER_CODES = {
    "InvalidAccessKeyId": "the access key is not known there; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret does not fit the access key; check AWS_SECRET_ACCESS_KEY",
    "AccessDenied": "access denied; check the credentials and the bucket's policy",
    "ExpiredToken": "the session token has expired; renew AWS_SESSION_TOKEN",
    "InvalidToken": "the session token is not valid; renew AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "the request came at another time than it says; set this machine's clock",
    "NoSuchBucket": "no such bucket; create it first",
    "403": "access denied; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    # As OSS, COS and TOS call it.
    "SecondLevelDomainForbidden": _VIRTUAL,
    "PathStyleDomainForbidden": _VIRTUAL,
    "InvalidPathAccess": _VIRTUAL,
}
_FULL_CODES = {
    "QuotaExceeded": "the bucket's quota is used up; raise it or delete something",
    "InsufficientStorage": "no space left in the store",
    "XMinioStorageFull": "no space left in the store",
}
# BadDigest: the body did not arrive as it was sent.
_PASSING_CODES = {"SlowDown", "BadDigest", "RequestTimeout", "InternalError", "ServiceUnavailable"}
_MISSING_CODES = {"404", "NoSuchKey", "NotFound"}
_CONFLICT_CODES = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}


class ConflictError(Exception):
    """A conditional write found another version."""


@functools.lru_cache(_CLIENTS)
def _client(*_made_from: object) -> tuple[Any, Any, Any]:
    return s3_client.make()


def call(operation: str, uri: str, **arguments: Any) -> Any:
    """One S3 request, retried with growing pauses for LATTE_S3_RETRY_S seconds (60) while the store is unwell.

    The answer that is waited for when the time is over may yet take LATTE_S3_READ_TIMEOUT_S (20).
    """
    import boto3.exceptions
    import botocore.exceptions as boto_errors

    passing = (
        boto_errors.BotoCoreError,  # what no other try can mend has been explained by then
        UnwellError,
        boto3.exceptions.RetriesExceededError,
        ConnectionError,
        TimeoutError,
    )
    limit_s = s3_client.retry_s()
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(passing),
        stop=tenacity.stop_after_delay(limit_s),
        wait=tenacity.wait_exponential_jitter(initial=0.2, max=8, jitter=0.2),
        reraise=True,
    )
    _client(*s3_client.made_from())  # on a busy machine making one takes seconds, which are not the store's
    try:
        return retrying(_once, operation, uri, arguments)
    except passing as error:
        raise StorageError(f"{uri}: the store did not answer for {limit_s:.0f} s: {s3_answers.line(error)}") from error


@dataclass(frozen=True)
class Digests:
    """Facts of a body that is to be sent: size, SHA-256, and the ETag of the object where that is an MD5."""

    bytes: int
    sha256: str
    etag: str


def digests(body: BinaryIO) -> Digests:
    """Read a body once."""
    whole, size = hashlib.sha256(), 0
    parts: list[Any] = []
    while (data := body.read(s3_client.CHUNK_BYTES)) or not parts:
        whole.update(data)
        parts.append(hashlib.md5(data, usedforsecurity=False))
        size += len(data)
    etag = parts[0].hexdigest()
    if size >= s3_client.CHUNK_BYTES:
        together = hashlib.md5(b"".join(part.digest() for part in parts), usedforsecurity=False)
        etag = f"{together.hexdigest()}-{len(parts)}"
    return Digests(size, whole.hexdigest(), etag)


def put(operation: str, uri: str, body: Digests, **arguments: Any) -> None:
    """A PUT, and a look at what is there then: stores have answered and kept nothing, or something else.

    Raises:
        StorageError: the store answers again and again, and does not have the object as it was sent.
    """
    for pause_s in _PUT_PAUSES_S:
        time.sleep(pause_s)
        call(operation, uri, **arguments)
        if is_stored(uri, body, {key: arguments[key] for key in ("Bucket", "Key")}):
            return
    raise StorageError(f"{uri}: the store answered that it was written, but does not have it so; look at its own log")


def copied(source: dict[str, str], uri: str, body: Digests, place: dict[str, str]) -> bool:
    """Copy an object within the store, in parts as an upload has them.

    Returns:
        Whether it is there then with the size and the ETag of an upload. Some stores make up ETags of copied parts, by
        which nobody would know the content again.
    """
    try:
        call("copy", uri, CopySource=source, **place)
        found = call("head_object", uri, **place)
    except (NotThereError, UnsupportedError):
        return False
    return (found["ContentLength"], found.get("ETag", "").strip('"')) == (body.bytes, body.etag)


def is_stored(uri: str, body: Digests, place: dict[str, str]) -> bool:
    """Whether an object is there as it was sent: by size and ETag, by its content where the ETag is no MD5."""
    try:
        found = call("head_object", uri, **place)
    except NotThereError:
        return False
    if found["ContentLength"] != body.bytes:
        return False
    if found.get("ETag", "").strip('"') == body.etag:
        return True
    # An ETag that is no MD5 of the parts, as with keys of a KMS: only the content tells.
    content = hashlib.sha256()
    for start in range(0, body.bytes, s3_client.CHUNK_BYTES):
        last = min(start + s3_client.CHUNK_BYTES, body.bytes) - 1
        content.update(call("get_object", uri, Range=f"bytes={start}-{last}", **place)["Data"])
    return content.hexdigest() == body.sha256


def _once(operation: str, uri: str, arguments: dict[str, Any]) -> Any:
    import boto3.exceptions
    import botocore.exceptions as boto_errors
    import urllib3.exceptions
    from botocore.parsers import ResponseParserError

    # A client does not survive a fork, and the environment may name another store by now.
    client, in_parts, transfer = _client(*s3_client.made_from())
    extra = {}
    if operation in ("upload_file", "download_file", "copy"):
        client, extra = in_parts, {"Config": transfer}
    try:
        answer = getattr(client, operation)(**arguments, **extra)
        if operation == "get_object":
            answer["Data"] = s3_answers.data(answer, arguments.get("Range"))
    except boto_errors.ClientError as error:
        _raise_for(error, uri)
    except boto3.exceptions.S3UploadFailedError as error:
        # boto3 wraps the cause as text, but keeps it as the context.
        if isinstance(error.__context__, boto_errors.ClientError):
            _raise_for(error.__context__, uri)
        raise UnwellError(str(error)) from error
    except boto_errors.BotoCoreError as error:
        explained = s3_answers.explained(error, uri)
        if explained is not None:
            raise explained from None
        raise
    except (urllib3.exceptions.HTTPError, ResponseParserError) as error:
        raise UnwellError(f"the answer broke off: {error}") from error
    return answer


def _raise_for(error: Any, uri: str) -> None:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    page = s3_answers.of_a_web_page(error, uri)
    if page is not None:
        raise page from None
    if code in _CONFLICT_CODES:
        raise ConflictError(uri) from None
    if code in _USER_CODES:
        raise UserError(f"{uri}: {_USER_CODES[code]}") from None
    if code in _FULL_CODES:
        raise StorageError(f"{uri}: {_FULL_CODES[code]}") from None
    if code in _MISSING_CODES:
        raise NotThereError(f"{uri}: no such object") from None
    if code == "NotImplemented" or status == 501:
        raise UnsupportedError(f"{uri}: the store does not support this request: {code}") from None
    if code in _PASSING_CODES or status == 429 or status >= 500:
        raise UnwellError(f"{code} ({status})") from error
    message = " ".join(str(error.response.get("Error", {}).get("Message", "")).split())
    raise StorageError(f"{uri}: the store refused: {code} {message}") from None
