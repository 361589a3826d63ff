"""The package cd-fvd (Ge et al. 2024), with weights that are given instead of downloaded.

    evaluator(weights).compute_fvd(real, fake)
    videomae_evaluator(weights, sizes).compute_fvd(real, fake)

Its modules import torchvision, for reading files and, of VideoMAE's preparation, for `Compose`; the features and the
distance need nothing else of it. The build of torchvision on PyPI does not load beside a CPU build of PyTorch, so an
empty package with a `Compose` stands in for it while cd-fvd is imported, and is gone afterwards.
"""

import contextlib
import functools
import importlib
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
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
    if "torchvision.transforms" in own:
        own["torchvision.transforms"].Compose = _in_turn  # type: ignore[attr-defined]
    sys.modules.update(own)
    try:
        return importlib.import_module("cdfvd.fvd")
    finally:
        for name in own:
            del sys.modules[name]


def _in_turn(functions: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    return lambda value: functools.reduce(lambda x, function: function(x), functions, value)


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


def videomae(sizes: Any) -> Any:
    """cd-fvd's VideoMAE with fresh weights: what its `vit_giant_patch14_224` is built from, with other sizes.

    Args:
        sizes: `latte.models.detector_configs.VideoMAEConfig`.
    """
    import torch

    network = importlib.import_module(f"{module().__package__}.third_party.VideoMAEv2.videomaev2_finetune")
    return network.VisionTransformer(
        img_size=sizes.image_size,
        patch_size=sizes.patch_size,
        embed_dim=sizes.hidden_size,
        depth=sizes.num_hidden_layers,
        num_heads=sizes.num_attention_heads,
        mlp_ratio=sizes.intermediate_size / sizes.hidden_size,
        qkv_bias=True,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        num_classes=sizes.num_classes,
        all_frames=sizes.num_frames,
        tubelet_size=sizes.tubelet_size,
        use_mean_pooling=True,
    )


def videomae_evaluator(weights: dict[str, np.ndarray], sizes: Any) -> Any:
    """cd-fvd's evaluator on the CPU, its VideoMAE of these sizes and with these weights.

    Args:
        weights: by the published names.
        sizes: as for `videomae`; cd-fvd itself has ViT-giant alone, of 4 GB.
    """
    import torch

    network = videomae(sizes)
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    load = module().load_videomae_model
    module().load_videomae_model = lambda *_: network
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return module().cdfvd("videomae", device="cpu", n_fake="full")
    finally:
        module().load_videomae_model = load
