"""The client of an S3 store, made from the environment: endpoint, proxy, certificate authority, region, time limits.

What is wrong with the environment is one line before anything is sent.
"""

import base64
import contextlib
import hashlib
import io
import ipaddress
import math
import os
import ssl
import time
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from latte.errors import UserError
from latte.storage import s3_answers

# Every kind of failure that another try can mend ends after this long.
_RETRY = "LATTE_S3_RETRY_S"
# An answer that takes longer than this to begin or to go on is asked for again, and so is one that trickles.
_READ_TIMEOUT = "LATTE_S3_READ_TIMEOUT_S"
# "path": https://host/bucket/key, which every server understands; "virtual": https://bucket.host/key.
ADDRESSING = "LATTE_S3_ADDRESSING_STYLE"
_STYLES = ("path", "virtual", "auto")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_TRICKLE_BYTES_PER_S = 1024
# Files of this size or more are uploaded in parts of it, which their ETags show.
CHUNK_BYTES = 8 << 20
_PART_ATTEMPTS = 5
# What a client is made from: the variables of these beginnings, proxies, and the files that some of them name.
_BEGINNINGS = ("AWS_", "LATTE_S3_")
_OTHERS = ("HOME", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_FILES = {
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CA_BUNDLE": "",
}


def retry_s() -> float:
    """Seconds for which a request is tried again while the store is unwell: LATTE_S3_RETRY_S, 60 where it is not set.

    Raises:
        UserError: it is no number above 0.
    """
    return _seconds(_RETRY, 60.0)


def made_from() -> tuple[object, ...]:
    """Key of a client: a process, as none outlives a fork, and what the environment says at present."""
    variables = sorted(
        (name, value)
        for name, value in os.environ.items()
        if name.startswith(_BEGINNINGS) or name.upper() in _OTHERS  # proxies are spelled in small letters, too
    )
    files = []
    for name, usual in _FILES.items():
        with contextlib.suppress(OSError):  # none there: nothing is read from it
            facts = Path(os.environ.get(name) or usual).expanduser().stat()
            files.append((name, facts.st_mtime_ns, facts.st_size))
    return os.getpid(), *variables, *files


def make() -> tuple[Any, Any, Any]:
    """Arguments that boto3 needs to speak to the store that the environment names.

    Returns:
        A client that sends each request once, one that tries the parts of a file again, and the settings of transfers.

    Raises:
        UserError: a variable or a file of the environment cannot be right.
    """
    import boto3.session
    import botocore.exceptions as boto_errors
    from boto3.s3.transfer import TransferConfig

    retry, timeout = retry_s(), _seconds(_READ_TIMEOUT, 20.0)
    for name in _ENDPOINTS:
        if os.environ.get(name):
            _check_endpoint(name, os.environ[name])
    try:
        # A session of its own: boto3's default session keeps the credentials that it saw first.
        session = boto3.session.Session()
        # botocore does not know AWS_REGION, and a profile may have one.
        region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
        once, in_parts = (_client(session, region, attempts, timeout) for attempts in (1, _PART_ATTEMPTS))
    except boto_errors.BotoCoreError as error:
        raise UserError(f"S3: {_line(error)}; check AWS_PROFILE, AWS_REGION and the files in ~/.aws") from None
    except (ValueError, OSError) as error:
        raise UserError(f"S3: {_line(error)}; check AWS_ENDPOINT_URL_S3 and the files in ~/.aws") from None
    _check_authority(session, once.meta.endpoint_url)
    _end_retries_of_parts(in_parts, retry)
    # Retries are the caller's: one place, one time limit. But a file of hundreds of parts would begin again at its
    # first part each time one of them fails, and on a store with a few faults in a hundred never reach its end.
    transfer = TransferConfig(
        preferred_transfer_client="classic",
        multipart_threshold=CHUNK_BYTES,
        multipart_chunksize=CHUNK_BYTES,
        # Of answers that stall, as many as the time is enough for.
        num_download_attempts=min(max(int(retry / timeout), 1), _PART_ATTEMPTS),
    )
    return once, in_parts, transfer


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine: no proxy can reach what the URL means."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _client(session: Any, region: str, attempts: int, timeout: float) -> Any:
    from botocore.config import Config

    def client(**more: Any) -> Any:
        return session.client(
            "s3",
            region_name=region,
            config=Config(
                s3={"addressing_style": _addressing_style(session)},
                retries={"total_max_attempts": attempts, "mode": "standard"},
                connect_timeout=5,
                read_timeout=timeout,
                max_pool_connections=32,
                # Stores before 2025 refuse trailing checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                **more,
            ),
        )

    s3 = client()
    # Only a client knows its endpoint: it may come from a file. A proxy would look for the store on its own machine.
    if getproxies() and is_loopback(s3.meta.endpoint_url):
        s3 = client(proxies={})
    _refuse_trickles(s3, timeout)
    s3_answers.watch(s3)
    for operation in ("PutObject", "UploadPart"):
        s3.meta.events.register(f"before-call.s3.{operation}", _add_content_md5)
    return s3


def _add_content_md5(params: dict[str, Any], **_: Any) -> None:
    """Send the MD5 of a body along: a server refuses what does not arrive as it was sent."""
    body, md5 = params["body"], hashlib.md5(usedforsecurity=False)
    if isinstance(body, bytes | bytearray):
        md5.update(body)
    else:
        start = body.tell()
        while data := body.read(1 << 20):
            md5.update(data)
        body.seek(start)
    params["headers"]["Content-MD5"] = base64.b64encode(md5.digest()).decode()


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "").strip()
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"{name}={text!r}: expected seconds above 0, for example {default:.0f}")
    return seconds


def _addressing_style(session: Any) -> Any:
    style = os.environ.get(ADDRESSING, "").strip()
    if not style:
        of_profile = session._session.get_scoped_config().get("s3")
        style = of_profile.get("addressing_style", "") if isinstance(of_profile, dict) else ""
    if style and style not in _STYLES:
        raise UserError(f"{ADDRESSING}={style!r}: expected one of {', '.join(_STYLES)}")
    return style or "path"


def _check_endpoint(name: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url == "".join(url.split())
    except ValueError:
        good = False
    if not good:
        raise UserError(f"{name}={url!r}: expected a URL, for example https://s3.example.com or http://127.0.0.1:8333")
    if parts.username or parts.password or parts.query or parts.fragment:
        # Not shown: what stands there may be a secret.
        raise UserError(f"{name}: expected http(s)://host:port alone, without a user, a password or a query")


def _check_authority(session: Any, endpoint: str) -> None:
    bundle = session._session.get_config_variable("ca_bundle")
    if not bundle or not endpoint.startswith("https:"):
        return
    path = Path(bundle)
    try:
        ssl.create_default_context(**{"capath" if path.is_dir() else "cafile": bundle})
    except (OSError, ValueError) as error:
        reason = "no certificates in it" if isinstance(error, ssl.SSLError | ValueError) else error.strerror
        raise UserError(
            f"AWS_CA_BUNDLE={bundle!r}: {reason}; name a file of certificates (PEM), or leave it unset"
        ) from None


def _end_retries_of_parts(client: Any, limit_s: float) -> None:
    """Let botocore try a request again only while the time for it lasts."""

    def begin(context: dict[str, Any], **_: Any) -> None:
        context["latte_began"] = time.monotonic()

    def look(request_dict: dict[str, Any], response: Any = None, caught_exception: Any = None, **_: Any) -> None:
        failure = caught_exception or (response is not None and response[0].status_code >= 500 and response[1])
        if failure and time.monotonic() - request_dict["context"]["latte_began"] > limit_s:
            raise s3_answers.UnwellError(failure)  # not of the kinds that s3transfer asks for again

    client.meta.events.register("before-call.s3", begin)
    client.meta.events.register_first("needs-retry.s3", look)


def _refuse_trickles(client: Any, window_s: float) -> None:
    """Time limits of sockets start again with each byte: end an answer that brings next to nothing for `window_s`."""
    from botocore import awsrequest

    class Response(HTTPResponse):
        def __init__(self, sock: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(sock, *arguments, **options)
            self.fp = io.BufferedReader(_Steady(self.fp.detach(), window_s))

    class Connection(awsrequest.AWSHTTPConnection):
        response_class = Response  # type: ignore[assignment]

    class TLSConnection(awsrequest.AWSHTTPSConnection):
        response_class = Response  # type: ignore[assignment]

    class Pool(awsrequest.AWSHTTPConnectionPool):
        ConnectionCls = Connection

    class TLSPool(awsrequest.AWSHTTPSConnectionPool):
        ConnectionCls = TLSConnection

    # botocore has no setting for it; its manager of connections and those of proxies look into this one dictionary.
    client._endpoint.http_session._pool_classes_by_scheme.update(http=Pool, https=TLSPool)


class _Steady(io.RawIOBase):
    """Reads on while enough comes.

    Only the time that is spent waiting counts, not what the reader does with what came, and not the wait for the first
    byte, for which the socket has its own limit.
    """

    def __init__(self, raw: io.RawIOBase, window_s: float) -> None:
        self._raw, self._window_s = raw, window_s
        self._waited_s, self._bytes, self._begun = 0.0, 0, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        began = time.monotonic()
        count = self._raw.readinto(buffer)
        if self._begun:
            self._waited_s += time.monotonic() - began
            self._bytes += count or 0
            if self._waited_s >= self._window_s:
                if self._bytes < self._window_s * _TRICKLE_BYTES_PER_S:
                    raise TimeoutError(f"{self._bytes} bytes in {self._waited_s:.0f} s")
                self._waited_s, self._bytes = 0.0, 0
        self._begun = True
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _line(text: object) -> str:
    return " ".join(str(text).split())
