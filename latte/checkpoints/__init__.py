"""Checkpoints: read any published format without running it, save, load into a network, resume a training run."""

from typing import TYPE_CHECKING

import numpy as np

from latte.checkpoints.reader import open_checkpoint

if TYPE_CHECKING:
    from mindspore import nn

__all__ = ["load", "open_checkpoint", "read"]


def read(uri: str) -> dict[str, np.ndarray]:
    """Tensors of a checkpoint by the file's own names, of the EMA weights where there are any.

    Reads PyTorch's formats, TorchScript archives, safetensors (and the index of a sharded file) and MindSpore's
    `.ckpt`, told apart by content. Arrays are read-only views of the mapped file and may lie unaligned; bfloat16 comes
    as float32.

    Raises:
        UserError: no such file, not a checkpoint, damaged or hostile; one line that names the file and the tensor.
    """
    return {name: tensor.array() for name, tensor in open_checkpoint(uri).tensors.items()}


def load(net: "nn.Cell", uri: str, called: str = "") -> None:
    """Load a checkpoint into a network whose parameters must match it in names, shapes and types, in both directions.

    Counters of batch normalisation (`num_batches_tracked`), which no forward pass reads, are passed over.

    Args:
        net: the network.
        uri: the file.
        called: what errors call the file, where it is a copy of another.

    Raises:
        UserError: the file cannot be read, it does not match the network, or a tensor holds NaN or infinity; the line
            names the file and the tensors.
    """
    from latte.checkpoints.store import load_into

    load_into(net, uri, called)
