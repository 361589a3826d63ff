"""What an S3 store refuses, as one line that says what to change; what it may yet grant is asked for again."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from latte import storage
from latte.errors import LatteError, StorageError, UserError


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A server on loopback that answers every request with one S3 error; `count` tells how often it was asked."""
    state = SimpleNamespace(status=403, code="AccessDenied", count=0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _refuse(self) -> None:
            state.count += 1
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = f"<Error><Code>{state.code}</Code><Message>no\nand why</Message></Error>".encode()
            self.send_response(state.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = _refuse  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "the-secret")
    monkeypatch.setenv("LATTE_S3_RETRY_S", "2.5")
    yield state
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (403, "InvalidAccessKeyId", UserError, "check AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", UserError, "check AWS_SECRET_ACCESS_KEY"),
        (403, "AccessDenied", UserError, "the bucket's policy"),
        (400, "ExpiredToken", UserError, "has expired; renew AWS_SESSION_TOKEN"),
        (400, "InvalidToken", UserError, "renew AWS_SESSION_TOKEN"),
        (403, "RequestTimeTooSkewed", UserError, "set this machine's clock"),
        (404, "NoSuchBucket", UserError, "no such bucket; create it first"),
        (403, "QuotaExceeded", StorageError, "the bucket's quota is used up"),
        (507, "InsufficientStorage", StorageError, "no space left"),
        (400, "Surprise", StorageError, "the store refused: Surprise no and why"),
    ],
)
def test_what_cannot_change_by_itself_is_told_at_once(
    refusing: SimpleNamespace, status: int, code: str, kind: type[LatteError], message: str
) -> None:
    refusing.status, refusing.code = status, code
    with pytest.raises(kind) as caught:
        storage.write_bytes("s3://bucket/key", b"x")
    said = str(caught.value)
    assert said.startswith("s3://bucket/key: ")
    assert message in said
    assert "\n" not in said
    assert "the-secret" not in said
    assert refusing.count == 1
    assert type(caught.value) is kind


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (429, "TooManyRequests"), (500, "InternalError")])
def test_what_may_pass_is_asked_for_again(refusing: SimpleNamespace, status: int, code: str) -> None:
    refusing.status, refusing.code = status, code
    with pytest.raises(StorageError, match="the store did not answer for"):
        storage.write_bytes("s3://bucket/key", b"x")
    assert refusing.count > 1
