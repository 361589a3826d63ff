"""Training with several processes through msrun: the same losses, polite and rough ends, mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from latte import manifest, storage, workers
from latte.checkpoints import resume
from latte.errors import UserError
from tests import small_latents

LATTE = [sys.executable, "-m", "latte.cli"]
STEPS = 20


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_latents.publish(tmp_path_factory.mktemp("latents"))


def command(folder: Path, latents: str, **other: Any) -> list[str]:
    values = {
        "root": (folder / "root").as_uri(),
        "name": "tiny",
        "latents": latents,
        "model": {"patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_frames": 16},
        "steps": STEPS,
        "frame_stride": 1,
        "learning_rate": 1e-3,
        "clip_start_step": 10,
        "log_every": 1,
        "checkpoint_every": 1000,
        **other,
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(values))
    return [*LATTE, "train", "-c", str(path)]


def lines(folder: Path) -> list[dict[str, Any]]:
    (place,) = (folder / "root").glob("runs/*/*/metrics.jsonl")
    return [json.loads(line) for line in place.read_text().splitlines()]


def commits(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.rglob("checkpoint.json"))


def workers_of(process: "subprocess.Popen[Any]") -> list[int]:
    """Processes that carry the launcher's number."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"LATTE_LAUNCHER_PID={process.pid}".encode() in variables and b"MS_ROLE=MS_WORKER" in variables:
            found.append(int(path.parent.name))
    return found


def test_two_workers_one_worker_and_a_change_between_give_the_same_losses(latents: str, tmp_path: Path) -> None:
    """The second run starts with two workers, is asked to stop politely and goes on with one."""
    alone, changing = tmp_path / "alone", tmp_path / "changing"
    alone.mkdir()
    changing.mkdir()
    subprocess.run(command(alone, latents), check=True, capture_output=True)
    two = [*command(changing, latents, checkpoint_every=4), "workers=2"]
    with subprocess.Popen(two, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        while "step-00000008" not in commits(changing) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 1, said
    assert "asked to stop: saved step" in said.splitlines()[-1]
    assert "loss=" in said, "the first worker's progress is shown"
    saved = int(commits(changing)[-1].removeprefix("step-"))
    assert 8 <= saved < STEPS
    subprocess.run(command(changing, latents), check=True, capture_output=True)
    one, other = lines(alone), lines(changing)
    assert [line["step"] for line in one] == [line["step"] for line in other] == list(range(1, STEPS + 1))
    for before, after in zip(one, other, strict=True):
        for key in ("loss", "mse", "grad_norm"):
            assert before[key] == pytest.approx(after[key], rel=1e-4), (before, after)
    (done,) = (changing / "root").glob("runs/*/*/manifest.json")
    assert manifest.read(done.as_uri(), "checkpoint").metrics["step"] == STEPS


def test_two_workers_end_in_the_same_bits_and_a_killed_launcher_leaves_nobody(latents: str, tmp_path: Path) -> None:
    call = [*command(tmp_path, latents, steps=4, checkpoint_every=2, name="one"), "workers=2"]
    subprocess.run(call, check=True, capture_output=True)
    again = [*call, "name=two"]
    with subprocess.Popen(again, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while len(commits(tmp_path / "root/runs/two")) < 2 and process.poll() is None:
            time.sleep(0.02)
        killed = workers_of(process)
        process.kill()
    assert len(killed) >= 2
    deadline = time.monotonic() + 30
    while workers_of(process):
        assert time.monotonic() < deadline, "workers outlive their launcher"
        time.sleep(0.1)
    subprocess.run(again, check=True, capture_output=True)
    ends = []
    for name in ("one", "two"):
        (place,) = (tmp_path / "root/runs" / name).iterdir()
        last = resume.committed(place.as_uri())[-1]
        ends.append(
            ({role: shard.sha256 for role, shard in last.shards.items()}, (place / "metrics.jsonl").read_text())
        )
    assert ends[0] == ends[1]


def test_a_mistake_that_a_worker_finds_is_the_commands_one_line(latents: str, tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, latents, workers=2, frame_stride=3), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: latents: none of 10 videos has the 46 frames")


def test_mistakes_in_the_settings_of_workers_are_one_line(
    latents: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.run([*command(tmp_path, latents), "workers=3"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "batch_size 8 is not divisible by workers 3 x accumulation 1" in done.stderr
    monkeypatch.setenv("LATTE_SCHEDULER_HOST", "127.0.0.1")
    with pytest.raises(UserError, match="LATTE_NODE_RANK='': expected a whole number"):
        workers.launch({}, 4)
    monkeypatch.setenv("LATTE_NODE_RANK", "2")
    monkeypatch.setenv("LATTE_WORKERS_PER_NODE", "2")
    with pytest.raises(UserError, match="does not fit LATTE_WORKERS_PER_NODE=2 and LATTE_NODE_RANK=2"):
        workers.launch({}, 4)


def test_a_worker_killed_without_a_word_shows_the_logs(latents: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*command(tmp_path, latents, steps=1000), "workers=2"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        while not commits(tmp_path) and process.poll() is None:
            time.sleep(0.02)
        os.kill(workers_of(process)[0], signal.SIGKILL)
        _, said = process.communicate()
    assert process.returncode == 1
    assert "error: a worker ended without a word; the ends of the logs:" in said
    assert "worker_0.log: " in said
    assert not workers_of(process)
    assert storage.exists((tmp_path / "train.yaml").as_uri())
