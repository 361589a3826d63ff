"""A run whose stored objects are damaged: training goes on from what is sound, and what was repaired is made again."""

import subprocess
import sys
from pathlib import Path

import pytest

from latte import storage
from latte.inventory.verify import verify
from latte.storage import manifest
from tests import small_latents
from tests.fault_proxy import flipped
from tests.integration.test_train import digests, run

STEPS = 12


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_latents.once(tmp_path_factory)


@pytest.fixture(scope="module")
def whole(latents: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an undamaged run leaves."""
    root = tmp_path_factory.mktemp("whole")
    run(root, latents, steps=STEPS)
    return digests(root)


def flip(uri: str) -> None:
    path = storage.local_path(uri)
    path.write_bytes(flipped(path.read_bytes()))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "checkpoint.json"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_made_again(
    whole: dict[str, str], latents: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    done = run(tmp_path, latents, steps=8)
    damaged = storage.join(done.uri, "checkpoints/step-00000008", name)
    flip(damaged)
    run(tmp_path, latents, steps=STEPS)
    said = [line for line in capfd.readouterr().err.splitlines() if damaged in line]
    assert len(said) == 1
    assert "is passed over" in said[0] or "counts as not done" in said[0]
    assert digests(tmp_path) == whole
    assert not verify(str(tmp_path)).damages


def test_a_damaged_checkpoint_of_a_finished_run_is_found_removed_and_made_again(
    whole: dict[str, str], latents: str, tmp_path: Path
) -> None:
    done = run(tmp_path, latents, steps=STEPS)
    damaged = done.shard(f"step-{STEPS:08d}/ema.safetensors").uri
    flip(damaged)
    command = [sys.executable, "-m", "latte.cli", "verify", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1, found.stderr
    assert "latte train" in found.stdout
    assert "1 damaged, 1 of them still" in found.stdout
    repaired = subprocess.run([*command, "--repair"], capture_output=True, text=True)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert "1 damaged, 0 of them still" in repaired.stdout
    assert manifest.find(done.uri, "checkpoint") is None
    run(tmp_path, latents, steps=STEPS)
    assert digests(tmp_path) == whole
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0
