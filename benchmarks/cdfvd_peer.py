"""The package cd-fvd (Ge et al. 2024), with weights that are given instead of downloaded.

    evaluator(weights).compute_fvd(real, fake)

Its modules import torchvision, for reading files and for VideoMAE; I3D's features and the distance need none of it. The
build of torchvision on PyPI does not load beside a CPU build of PyTorch, so an empty package stands in for it while
cd-fvd is imported, and is gone afterwards.
"""

import contextlib
import importlib
import io
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

# module: names that cd-fvd takes from it
_UNUSED: dict[str, tuple[str, ...]] = {
    "torchvision": ("transforms", "datasets"),
    "torchvision.transforms": (),
    "torchvision.datasets": ("video_utils",),
    "torchvision.datasets.video_utils": ("VideoClips",),
}


@cache
def module() -> Any:
    """The module `cdfvd.fvd`."""
    own = {name: ModuleType(name) for name in _UNUSED if name not in sys.modules}
    for name, stand_in in own.items():
        for member in _UNUSED[name]:
            setattr(stand_in, member, own.get(f"{name}.{member}"))
    sys.modules.update(own)
    try:
        return importlib.import_module("cdfvd.fvd")
    finally:
        for name in own:
            del sys.modules[name]


def evaluator(weights: dict[str, np.ndarray], **options: Any) -> Any:
    """cd-fvd's evaluator on the CPU, its I3D with these weights.

    Args:
        weights: by the published names.
        options: more arguments of `cdfvd.fvd.cdfvd`.
    """
    import torch

    state = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    for name in weights:
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    with tempfile.TemporaryDirectory(prefix="latte-cdfvd-") as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "i3d_pretrained_400.pt"
        torch.save(state, path)
        return module().cdfvd("i3d", ckpt_path=str(path), device="cpu", n_fake="full", **options)
