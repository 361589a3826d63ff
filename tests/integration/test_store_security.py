"""Another user of this machine, who knows every port of a run's store, sees nothing of it and changes nothing.

SeaweedFS answers on eight ports and some sockets. All are asked, by HTTP and gRPC, in the clear, through TLS and with a
certificate of the other user's own making. The same attempts do get in where the store is started without its keys, and
with the store's own certificate.
"""

import contextlib
import http.client
import json
import os
import socket
import ssl
import stat
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from latte import storage
from latte.errors import StorageError
from pipelines import store, store_security
from pipelines.store import BUCKET, Store, serve

OBJECT = f"s3://{BUCKET}/private/object"
CONTENT = b"nobody else's business"
NOBODY = 65534
TIMEOUT_S = 5.0
SERVICES = ("s3", "master", "volume", "filer")

READS = [
    ("GET", path)
    for path in (
        "/", "/latte", "/latte/private/object", "/?Action=ListUsers&Version=2010-05-08", "/buckets/latte/private/",
        "/buckets/latte/private/object", "/dir/status", "/dir/lookup?collection=latte", "/vol/status",
        "/cluster/status", "/status", "/ui/index.html", "/metrics", "/debug/pprof/", "/stats/disk",
    )
]  # fmt: skip
WRITES = [
    ("PUT", "/latte/private/new"),
    ("POST", "/buckets/latte/private/new"),
    ("POST", "/dir/assign?collection=latte"),
    ("POST", "/vol/grow?count=1"),
    ("POST", "/submit"),
    ("DELETE", "/latte/private/object"),
    ("DELETE", "/buckets/latte/private/object"),
    ("DELETE", "/buckets/latte?recursive=true"),
    ("POST", "/col/delete?collection=latte"),
]


def text(number: int, value: str) -> bytes:
    """A string field of a protobuf message."""
    return bytes([number << 3 | 2, len(value)]) + value.encode()


CALLS_THAT_READ = [
    ("/filer_pb.SeaweedFiler/ListEntries", text(1, "/buckets/latte/private")),
    ("/master_pb.Seaweed/VolumeList", b""),
    ("/volume_server_pb.VolumeServer/VolumeServerStatus", b""),
    ("/grpc.health.v1.Health/Check", b""),
]
CALLS_THAT_WRITE = [
    ("/filer_pb.SeaweedFiler/DeleteEntry", text(1, "/buckets") + text(2, "latte") + b"\x20\x01\x28\x01"),
    ("/master_pb.Seaweed/CollectionDelete", text(1, "latte")),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users could look for, as a run's folder is."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        yield Path(parent) / "store"


def listening(served: Store) -> tuple[dict[int, str], list[Path]]:
    """The server's TCP ports, by what answers there, and its sockets in the file system."""
    process = psutil.Process(served.pid)
    options = dict(part.split("=", 1) for part in process.cmdline() if "=" in part)
    known = {}
    for name in SERVICES:
        port = int(options[f"-{name}.port"])
        known |= {port: name, port + 10000: f"{name} gRPC"}
    tcp = [found.laddr for found in process.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    assert {address.ip for address in tcp} == {"127.0.0.1"}
    assert {address.port for address in tcp} == set(known)
    paths = {found.laddr for found in process.net_connections("unix") if found.laddr}
    return known, [Path(process.cwd()) / path for path in sorted(paths)]


Ways = dict[str, ssl.SSLContext | None]


def tls(folder: Path | None = None) -> ssl.SSLContext:
    """TLS that takes any server, with the certificate in `folder` if there is one."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if folder is not None:
        context.load_cert_chain(folder / store_security.CERTIFICATE, folder / store_security.KEY)
    return context


@pytest.fixture
def ways(tmp_path: Path) -> Ways:
    """How another user may come: in the clear, through TLS, and with a certificate made as the store's own are."""
    store_security.write(tmp_path)
    return {"clear": None, "TLS": tls(), "TLS with a certificate": tls(tmp_path)}


@contextlib.contextmanager
def connection(port: int, context: ssl.SSLContext | None) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as plain:
        if context is None:
            yield plain
        else:
            context.set_alpn_protocols(["h2"])
            with context.wrap_socket(plain) as wrapped:
                yield wrapped


def http_answer(port: int, context: ssl.SSLContext | None, method: str, path: str) -> str | None:
    """The answer if the request was served, otherwise None."""
    if context is None:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    else:
        context.set_alpn_protocols(["http/1.1"])
        client = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)
    with contextlib.closing(client), contextlib.suppress(OSError, http.client.HTTPException):
        client.request(method, path, body=b"" if method == "GET" else b"theirs", headers={"Accept": "application/json"})
        answer = client.getresponse()
        body = answer.read()
        # A server that only says that it is alive gives nothing away.
        if answer.status < 400 and (body or method != "GET"):
            return f"{answer.status} {body[:80]!r}"
    return None


def grpc_answer(port: int, context: ssl.SSLContext | None, method: str, message: bytes) -> str | None:
    """What one call gives, frames of HTTP/2 and all, or None if the server does not even begin to speak it."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    def literal(prefix: bytes, *values: str) -> bytes:
        return prefix + b"".join(bytes([len(value)]) + value.encode() for value in values)

    headers = b"\x83\x86" + literal(b"\x04", method) + literal(b"\x01", "127.0.0.1")
    headers += literal(b"\x0f\x10", "application/grpc") + literal(b"\x00", "te", "trailers")
    body = b"\0" + len(message).to_bytes(4, "big") + message
    received = b""
    with contextlib.suppress(OSError), connection(port, context) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        client.sendall(frame(1, 4, 1, headers) + frame(0, 1, 1, body))
        while not ended(received) and (part := client.recv(1 << 16)):
            received += part
    # The first frame of a server that speaks HTTP/2 are its settings.
    return repr(received[-300:]) if received[3:4] == b"\x04" else None


def ended(received: bytes) -> bool:
    """Whether the frames hold the end of the first call, or are none."""
    while len(received) >= 9:
        size, kind, flags, stream = int.from_bytes(received[:3], "big"), received[3], received[4], received[5:9]
        if kind > 9 or (stream == b"\0\0\0\x01" and flags & 1):
            return True
        received = received[9 + size :]
    return False


def attempts(ports: dict[int, str], ways: Ways, writing: bool) -> list[tuple[str, str]]:
    """(port and attempt, what came of it) of every attempt that was served."""
    served = []
    for port, name in ports.items():
        for way, context in ways.items():
            for method, path in READS + WRITES * writing:
                served.append((f"{name}: {method} {path} ({way})", http_answer(port, context, method, path)))
            for call, message in CALLS_THAT_READ + CALLS_THAT_WRITE * writing:
                served.append((f"{name}: {call} ({way})", grpc_answer(port, context, call, message)))
    return [(attempt, answer) for attempt, answer in served if answer is not None]


def as_another_user(work: Callable[[], Any]) -> Any:
    """What `work` returns, as JSON, in a process of the user nobody; without root, of this user, but no credentials."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            os.chdir("/")
            with os.fdopen(writer, "w") as answer:
                json.dump(work(), answer)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as answer:
        told = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(told)


def closed_to_me(path: Path) -> bool:
    """Whether neither files nor a socket can be opened here."""
    try:
        if path.is_dir():
            os.listdir(path)
        else:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
    except PermissionError:
        return True
    return False


def test_another_user_gets_in_nowhere_even_where_the_store_was_open_before(
    folder: Path, ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store_security, "write", lambda folder: None)
        with pytest.raises(StorageError, match="speaks without TLS on port"), serve(folder):
            pass
        patch.setattr(store_security, "require_tls", lambda ports: None)
        with serve(folder) as served:
            for key, value in served.environment.items():
                monkeypatch.setenv(key, value)
            storage.write_bytes(OBJECT, CONTENT)
            ports, _ = listening(served)
            before = as_another_user(lambda: attempts(ports, ways, writing=False))
    open_ports = {attempt.split(":")[0] for attempt, _ in before}
    assert open_ports == {"master", "volume", "filer", "s3 gRPC", "master gRPC", "volume gRPC", "filer gRPC"}
    assert any(CONTENT.decode() in answer for _, answer in before)

    with serve(folder) as served:
        for key, value in served.environment.items():
            monkeypatch.setenv(key, value)
        ports, sockets = listening(served)
        assert as_another_user(lambda: attempts(ports, ways, writing=True)) == []
        with_key = attempts(ports, {"TLS with the store's own certificate": tls(folder)}, writing=False)
        assert {attempt.split(":")[0] for attempt, _ in with_key} == open_ports
        # What lies behind the certificate still wants signed requests.
        assert not any(CONTENT.decode() in answer or "filer: GET" in attempt for attempt, answer in with_key)
        assert storage.read_bytes(OBJECT) == CONTENT
        assert storage.list_uris(f"s3://{BUCKET}") == [OBJECT]
        if os.getuid() == 0:
            assert as_another_user(lambda: [str(path) for path in (folder, *sockets) if not closed_to_me(path)]) == []
        assert all(path.parent == folder or stat.S_IMODE(path.stat().st_mode) == 0o700 for path in sockets)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for secret in ("s3.json", store_security.KEY, store_security.SETTINGS):
            assert stat.S_IMODE((folder / secret).stat().st_mode) == 0o600
        shown = " ".join(psutil.Process(served.pid).cmdline())
        assert served.secret_key not in shown
    assert not [path for path in sockets if path.parent != folder and path.exists()]
    assert served.secret_key not in (folder / "weed.log").read_text(errors="replace")


def test_sockets_of_killed_servers_are_removed_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_SOCKETS_FOLDER", tmp_path)
    dead, young, alive, other, file = (
        tmp_path / name
        for name in (
            "seaweedfs-master-grpc-1.sock", "seaweedfs-s3-grpc-2.sock", "seaweedfs-filer-grpc-3.sock", "other.sock",
            "seaweedfs-volume-grpc-4.sock",
        )
    )  # fmt: skip
    for path in (dead, young, other):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    file.touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(alive))
        server.listen()
        for path in (dead, alive, other, file):
            os.utime(path, (time.time() - 120,) * 2)
        (tmp_path / "store" / "m4566").mkdir(parents=True)
        store._clear_earlier_starts(tmp_path / "store")
    assert sorted(tmp_path.glob("*.sock")) == sorted([young, alive, other, file])
    assert not list((tmp_path / "store").iterdir())
