"""An API server of Kubeflow Pipelines on loopback, a client of it, and settings of nobody else's."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipelines.client import Client
from tests import conftest, kfp_server
from tests.small_set import world as world

REPOSITORY = Path(__file__).parents[2]


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


@pytest.fixture
def params(request: pytest.FixtureRequest, tmp_path: Path) -> dict:
    """The demo's settings, with files of a few bytes in place of its weights and videos; the client opens none."""
    values = yaml.safe_load((REPOSITORY / "configs/demo/pipeline.yaml").read_text())
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("a video")
    values["encode"]["dataset"]["videos"] = str(tmp_path / "videos")
    for section in ("vae", "detector", "pretrained"):
        values[section]["source"] = str(tmp_path / f"{section}.safetensors")
        (tmp_path / f"{section}.safetensors").write_text(section)
    return {**values, "root": conftest.in_store(request, "seaweedfs")}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB of its own; only root can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder]).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
