"""What the environment says of an S3 store: it is used as it is now, or what is wrong with it is one line at once."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from latte import storage
from latte.errors import LatteError, StorageError, UserError

URI = "s3://bucket/key"
AT_ONCE_S = 30  # a busy machine; the retries would go on for 60
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the user's own settings nothing is left."""
    for name in os.environ:
        if name.startswith(("AWS_", "LATTE_S3_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def server() -> Iterator[Callable[..., SimpleNamespace]]:
    """Starts a server on loopback that gives every request one answer; `seen` lists (method, host, path, headers)."""
    with ExitStack() as running:

        def start(status: int = 404, headers: dict[str, str] | None = None, body: bytes = b"") -> SimpleNamespace:
            state = SimpleNamespace(seen=[])

            class Handler(BaseHTTPRequestHandler):
                protocol_version = "HTTP/1.1"

                def _answer(self) -> None:
                    self.rfile.read(int(self.headers.get("Content-Length") or 0))
                    state.seen.append((self.command, self.headers["Host"], self.path, dict(self.headers)))
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(body)

                do_GET = do_PUT = do_HEAD = _answer  # noqa: N815

                def log_message(self, *_: object) -> None:
                    """Quiet."""

            served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            threading.Thread(target=served.serve_forever, args=(0.05,), daemon=True).start()
            running.callback(served.server_close)
            running.callback(served.shutdown)
            state.port = served.server_port
            state.endpoint = f"http://127.0.0.1:{state.port}"
            return state

        yield start


def refused(kind: type[LatteError] = UserError, call: Callable[[], object] = lambda: storage.stat(URI)) -> str:
    """The line of the error that comes at once and shows no secret."""
    began = time.monotonic()
    with pytest.raises(LatteError) as caught:
        call()
    assert time.monotonic() - began < AT_ONCE_S
    said = str(caught.value)
    assert type(caught.value) is kind, said
    assert "\n" not in said
    assert "the-secret" not in said
    return said


def test_another_endpoint_in_the_environment_is_asked_from_then_on(
    server: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = server(), server()
    for state in (first, second, first):
        monkeypatch.setenv("AWS_ENDPOINT_URL", state.endpoint)
        assert storage.stat(URI) is None
    assert [len(first.seen), len(second.seen)] == [2, 1]


def test_a_changed_credentials_file_is_read_again(
    server: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = server()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.endpoint)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / ".aws").mkdir()
    for key in ("old", "renewed"):
        (tmp_path / ".aws/credentials").write_text(
            f"[default]\naws_access_key_id = {key}\naws_secret_access_key = the-secret\n"
        )
        storage.stat(URI)
    assert [headers["Authorization"].split("=")[1].split("/")[0] for *_, headers in store.seen] == ["old", "renewed"]


@pytest.mark.parametrize(
    ("variable", "of_profile", "region"),
    [(None, "region = garage\n", "garage"), ("here", "region = garage\n", "here"), (None, "", "us-east-1")],
)
def test_the_region_is_the_variable_s_or_the_profile_s(
    server: Callable[..., SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str | None,
    of_profile: str,
    region: str,
) -> None:
    store = server()
    (tmp_path / "config").write_text(f"[profile corp]\n{of_profile}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "corp")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.endpoint)
    if variable:
        monkeypatch.setenv("AWS_REGION", variable)
    storage.stat(URI)
    assert store.seen[0][3]["Authorization"].split("/")[2] == region


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_store_on_this_machine_is_never_asked_through_a_proxy(
    server: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    store, proxy = server(), server(502)
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{store.port}")
    assert storage.stat(URI) is None
    assert (len(store.seen), len(proxy.seen)) == (1, 0)


def test_a_store_elsewhere_is_asked_through_the_proxy_as_before(
    server: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = server()
    monkeypatch.setenv("http_proxy", proxy.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.example.com")
    assert storage.stat(URI) is None
    assert proxy.seen[0][:3] == ("HEAD", "s3.example.com", "http://s3.example.com/bucket/key")


@pytest.mark.parametrize(
    ("setting", "of_profile", "host", "path"),
    [
        ("", "", "s3.test", "/bucket/key"),
        ("virtual", "", "bucket.s3.test", "/key"),
        ("", "s3 =\n    addressing_style = virtual\n", "bucket.s3.test", "/key"),
        ("path", "s3 =\n    addressing_style = virtual\n", "s3.test", "/bucket/key"),
    ],
)
def test_buckets_are_paths_or_as_the_setting_or_the_profile_says_hosts(
    server: Callable[..., SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    setting: str,
    of_profile: str,
    host: str,
    path: str,
) -> None:
    proxy = server()  # asked for names that no resolver knows
    monkeypatch.setenv("http_proxy", proxy.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.test")
    monkeypatch.setenv("LATTE_S3_ADDRESSING_STYLE", setting)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").write_text(f"[default]\n{of_profile}")
    storage.stat(URI)
    assert proxy.seen[0][1:3] == (host, f"http://{host}{path}")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "localhost:9000", "http//s3", "ftp://s3", "http://s3:port"])
def test_an_endpoint_that_is_no_url_is_told_with_one_that_is(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    said = refused()
    assert f"AWS_ENDPOINT_URL_S3={endpoint!r}" in said
    assert "http://127.0.0.1:8333" in said


def test_a_password_in_an_endpoint_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://user:the-secret@s3.example.com")
    assert "AWS_ENDPOINT_URL_S3: expected http(s)://host:port alone" in refused()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"AWS_PROFILE": "nope"}, "profile (nope) could not be found"),
        ({"AWS_REGION": "us east"}, "'us east'"),
        (
            {"LATTE_S3_READ_TIMEOUT_S": "soon"},
            "LATTE_S3_READ_TIMEOUT_S='soon': expected seconds above 0",
        ),
        ({"LATTE_S3_RETRY_S": "-1"}, "LATTE_S3_RETRY_S='-1': expected seconds above 0, for example 60"),
        ({"LATTE_S3_ADDRESSING_STYLE": "host"}, "expected one of path, virtual, auto"),
        ({"AWS_SESSION_TOKEN": "the-secret\n"}, ""),
    ],
)
def test_a_setting_that_cannot_be_right_is_told_at_once(
    server: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server().endpoint)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert said in refused()


def test_an_empty_setting_is_none(server: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server().endpoint)
    for name in ("LATTE_S3_READ_TIMEOUT_S", "LATTE_S3_RETRY_S", "LATTE_S3_ADDRESSING_STYLE", "AWS_REGION"):
        monkeypatch.setenv(name, "")
    assert storage.stat(URI) is None


def test_a_config_file_that_cannot_be_parsed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert str(tmp_path / "config") in refused()


def test_a_bad_name_of_a_bucket_is_one_line() -> None:
    assert 'Invalid bucket name "My Bucket"' in refused(call=lambda: storage.write_bytes("s3://My Bucket/k", b""))


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\xff\xfe\x00"])
def test_a_bad_file_of_certificates_is_told_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example.com")
    assert f"AWS_CA_BUNDLE='{tmp_path / 'ca.pem'}'" in refused()


def test_a_bad_file_of_certificates_does_not_matter_without_tls(
    server: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server().endpoint)
    assert storage.stat(URI) is None


def test_tls_where_there_is_none_is_told_at_once(
    server: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server().endpoint.replace("http", "https"))
    assert "does not speak TLS there" in refused()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_names_the_address_to_set(
    server: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    store = server(status, {"Location": "https://s3.example.com/bucket"}, b"<html>moved</html>")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.endpoint)
    for call in (
        lambda: storage.stat(URI),
        lambda: storage.list_uris("s3://bucket/p"),
        lambda: storage.read_bytes(URI),
        lambda: storage.write_bytes(URI, b"x"),
    ):
        assert "set AWS_ENDPOINT_URL_S3=https://s3.example.com" in refused(call=call)
    assert len(store.seen) == 4


def test_answers_without_an_etag_or_a_date_are_enough_to_read(
    server: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server(200, {}, b"content").endpoint)
    assert storage.stat(URI) == storage.ObjectStat(7, "", 0.0)
    assert storage.read_bytes(URI) == b"content"
    assert storage.read_bytes(URI, 1, 3) == b"ont"  # of a server that does not know ranges
    assert "tells no ETag" in refused(StorageError, lambda: storage.swap(URI, b"new", ""))


def test_a_listing_without_etags_and_dates_is_read(
    server: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = b"<ListBucketResult><Contents><Key>p/a</Key><Size>3</Size></Contents></ListBucketResult>"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server(200, {"Content-Type": "application/xml"}, listing).endpoint)
    assert storage.list_objects("s3://bucket/p") == {"s3://bucket/p/a": storage.ObjectStat(3, "", 0.0)}


def test_a_listing_that_never_ends_is_one_line(
    server: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = b"<IsTruncated>true</IsTruncated>"
    for token in (b"", b"<NextContinuationToken>same</NextContinuationToken>"):
        listing = b"<ListBucketResult>" + more + token + b"</ListBucketResult>"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server(200, {}, listing).endpoint)
        assert "where its listing goes on" in refused(StorageError, lambda: storage.list_uris("s3://bucket/p"))


@pytest.mark.parametrize("status", [403, 404, 405])
def test_a_web_page_instead_of_an_error_is_called_one(
    server: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    page = b"<html><body>the gateway's page<br></body></html>"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server(status, {"Content-Type": "text/html"}, page).endpoint)
    said = refused(StorageError, lambda: storage.write_bytes(URI, b"x"))
    assert f"{URI}: {status}, a web page" in said
