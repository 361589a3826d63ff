"""Inception I3D in a TorchScript archive: its weights found by where the code puts them, not by their names.

From the value that `forward` returns back to its input, the layers must be those of I3D: three convolutions, nine
layers of four branches side by side, a classifier. The order of the branches is that in which the code puts them
together.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from latte.checkpoints.script import Program, ScriptNode, trace
from latte.checkpoints.stored import Refusal, Storage, StoredTensor, contiguous_strides
from latte.models.configs import I3DConfig

# How FVD scorers call the published file: clips come in [-1, 1] and at 224 pixels, class scores go out.
FLAGS = {"rescale": False, "resize": False, "return_features": True}
_STEM = ("Conv3d_2c_3x3", "Conv3d_2b_1x1", "Conv3d_1a_7x7")
_NORMS = ("weight", "bias", "running_mean", "running_var")
_CONVOLUTIONS, _NORMALISATIONS = ("conv3d", "_convolution", "convolution"), ("batch_norm", "_native_batch_norm_legit")
# No arithmetic: a port that scales its clips by itself would be another network.
_PASSING = frozenset(
    [
        *("relu", "relu_", "dropout", "dropout_", "pad", "constant_pad_nd", "contiguous", "max_pool3d", "avg_pool3d"),
        *("mean", "squeeze", "view", "reshape", "flatten", "clone", "detach"),
    ]
)


def read(program: Program) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Tensors by the network's names, and the settings that the code tells (its epsilon).

    Raises:
        Refusal: the code is not that of an I3D, or not to be followed.
    """
    layers = list(_layers(trace(program, FLAGS)))
    tensors: dict[str, StoredTensor] = {}
    epsilons: set[float] = set()
    for name, convolution, norm in reversed(layers):
        weight, bias = convolution.args[1], convolution.args[2]
        if norm is None:
            tensors[f"{name}.conv3d.weight"] = _tensor(name, weight)
            tensors[f"{name}.conv3d.bias"] = _tensor(name, bias)
            continue
        if bias is not None:
            raise Refusal(f"its layer {name} has a bias before its batch normalisation, I3D has none")
        tensors[f"{name}.conv3d.weight"] = _tensor(name, weight)
        mean = _tensor(name, norm.args[3])
        for part, value in zip(_NORMS, norm.args[1:5], strict=True):
            # TensorFlow's I3D has no factor; a port may leave it out.
            found = _ones(mean.shape) if value is None and part == "weight" else _tensor(name, value)
            tensors[f"{name}.bn.{part}"] = found
        epsilons.add(_epsilon(name, norm))
    if len(epsilons) != 1:
        raise Refusal(f"its layers have {len(epsilons)} different epsilons, expected one")
    epsilon = epsilons.pop()
    return tensors, {"batch_norm_epsilon": epsilon}


def _layers(returned: Any) -> Iterator[tuple[str, ScriptNode, ScriptNode | None]]:
    """Layers by the network's names from the last to the first: (name, convolution, its batch normalisation)."""
    found = _back(returned)
    if found is None or found.op not in _CONVOLUTIONS:
        raise Refusal("its code returns no class scores of a convolution; is it an I3D whose forward takes a clip?")
    yield "logits", _checked("logits", found, 1), None
    node = _back(found.args[0])
    for mixed in reversed(list(I3DConfig().mixed_channels)):
        branches = node.args[0] if node is not None and node.op in ("cat", "concat") and node.args else None
        if not isinstance(branches, list) or len(branches) != 4:
            raise Refusal(f"its code has no four branches where I3D has {mixed}")
        ends = []
        for branch, names in zip(branches, (("b0",), ("b1b", "b1a"), ("b2b", "b2a"), ("b3b",)), strict=True):
            part = _back(branch)
            for name in names:
                convolution, norm = _unit(f"{mixed}.{name}", part)
                yield f"{mixed}.{name}", convolution, norm
                part = _back(convolution.args[0])
            ends.append(part)
        if any(end is not ends[0] for end in ends):
            raise Refusal(f"its branches in {mixed} do not begin at the same place")
        node = ends[0]
    for name in _STEM:
        convolution, norm = _unit(name, node)
        yield name, _checked(name, convolution, 2 if name == _STEM[-1] else 1), norm
        node = _back(convolution.args[0])
    if node is None or node.op != "input":
        raise Refusal("its code has layers before those of I3D")


def _unit(name: str, node: ScriptNode | None) -> tuple[ScriptNode, ScriptNode]:
    if node is None or node.op not in _NORMALISATIONS or len(node.args) < 8:
        raise Refusal(f"its code has no batch normalisation where I3D has {name}")
    convolution = node.args[0]
    if not isinstance(convolution, ScriptNode) or convolution.op not in _CONVOLUTIONS or len(convolution.args) < 5:
        raise Refusal(f"its code has no convolution where I3D has {name}")
    return convolution, node


def _checked(name: str, convolution: ScriptNode, stride: int) -> ScriptNode:
    """The same convolution; its stride must be I3D's, and only padding that is added before it is TensorFlow's."""
    strides, padding = convolution.args[3:5] if len(convolution.args) >= 5 else (None, None)
    if strides not in ([stride] * 3, [stride]):
        raise Refusal(f"its layer {name} has stride {strides}, I3D has {stride}")
    if stride > 1 and padding not in ([0, 0, 0], [0]):
        raise Refusal(f"its layer {name} pads by {padding} on both sides, I3D as TensorFlow does")
    return convolution


def _back(value: Any) -> ScriptNode | None:
    """The nearest layer before a value: a convolution, a normalisation, branches put together or the input."""
    while isinstance(value, ScriptNode) and value.op in _PASSING and value.args:
        value = value.args[0]
    return value if isinstance(value, ScriptNode) else None


def _epsilon(name: str, norm: ScriptNode) -> float:
    value = norm.args[7]
    if not isinstance(value, float) or not 0 < value < 1:
        raise Refusal(f"its layer {name} does not say its epsilon as a number")
    return value


def _tensor(name: str, value: Any) -> StoredTensor:
    if not isinstance(value, StoredTensor):
        raise Refusal(f"its layer {name} has a weight that is no stored tensor")
    value.check()
    return value


def _ones(shape: tuple[int, ...]) -> StoredTensor:
    content = np.ones(shape, np.float32).view(np.uint8)
    return StoredTensor(Storage("float32", [content], int(np.prod(shape))), "float32", shape, contiguous_strides(shape))
