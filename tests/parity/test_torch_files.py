"""Files that the tests write without PyTorch are read by `torch.load` as what was put in."""

from pathlib import Path

import numpy as np
import pytest

from latte import checkpoints
from tests import peers, torch_files

CONTENT = {
    "ema": {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.ones((2, 1), np.float16),
        "count": np.array(7, np.int64),
        "brain": torch_files.BFloat16(np.array([1.5, -2.0], np.float32)),
        "empty": np.zeros((0, 2), np.float64),
    },
    "epoch": 3,
    "betas": [0.9, 0.95],
    "note": "x",
    "nothing": None,
}


@pytest.mark.peers
def test_torch_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch_files.save(CONTENT, path)

    def ask() -> dict[str, np.ndarray]:
        import torch

        found = torch.load(path, weights_only=True)
        assert found["ema"]["brain"].dtype == torch.bfloat16
        assert (found["epoch"], found["betas"], found["note"], found["nothing"]) == (3, [0.9, 0.95], "x", None)
        return {name: tensor.float().numpy() for name, tensor in found["ema"].items()}

    theirs = peers.answer("torch-files", ask)
    ours = checkpoints.read(str(path))
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name].same_places(array), theirs[name].values)
