"""Checkpoints that hold the right weights in a form that is not read here: told for what they are, with the way out."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from latte.checkpoints.pickles import Inert

_COMPVIS = (
    "a checkpoint in CompVis' form (Stable Diffusion's own training code), whose networks have other names; take the "
    "same weights in Diffusers' form, for example vae/diffusion_pytorch_model.safetensors"
)
# Of a whole Stable Diffusion, and of its autoencoder alone; Diffusers has encoder.down_blocks.0 in its place.
_COMPVIS_BEGINNINGS = ("first_stage_model.", "cond_stage_model.", "model.diffusion_model.", "model_ema.diffusion_model")
_COMPVIS_AUTOENCODER = "encoder.down.0.block.0.norm1.weight"
_FLAT = (
    "a checkpoint of PyTorch's FSDP with flattened parameters: no tensor in it is the network's; save it with "
    "StateDictType.FULL_STATE_DICT"
)
_SHARDED = (
    "a part of a checkpoint that PyTorch's FSDP has shared out; make one file of them all with "
    "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE`"
)
_SHARDED_CLASSES = ("ShardedTensor", "DTensor")
_ENDING, _METADATA = ".distcp", ".metadata"


def by_names(names: Iterable[str]) -> str:
    """Kind of a file, by the names of its tensors; "" where nothing is known against it."""
    names = list(names)
    if any(name.startswith(_COMPVIS_BEGINNINGS) or name.endswith(_COMPVIS_AUTOENCODER) for name in names):
        return _COMPVIS
    if any("_fsdp_wrapped_module." in name or name.split(".")[-1] in ("_flat_param", "flat_param") for name in names):
        return _FLAT
    return ""


def by_objects(values: Iterable[Any]) -> str:
    """The same by objects of a pickle that stand in the place of tensors."""
    names = (part.name.rpartition(".")[2] for value in values for part in _inert(value))
    return _SHARDED if any(name in _SHARDED_CLASSES for name in names) else ""


def by_place(path: Path) -> str:
    """The same by the file's name, or by what lies in a folder."""
    if path.suffix == _ENDING or path.name == _METADATA:
        return _SHARDED
    if path.is_dir() and ((path / _METADATA).exists() or any(path.glob(f"*{_ENDING}"))):
        return _SHARDED.replace("a part of a checkpoint", "the folder of a checkpoint")
    return ""


def _inert(value: Any) -> Iterator[Inert]:
    if isinstance(value, Inert):
        yield value
        yield from (part for part in value.args or () if isinstance(part, Inert))
