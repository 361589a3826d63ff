"""Answers of an S3 store: whether one is an answer at all, whether it is whole, and what its errors mean."""

from typing import Any
from urllib.parse import urlsplit

from latte.errors import LatteError, StorageError, UserError

# What must be in these answers: of anything else botocore makes one that says nothing, an empty listing for example.
_WITH_BODY = {
    "ListObjectsV2": b"ListBucketResult",
    "CreateMultipartUpload": b"UploadId",
    "CompleteMultipartUpload": b"CompleteMultipartUploadResult",
}
_MOVED = {301, 302, 303, 307, 308}


class UnwellError(Exception):
    """The store answered that it is busy or broken (429, 5xx), or with what is no whole answer: ask again."""


def watch(client: Any) -> None:
    """Have every answer that a client gets looked at before botocore makes something of it."""
    # Before botocore's own, which asks the same server again where the bucket might have moved to, without end.
    client.meta.events.register_first("needs-retry.s3", _refuse_redirects)
    client.meta.events.register_first("before-parse.s3", _doubt)


def data(answer: dict[str, Any], wanted: str | None) -> bytes:
    """The body of an answer to `get_object`; of the range `wanted` where a server sends the whole object instead.

    Raises:
        UnwellError: it is shorter than the answer says.
    """
    body: bytes = answer["Body"].read()
    if wanted is None:
        return body
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    span = answer.get("ContentRange", "").removeprefix("bytes ").partition("/")[0]
    if not span:
        return body[int(first) : int(last) + 1 if last else None]
    begin, _, end = span.partition("-")
    if int(begin) != int(first) or int(end) - int(begin) + 1 != len(body):
        raise UnwellError(f"asked for {wanted}, the answer says {span} and has {len(body)} bytes")
    return body


def explained(error: Any, uri: str) -> LatteError | None:
    """The one line for a failure of the client's that no other try can mend; None for the others."""
    import botocore.exceptions as boto_errors

    if isinstance(error, boto_errors.NoCredentialsError | boto_errors.PartialCredentialsError):
        return UserError(f"{uri}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, boto_errors.SSLError):
        return _of_tls(error, uri)
    if type(error) is boto_errors.HTTPClientError and isinstance(_cause(error), ValueError | AssertionError):
        # A header or an address that cannot be sent. Not shown: it may hold a secret.
        return UserError(
            f"{uri}: the request cannot be sent; check the AWS_… and the proxy variables for odd characters"
        )
    passing = (
        boto_errors.ConnectionError,
        boto_errors.HTTPClientError,
        boto_errors.IncompleteReadError,
        boto_errors.FlexibleChecksumError,
    )
    if isinstance(error, passing):
        return None
    message = line(error).removeprefix("Parameter validation failed: ")
    return UserError(f"{uri}: {message}")


def of_a_web_page(error: Any, uri: str) -> LatteError | None:
    """The one line for an error that no S3 store has written, by what it is written in; None for a store's own."""
    metadata = error.response.get("ResponseMetadata", {})
    code = error.response.get("Error", {}).get("Code")
    kind = metadata.get("HTTPHeaders", {}).get("content-type", "")
    status = metadata.get("HTTPStatusCode", 0)
    if error.operation_name.startswith("Head") or status >= 500 or status == 429:
        return None
    if code and not (kind.startswith("text/html") and str(code) == str(status)):
        return None
    return StorageError(f"{uri}: {status}, a web page and not the answer of an S3 store; check AWS_ENDPOINT_URL_S3")


def line(text: object) -> str:
    """It, in one line."""
    return " ".join(str(text).split())


def _refuse_redirects(response: Any = None, **_: Any) -> None:
    """One line for an answer that sends the client elsewhere, but for AWS's own, which name the bucket's region."""
    if response is None:
        return
    answer, parsed = response
    region = answer.headers.get("x-amz-bucket-region") or parsed.get("Error", {}).get("Region")
    if answer.status_code not in _MOVED or region:
        return
    target = urlsplit(line(answer.headers.get("location") or ""))
    if target.hostname:
        where = f"{target.scheme or 'https'}://{target.netloc.rpartition('@')[2]}"
        raise UserError(f"the store sends this request to another address; set AWS_ENDPOINT_URL_S3={where}")
    raise UserError("the store sends this request to another address and does not say which; check AWS_ENDPOINT_URL_S3")


def _doubt(response_dict: dict[str, Any], operation_model: Any, **_: Any) -> None:
    """Words that no store says, a portal's page or a part of an answer, count as a failure of the way there (502)."""
    name, status, body = operation_model.name, response_dict["status_code"], response_dict["body"]
    headers = {key.lower(): value for key, value in response_dict["headers"].items()}
    if status not in (200, 206) or name.startswith("Head") or (isinstance(body, bytes) and b"<Error" in body):
        return  # botocore sees to errors that come as 200
    length = headers.get("content-length")
    chunked = "chunked" in headers.get("transfer-encoding", "")
    kind = headers.get("content-type", "")
    if kind.startswith("text/html") and "etag" not in headers:
        unsound = True
    elif isinstance(body, bytes):
        # botocore reads such bodies without comparing their length.
        unsound = _WITH_BODY.get(name, b"") not in body or (str(length).isdecimal() and int(str(length)) != len(body))
    else:
        # Without a length nobody can tell a body's end from a connection that was cut; objects come with an ETag.
        unsound = (length is None and not chunked) or (kind.startswith("application/xml") and "etag" not in headers)
    if unsound:
        response_dict.update(status_code=502, body=b"")
    elif name == "UploadPart" and "etag" not in headers:
        raise StorageError(
            "the store tells no ETag of a part of a file: no object of more than 8 MiB can be written there"
        )


def _of_tls(error: Any, uri: str) -> LatteError | None:
    message = line(_cause(error) or error)
    if "CERTIFICATE_VERIFY_FAILED" in message:
        why = message.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or "it cannot be verified"
        return UserError(
            f"{uri}: the store's certificate is not trusted ({why}); name its authority's file in AWS_CA_BUNDLE"
        )
    if "WRONG_VERSION_NUMBER" in message or "RECORD_LAYER_FAILURE" in message:
        return UserError(f"{uri}: the store does not speak TLS there; set AWS_ENDPOINT_URL_S3 to http://…")
    return None


def _cause(error: Any) -> BaseException | None:
    """Exception of the HTTP library below; botocore keeps it as an argument of the message."""
    found: BaseException | None = error.kwargs.get("error")
    return found
