"""A proxy on loopback before an S3 server that spoils requests and answers, as networks, gateways and S3 itself do.

The Host header is passed on as it came, since signatures cover it: a client signs for the proxy's address, and the
server checks what it receives.
"""

import contextlib
import http.client
import math
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = (
    "busy",
    "reset before",
    "reset after",
    "stall",
    "cut",
    "cut without a length",
    "drip",  # a byte now and then, without end
    "error in 200",
    "web page",
)
_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_ERROR = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We encountered an error.</Message></Error>"
_PAGE = b"<html><body>Log in to use this network.<br></body></html>"
_DRIP_S = 0.1


@dataclass
class Proxy:
    """A running proxy and what it does to requests.

    Attributes:
        endpoint: its address, for AWS_ENDPOINT_URL_S3.
        always: the fault of every request from now on.
        share: how many of the requests are spoiled, 0 to 1; which is drawn from a seed, and how goes in turn.
        stall_s: how long a stalled request gets no answer; longer than the client's read timeout.
        down_after: (method, text): the outage begins with the second such request whose path contains the text.
        down_for_s: how long it lasts; without end by default.
        down_path: it refuses the requests whose path contains this text; all by default.
        refused: the paths of the requests that it refused.
        planned: (method, text, fault): the next such request whose path contains the text meets the fault. Beside the
            others there are "swallow" (answered and not stored), "twice" (arrives twice, the second is answered) and
            "flip" (a bit of the body is another, on its way to the store or from it).
        injected: how often each fault was injected.
    """

    upstream: str
    stall_s: float
    always: str | None = None
    share: float = 0.0
    endpoint: str = ""
    down_after: tuple[str, str] | None = None
    down_for_s: float = math.inf
    down_path: str = ""
    refused: list[str] = field(default_factory=list)
    planned: list[tuple[str, str, str]] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    _draw: random.Random = field(default_factory=lambda: random.Random(0))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seen: int = 0
    _down_until: float = 0.0

    def fault(self, method: str, path: str) -> str | None:
        """What happens to the next request."""
        with self._lock:
            planned = next((plan for plan in self.planned if plan[0] == method and plan[1] in path), None)
            if planned is not None:
                self.planned.remove(planned)
                fault: str | None = planned[2]
            elif self.down_after is not None:
                self._seen += method == self.down_after[0] and self.down_after[1] in path
                if self._seen >= 2 and not self._down_until:
                    self._down_until = time.monotonic() + self.down_for_s
                down = self.down_path in path and time.monotonic() < self._down_until
                fault = "busy" if down else None
                self.refused += [path] if down else []
            else:
                turn = FAULTS[self.injected.total() % len(FAULTS)]
                fault = self.always or (turn if self._draw.random() < self.share else None)
            if fault is not None:
                self.injected[fault] += 1
            return fault

    def fail(self, after: tuple[str, str], for_s: float = math.inf, path: str = "") -> None:
        """Plan the next outage; see the attributes `down_…`."""
        with self._lock:
            self.down_after, self.down_for_s, self.down_path = after, for_s, path
            self._seen, self._down_until = 0, 0.0
            self.refused.clear()


@contextlib.contextmanager
def serve(upstream: str, stall_s: float = 2.0, certificate: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """Pass requests on to `upstream` (http://host:port) while a `with` block lasts; nothing is spoiled at first.

    Args:
        upstream: the server behind.
        stall_s: how long a stalled answer takes.
        certificate: what the proxy itself shows; without it the proxy speaks in the clear.
    """
    proxy = Proxy(upstream, stall_s)

    class Handler(_Handler):
        rules = proxy

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate is not None:
        server.socket = certificate.wrap_socket(server.socket, server_side=True)
    proxy.endpoint = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def flipped(data: bytes, at: int | None = None) -> bytes:
    """The same bytes with one bit changed, in the middle if no place is said."""
    changed = bytearray(data)
    changed[len(data) // 2 if at is None else at] ^= 1
    return bytes(changed)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    rules: Proxy

    def log_message(self, *_: object) -> None:
        """Silent."""

    def _serve(self) -> None:
        # A client that gave up on a stalled request is no news.
        with contextlib.suppress(ConnectionError):
            self._pass_on(self.rules.fault(self.command, self.path))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815 - the names that http.server calls

    def _pass_on(self, fault: str | None) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault == "busy":
            self._answer(503, "Slow Down", [("Content-Type", "application/xml")], _BUSY, len(_BUSY))
            return
        if fault == "reset before":
            self._reset()
            return
        if fault == "stall":
            time.sleep(self.rules.stall_s)
            self._reset()
            return
        if fault == "swallow":
            self._answer(200, "OK", [("ETag", '"0"')], b"", 0)
            return
        if fault == "flip" and self.command == "PUT":
            body = flipped(body)
        if fault in ("error in 200", "web page") and self.command != "HEAD":
            kind, page = ("application/xml", _ERROR) if fault == "error in 200" else ("text/html", _PAGE)
            self._answer(200, "OK", [("Content-Type", kind)], page, len(page))
            return
        status, reason, headers, data, length = self._ask(body)
        if fault == "twice":
            status, reason, headers, data, length = self._ask(body)
        if fault == "flip" and self.command == "GET":
            data = flipped(data)
        if fault == "reset after":
            self._reset()
        elif fault == "cut without a length":
            if length > 1 and self.command == "GET":
                self._answer(status, reason, [*headers, ("Connection", "close")], data[: length // 2], None)
                self.close_connection = True
            else:
                self._reset()
        elif fault == "drip" and self.command != "HEAD":
            self._answer(status, reason, headers, b"", max(length, 1 << 20) if status == 200 else length)
            for at in range(length):
                self.wfile.write(data[at : at + 1])
                time.sleep(_DRIP_S)
        elif fault == "cut":
            if length > 1 and self.command == "GET":
                self._answer(status, reason, headers, data[: length // 2], length)
            self._reset()
        else:
            self._answer(status, reason, headers, data, length)

    def _ask(self, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes, int]:
        connection = http.client.HTTPConnection(urlsplit(self.rules.upstream).netloc, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for key, value in self.headers.items():
                if key.lower() not in ("expect", "connection"):  # neither is signed
                    connection.putheader(key, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            data = answer.read()
            skipped = ("transfer-encoding", "connection", "content-length", "date", "server")
            headers = [(key, value) for key, value in answer.getheaders() if key.lower() not in skipped]
            # The answer to HEAD tells the length of a body that it does not have.
            length = int(answer.getheader("Content-Length") or 0) if self.command == "HEAD" else len(data)
            return answer.status, answer.reason, headers, data, length
        finally:
            connection.close()

    def _answer(
        self, status: int, reason: str, headers: list[tuple[str, str]], data: bytes, length: int | None
    ) -> None:
        self.send_response(status, reason)
        for key, value in headers:
            self.send_header(key, value)
        if status != 204 and length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        """Close the connection; what was not sent is thrown away, and the client is told so (RST)."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
