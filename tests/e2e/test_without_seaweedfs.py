"""A machine for which there is no SeaweedFS: a folder is the run's store, without being asked for."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from latte import storage
from latte.storage import manifest
from tests import video_files
from tests.e2e import runs


@pytest.fixture
def without_weed(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with the same packages and no `weed`: neither beside Python nor on the PATH."""
    here = tmp_path / "python"
    (here / "bin").mkdir(parents=True)
    for name in ("python", "python3"):
        (here / "bin" / name).symlink_to(Path(sys.executable).resolve())
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", here)
    (here / "lib").symlink_to(Path(sys.prefix) / "lib")
    others = [folder for folder in os.get_exec_path() if not (Path(folder) / "weed").exists()]
    return {"PATH": os.pathsep.join([str(here / "bin"), *others]), "AWS_ENDPOINT_URL_S3": ""}


def test_a_run_without_seaweedfs_keeps_its_data_in_a_folder(tmp_path: Path, without_weed: dict[str, str]) -> None:
    for number in range(2):
        video_files.write(tmp_path / "clips" / "waves" / f"{number}.mp4", video_files.moving(16, 64, 64, seed=number))
    settings = {**runs.TINY, "encode.dataset.videos": str(tmp_path / "clips")}
    program = (tmp_path / "python" / "bin" / "python", "-m", "pipelines.cli")
    run = runs.start(tmp_path / "run", settings=settings, env=without_weed, program=program)
    run.wait_for("train")
    run.process.send_signal(signal.SIGTERM)
    assert run.finish() == 130, run.output
    root = tmp_path / "run" / "root" / "demo"
    told = [line for line in run.output.splitlines() if "SeaweedFS" in line]
    assert told == [f"no SeaweedFS for this machine (`weed` not found): the folder {root} is the store"]
    (encoded,) = root.glob("datasets/demo/*/manifest.json")
    shards = manifest.read(encoded).shards
    assert shards
    assert all(storage.local_path(shard.uri).is_relative_to(root) and manifest.is_whole(shard) for shard in shards)
    assert not (tmp_path / "run" / "store").exists()

    with_port = runs.start(tmp_path / "run", "--port", "4566", settings=settings, env=without_weed, program=program)
    assert with_port.finish() == 2
    assert "no SeaweedFS for this machine" in runs.error_lines(with_port.output)[0]
