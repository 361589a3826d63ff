"""A webhook on loopback that keeps what it is sent: a real HTTP server in a thread."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Webhook:
    """What a webhook has been sent, and how it answers."""

    url: str = ""
    status: int = 200
    silent_s: float = 0.0
    lines: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def told(self) -> list[dict[str, Any]]:
        """Every line as JSON."""
        return [json.loads(line) for line in self.lines]


@contextmanager
def listening(**answer: Any) -> Iterator[Webhook]:
    """A webhook while a `with` block lasts; `answer` is its status or how long it says nothing."""
    hook = Webhook(**answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.lines.append(body.decode())
            hook.paths.append(self.path)
            time.sleep(hook.silent_s)
            self.send_response(hook.status)
            if 300 <= hook.status < 400:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hook.url = f"http://127.0.0.1:{server.server_port}/services/SECRET-PATH"
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
