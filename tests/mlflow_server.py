"""MLflow's own tracking server on loopback, of the peers' environment."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.other_stores import free_port

_WITHIN_S = 120.0


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """URI of a server that keeps its data in a folder, while a `with` block lasts."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(uri, server, folder / "server.log")
            yield uri
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, 15)
            server.wait(30)


def _wait(uri: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _WITHIN_S
    while True:
        with contextlib.suppress(OSError):
            if opener.open(f"{uri}/health", timeout=5).status == 200:
                return
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
