"""Requests to an S3 store: one client a process, retries while the store is unwell, errors said in one clear line.

Credentials and endpoint come from the standard environment of boto3; nothing here ever prints a secret.
"""

import functools
import os
from typing import Any

import tenacity

from latte.errors import LatteError, NotThereError, StorageError, UserError

# Every kind of failure that another try can mend ends after this long.
RETRY_FOR_S = float(os.environ.get("LATTE_S3_RETRY_S", "60"))
# An answer that takes longer than this to begin or go on is asked for again.
_READ_TIMEOUT = "LATTE_S3_READ_TIMEOUT_S"
_CHUNK_BYTES = 8 << 20
_PART_ATTEMPTS = 5
_USER_CODES = {
    "InvalidAccessKeyId": "the access key is not known there; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret does not fit the access key; check AWS_SECRET_ACCESS_KEY",
    "AccessDenied": "access denied; check the credentials and the bucket's policy",
    "ExpiredToken": "the session token has expired; renew AWS_SESSION_TOKEN",
    "InvalidToken": "the session token is not valid; renew AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "the request came at another time than it says; set this machine's clock",
    "NoSuchBucket": "no such bucket; create it first",
    "403": "access denied; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
_FULL_CODES = {
    "QuotaExceeded": "the bucket's quota is used up; raise it or delete something",
    "InsufficientStorage": "no space left in the store",
    "XMinioStorageFull": "no space left in the store",
}
_ENVIRONMENT = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    _READ_TIMEOUT,
)
_MISSING_CODES = {"404", "NoSuchKey", "NotFound"}
_CONFLICT_CODES = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}


class ConflictError(Exception):
    """A conditional write found another version."""


class UnsupportedError(StorageError):
    """The store answered that it does not know this kind of request (501)."""


@functools.cache
def _client(_pid: int, *_environment: str | None) -> Any:
    import boto3.session
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config as BotoConfig

    # A session of its own: boto3's default session keeps the credentials that it saw first.
    session = boto3.session.Session()

    def client(attempts: int) -> Any:
        return session.client(
            "s3",
            region_name=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
            config=BotoConfig(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": attempts, "mode": "standard"},
                connect_timeout=5,
                read_timeout=float(os.environ.get(_READ_TIMEOUT, "20")),
                max_pool_connections=32,
                # Stores before 2025 refuse trailing checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    # Retries are ours (below): one place, one time limit. But a file of hundreds of parts would begin again at its
    # first part each time one of them fails, and on a store with a few faults in a hundred never reach its end.
    transfer = TransferConfig(preferred_transfer_client="classic", multipart_chunksize=_CHUNK_BYTES)
    return client(attempts=1), client(attempts=_PART_ATTEMPTS), transfer


def call(operation: str, uri: str, **arguments: Any) -> Any:
    """One S3 request, retried with growing pauses for RETRY_FOR_S while the store is unwell."""
    import boto3.exceptions
    import botocore.exceptions as boto_errors

    passing = (
        boto_errors.HTTPClientError,
        boto_errors.ConnectionError,
        boto_errors.IncompleteReadError,
        _UnwellError,
        boto3.exceptions.RetriesExceededError,
        ConnectionError,
        TimeoutError,
    )
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(passing),
        stop=tenacity.stop_after_delay(RETRY_FOR_S),
        wait=tenacity.wait_exponential_jitter(initial=0.2, max=8, jitter=0.2),
        reraise=True,
    )
    try:
        return retrying(_once, operation, uri, arguments)
    except (LatteError, ConflictError):
        raise
    except (boto_errors.NoCredentialsError, boto_errors.PartialCredentialsError):
        raise UserError(f"{uri}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except passing as error:
        raise StorageError(f"{uri}: the store did not answer for {RETRY_FOR_S:.0f} s: {error}") from error


class _UnwellError(Exception):
    """The store answered that it is busy or broken (429, 5xx)."""


def _once(operation: str, uri: str, arguments: dict[str, Any]) -> Any:
    import boto3.exceptions
    import botocore.exceptions as boto_errors
    import urllib3.exceptions

    # A client does not survive a fork, and the environment may name another store by now.
    environment = [os.environ.get(name) for name in _ENVIRONMENT]
    client, in_parts, transfer = _client(os.getpid(), *environment)
    extra = {}
    if operation in ("upload_file", "download_file"):
        client, extra = in_parts, {"Config": transfer}
    try:
        answer = getattr(client, operation)(**arguments, **extra)
        if operation == "get_object":
            answer["Data"] = answer["Body"].read()
    except boto_errors.ClientError as error:
        _raise_for(error, uri)
    except boto3.exceptions.S3UploadFailedError as error:
        # boto3 wraps the cause as text, but keeps it as the context.
        if isinstance(error.__context__, boto_errors.ClientError):
            _raise_for(error.__context__, uri)
        raise _UnwellError(str(error)) from error
    except urllib3.exceptions.HTTPError as error:
        raise _UnwellError(f"the answer broke off: {error}") from error
    return answer


def _raise_for(error: Any, uri: str) -> None:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
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
    if code in ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable") or status == 429 or status >= 500:
        raise _UnwellError(f"{code} ({status})") from error
    said = " ".join(str(error.response.get("Error", {}).get("Message", "")).split())
    raise StorageError(f"{uri}: the store refused: {code} {said}") from None
