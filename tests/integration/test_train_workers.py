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

from latte import processes
from latte.errors import UserError
from latte.training import workers
from tests import small_latents

LATTE = [sys.executable, "-m", "latte.cli"]
STEPS = 20


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_latents.once(tmp_path_factory)


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


def checkpoint(folder: Path, step: int) -> dict[str, bytes]:
    """The parts of a checkpoint."""
    (place,) = (folder / "root").glob(f"runs/*/*/checkpoints/step-{step:08d}")
    return {path.stem: path.read_bytes() for path in place.glob("*.safetensors")}


def steps(folder: Path) -> list[int]:
    """Steps of the committed checkpoints."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in folder.rglob("checkpoint.json"))


def wait_for_step(folder: Path, step: int, process: "subprocess.Popen[Any]") -> None:
    while max(steps(folder), default=-1) < step and process.poll() is None:
        time.sleep(0.02)


def workers_of(process: "subprocess.Popen[Any]") -> list[int]:
    """Processes that carry the launcher's number."""
    return processes.carrying({"LATTE_LAUNCHER_PID": str(process.pid), "MS_ROLE": "MS_WORKER"})


def test_stopped_killed_and_with_other_workers_the_losses_are_the_same(latents: str, tmp_path: Path) -> None:
    """One run with one worker, one with two, and one that is killed and stopped with two and ends with one.

    The last one shards its optimizer state while there are two: its checkpoints are the same bytes.
    """
    alone, pair, changing = (tmp_path / name for name in ("alone", "pair", "changing"))
    for folder in (alone, pair, changing):
        folder.mkdir()
    subprocess.run(command(alone, latents), check=True, capture_output=True)
    kept = {"checkpoint_every": 4, "keep_every": 4}
    subprocess.run(command(pair, latents, workers=2, **kept), check=True, capture_output=True)
    assert steps(pair) == list(range(0, STEPS + 1, 4)), "more than keep_last, because of keep_every"
    two = command(changing, latents, workers=2, shard_optimizer=True, **kept)

    with subprocess.Popen(two, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        wait_for_step(changing, 4, process)
        assert len(workers_of(process)) >= 2
        process.kill()
    deadline = time.monotonic() + 30
    while workers_of(process):
        assert time.monotonic() < deadline, "workers outlive their launcher"
        time.sleep(0.1)

    with subprocess.Popen(two, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        wait_for_step(changing, 8, process)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 1, said
    assert "asked to stop: saved step" in said.splitlines()[-1]
    assert "loss=" in said, "the first worker's progress is shown"
    saved = steps(changing)[-1]
    assert 8 <= saved < STEPS
    assert lines(changing)[:saved] == lines(pair)[:saved], "two workers end in the same bits, killed or not"
    sharded, whole = checkpoint(changing, 8), checkpoint(pair, 8)
    assert sorted(whole) == ["ema", "model", "optimizer"]
    assert sharded == whole

    subprocess.run(command(changing, latents), check=True, capture_output=True)
    assert steps(changing)[-1] == STEPS
    for other in (pair, changing):
        for one, another in zip(lines(alone), lines(other), strict=True):
            assert one["step"] == another["step"]
            for key in ("loss", "mse", "grad_norm"):
                assert one[key] == pytest.approx(another[key], rel=1e-4), (other.name, one, another)


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
        workers.launch("latte.steps.train", {}, 4)
    monkeypatch.setenv("LATTE_NODE_RANK", "2")
    monkeypatch.setenv("LATTE_WORKERS_PER_NODE", "2")
    with pytest.raises(UserError, match="does not fit LATTE_WORKERS_PER_NODE=2 and LATTE_NODE_RANK=2"):
        workers.launch("latte.steps.train", {}, 4)


def test_a_worker_killed_without_a_word_shows_the_logs(latents: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*command(tmp_path, latents, steps=1000), "workers=2"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        wait_for_step(tmp_path, 0, process)
        os.kill(workers_of(process)[0], signal.SIGKILL)
        _, said = process.communicate()
    assert process.returncode == 1
    assert "error: a worker ended without a word; the ends of the logs:" in said
    for log in ("worker_0.log: ", "worker_1.log: ", "msrun.log: "):
        assert log in said
    assert not workers_of(process)
