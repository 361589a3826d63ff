"""What the networks compute with fused kernels, as every command does, is what is published."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PARITY = Path(__file__).parents[1] / "parity"


@pytest.mark.parametrize("network", ["latte_golden", "autoencoder_kl", "i3d", "train_step", "clip_text"])
def test_parity_with_fused_kernels(network: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(PARITY / f"test_{network}.py")],
        env={**os.environ, "LATTE_FUSED_KERNELS": "1"},
        cwd=PARITY.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
