"""An API server of Kubeflow Pipelines on loopback, a client of it, and settings of nobody else's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.client import Client
from tests import kfp_server


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kubeconfig, no saved context, no variable that names a cluster."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KF_PIPELINES_ENDPOINT", "KFP_NAMESPACE", "KFP_TOKEN", "KFP_SERVICE_ACCOUNT", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(own_home: None) -> Iterator[kfp_server.KfpServer]:
    """The server; it asks for a token."""
    with kfp_server.serve(token="right") as served:
        yield served


@pytest.fixture
def client(server: kfp_server.KfpServer) -> Client:
    """A client with the right token."""
    return Client(server.url, token="right")
