"""Layers that the networks share. Parameters have the names and shapes of PyTorch's, so that weights need no renaming.

What computes is an operator of the device (`latte.operators`). Fresh weights are drawn from one stream per parameter
name, see `fill`.
"""

import math
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import nn

from latte import device, operators
from latte.operators import Affine, GatedAdd, GeluTanh, ModulatedNorm, SiLU

__all__ = [
    "MLP", "Affine", "Embedding", "GatedAdd", "GeluTanh", "Linear", "ModulatedNorm", "SiLU", "fill", "normal",
    "parameter", "set_compute_type", "sincos_1d", "sincos_2d", "xavier_uniform",
]  # fmt: skip


def parameter(*shape: int, fixed: bool = False) -> ms.Parameter:
    """A float32 parameter of zeros; MindSpore names it by its place in the network. `fixed`: not trained."""
    return ms.Parameter(ms.Tensor(np.zeros(shape, np.float32)), requires_grad=not fixed)


class Linear(nn.Cell):
    """y = x W^T + b on the last axis; torch.nn.Linear's `weight` (out, in) and `bias` (out,)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = parameter(out_features, in_features)
        self.bias = parameter(out_features)
        self._sizes = (in_features, out_features)
        self._affine = Affine()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (..., in) -> (..., out)."""
        y = self._affine(x.reshape(-1, self._sizes[0]), self.weight, self.bias)
        return y.reshape((*x.shape[:-1], self._sizes[1]))


def set_compute_type(net: nn.Cell, compute_type: ms.Type) -> None:
    """Let a network that has its weights compute in this type, as its device does: the table in docs/training.md."""
    operators.compute_in(net, compute_type)


class Embedding(nn.Cell):
    """Rows of a table; torch.nn.Embedding's `weight` (rows, size)."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.weight = parameter(rows, size)

    def construct(self, index: ms.Tensor) -> ms.Tensor:
        """Index (N,) int32 -> (N, size)."""
        return operators.rows(self.weight, index)


class MLP(nn.Cell):
    """Linear, GELU (tanh), Linear: `fc1`, `fc2`."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(size, hidden)
        self.fc2 = Linear(hidden, size)
        self._gelu = GeluTanh()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (..., size) -> (..., size)."""
        return self.fc2(self._gelu(self.fc1(x))[0])


def xavier_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Glorot & Bengio 2010 on (out, everything else), float32."""
    bound = math.sqrt(6.0 / (shape[0] + math.prod(shape[1:])))
    return (rng.random(shape, np.float32) * 2 - 1) * np.float32(bound)


def normal(std: float) -> Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]:
    """A normal distribution around 0, float32."""
    return lambda rng, shape: rng.standard_normal(shape, np.float32) * np.float32(std)


def fill(
    net: nn.Cell, rule: Callable[[str], Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] | None]
) -> None:
    """Give every parameter its fresh value: `rule(name)` draws it, None leaves it as it is.

    Each name has its own random stream, so that a layer more or less does not change what the others start from.
    """
    for name, param in net.parameters_and_names():
        draw = rule(name)
        if draw is not None:
            param.set_data(ms.Tensor(draw(device.stream("fresh weights", name), tuple(param.shape))))


def sincos_1d(size: int, positions: np.ndarray) -> np.ndarray:
    """Sine and cosine features of positions (M,) -> (M, size), float64 (Vaswani et al. 2017; sines first)."""
    rates = 10000.0 ** -(np.arange(size // 2, dtype=np.float64) / (size / 2.0))
    angles = np.outer(positions.reshape(-1).astype(np.float64), rates)  # (M, size / 2)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(size: int, side: int, step: float = 1.0) -> np.ndarray:
    """Features of the cells of a square grid, row by row -> (side * side, size), float64; columns first, as in MAE.

    Neighbouring cells are `step` apart.
    """
    rows, columns = np.meshgrid(np.arange(side) * step, np.arange(side) * step, indexing="ij")
    return np.concatenate([sincos_1d(size // 2, columns), sincos_1d(size // 2, rows)], axis=1)
