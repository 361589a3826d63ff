"""What goes wrong for users: one clear line, the right exit code, nothing left running, and the next run goes on."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import processes
from pipelines.demo.data import cut_demo_clips
from pipelines.store import BUCKET, Store
from tests.e2e import runs


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    cut_demo_clips(folder)
    return folder


def check(run: runs.Run, code: int, *words: str) -> None:
    """It ended with one line that says these words, without a traceback, and left no process."""
    assert run.finish() == code, run.output
    lines = runs.error_lines(run.output)
    assert len(lines) == 1, run.output
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in run.output
    assert run.gone()


def test_a_missing_folder(tmp_path: Path) -> None:
    run = runs.start(tmp_path, settings={"encode.dataset.videos": "no/such/folder"})
    check(run, 2, "encode.dataset.videos", "no/such/folder", "no such file or folder")


def test_a_folder_without_videos(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    root = (tmp_path / "root").as_uri()
    run = runs.start(tmp_path / "run", "--root", root, settings={"encode.dataset.videos": str(tmp_path / "empty")})
    check(run, 2, "encode: plan", str(tmp_path / "empty"))


# As KFP's DockerRunner does where Docker has removed the container before KFP asks how it ended.
NO_FAILURE_IS_SEEN = """
import sys
from kfp.local import subprocess_task_handler

run_local_subprocess = subprocess_task_handler.run_local_subprocess
subprocess_task_handler.run_local_subprocess = lambda **step: run_local_subprocess(**step) * 0

from pipelines.cli import main
sys.exit(main())
"""


def unseen(run_dir: Path, tmp_path: Path, settings: dict) -> runs.Run:
    """A run in which KFP takes every step for a success."""
    command = [sys.executable, "-c", NO_FAILURE_IS_SEEN, "run", "-c", "configs/demo/pipeline.yaml"]
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    process = subprocess.Popen(
        [*command, "--run-dir", str(run_dir), "--root", (tmp_path / "root").as_uri(), *overrides],
        cwd=runs.REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return runs.Run(run_dir, process)


def test_a_failure_that_kfp_does_not_see(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = unseen(tmp_path / "run", tmp_path, {"encode.dataset.videos": str(tmp_path / "empty")})
    check(run, 2, "encode: plan", str(tmp_path / "empty"))


def test_a_killed_step_that_kfp_takes_for_a_success(tmp_path: Path, clips: Path) -> None:
    run = unseen(tmp_path / "run", tmp_path, {**runs.TINY, "encode.dataset.videos": str(clips)})
    run.wait_for("encode: shards")
    members = processes.members(run.run_dir)
    assert members
    for pid in members:
        with contextlib.suppress(ProcessLookupError):  # it ended with the one before it
            os.kill(pid, signal.SIGKILL)
    check(run, 1, "encode: shards", "ended without a word, as one does that is killed", str(run.run_dir / "run.log"))


@pytest.mark.parametrize("key", ["train.stepz", "speed", "encode.dataset.video", "train.model.dept"])
def test_an_unknown_key(tmp_path: Path, key: str) -> None:
    run = runs.start(tmp_path, settings={key: 1})
    check(run, 2, "configs/demo/pipeline.yaml", key.split(".")[-1])
    assert not (tmp_path / "events.jsonl").exists()


def test_a_key_that_the_pipeline_fills_in(tmp_path: Path) -> None:
    check(runs.start(tmp_path, settings={"train.latents": "x"}), 2, "latents is filled in by the pipeline")


def test_a_wrong_secret(tmp_path: Path, clips: Path, store: Store) -> None:
    run = runs.start(
        tmp_path,
        "--root",
        f"s3://{BUCKET}/x",
        settings={"encode.dataset.videos": str(clips)},
        env={"AWS_SECRET_ACCESS_KEY": "not-the-secret"},
    )
    check(run, 2, "AWS_SECRET_ACCESS_KEY")
    assert "not-the-secret" not in run.output


def test_a_bucket_that_does_not_exist(tmp_path: Path, clips: Path, store: Store) -> None:
    run = runs.start(tmp_path, "--root", "s3://no-such-bucket/x", settings={"encode.dataset.videos": str(clips)})
    check(run, 2, "s3://no-such-bucket/x", "no such bucket; create it first")


def test_a_taken_port(tmp_path: Path, clips: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        env = {"AWS_ENDPOINT_URL_S3": ""}
        run = runs.start(tmp_path, "--port", str(port), settings={"encode.dataset.videos": str(clips)}, env=env)
        check(run, 2, f"port {port}", "--port")


def test_no_docker(tmp_path: Path, clips: Path) -> None:
    settings = {"encode.dataset.videos": str(clips)}
    env = {"DOCKER_HOST": f"unix://{tmp_path}/no.sock"}
    run = runs.start(tmp_path, "--root", "s3://any/where", "--runner", "docker", settings=settings, env=env)
    check(run, 2, "Docker does not answer", "--runner docker")


@pytest.mark.parametrize("own_store", [False, True], ids=["folder", "own store"])
def test_a_full_disk(tmp_path: Path, clips: Path, own_store: bool) -> None:
    small = tmp_path / "small"
    small.mkdir()
    where = f"--run-dir {small}/run" if own_store else f"--run-dir {tmp_path}/run --root file://{small}"
    # A file system of 1 MB of the test's own; -r maps this user to root in it where the user is not root.
    script = (
        f"mount -t tmpfs -o size=1m tmpfs {small} && exec {runs.BIN}/latte-pipeline run -c configs/demo/pipeline.yaml "
        f"{where} encode.dataset.videos={clips}"
    )
    process = subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", script],
        cwd=runs.REPOSITORY,
        env={**os.environ, "AWS_ENDPOINT_URL_S3": "", "LATTE_S3_RETRY_S": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run_dir = (small if own_store else tmp_path) / "run"
    check(runs.Run(run_dir, process), 1, "no space left on the disk", str(small))


def test_two_runs_in_one_folder(tmp_path: Path, clips: Path) -> None:
    settings = {"encode.dataset.videos": str(clips)}
    first = runs.start(tmp_path, "--root", (tmp_path / "root").as_uri(), settings=settings)
    first.wait_for("convert vae")
    check_second = runs.start(tmp_path, "--root", (tmp_path / "root").as_uri(), settings=settings)
    assert check_second.finish() == 2
    assert "another run is using this folder" in check_second.output
    assert first.process.poll() is None
    first.process.kill()
    first.process.communicate()
    assert first.gone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_the_middle(tmp_path: Path, clips: Path, number: signal.Signals) -> None:
    env = {"AWS_ENDPOINT_URL_S3": ""}
    run = runs.start(tmp_path, settings={"encode.dataset.videos": str(clips)}, env=env)
    run.wait_for("encode: plan")
    time.sleep(1)
    run.process.send_signal(number)
    assert run.finish() == 130, run.output
    assert "run the same command again to go on" in run.output
    assert "Traceback" not in run.output
    assert run.gone()
    assert not list(tmp_path.rglob(".tmp-*"))
