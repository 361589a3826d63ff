"""Layers that the networks share. Parameters have the names and shapes of PyTorch's, so that weights need no renaming.

Operators are those that are fast on a CPU in graph mode: GELU written out, Split instead of slices, MatMul with
`transpose_b`. Fresh weights are drawn from one stream per parameter name, see `fill`.
"""

import math
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte import device


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
        self._matmul = ops.MatMul(transpose_b=True)
        self._bias_add = ops.BiasAdd()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (..., in) -> (..., out)."""
        rows = x.reshape(-1, self._sizes[0])
        y = self._bias_add(self._matmul(rows, self.weight), self.bias)
        return y.reshape((*x.shape[:-1], self._sizes[1]))


class Embedding(nn.Cell):
    """Rows of a table; torch.nn.Embedding's `weight` (rows, size)."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.weight = parameter(rows, size)

    def construct(self, index: ms.Tensor) -> ms.Tensor:
        """Index (N,) int32 -> (N, size)."""
        return ops.gather(self.weight, index, 0)


class SiLU(nn.Cell):
    """x * sigmoid(x)."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Any shape."""
        return x * ops.sigmoid(x)


def gelu_tanh(x: ms.Tensor) -> ms.Tensor:
    """GELU by its tanh formula (Hendrycks & Gimpel 2016): several times faster on a CPU than MindSpore's GELU."""
    return 0.5 * x * (1.0 + ops.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


class LayerNorm(nn.Cell):
    """Normalisation over the last axis without learned scale and shift, epsilon 1e-6."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=1e-6)
        self._scale = ms.Tensor(np.ones(size, np.float32))
        self._shift = ms.Tensor(np.zeros(size, np.float32))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (..., size) -> the same shape."""
        return self._norm(x, self._scale, self._shift)[0]


class Attention(nn.Cell):
    """Multi-head self-attention with one projection for q, k and v (`qkv`, `proj`), as in timm's vision transformer."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.qkv = Linear(size, 3 * size)
        self.proj = Linear(size, size)
        self._heads = num_heads
        self._head_size = size // num_heads
        self._split = ops.Split(axis=-1, output_num=3)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (B, L, size) -> (B, L, size)."""
        batch, length, size = x.shape
        by_head = (batch, length, self._heads, self._head_size)
        q, k, v = self._split(self.qkv(x))  # 3 x (B, L, size)
        q = q.reshape(by_head).transpose(0, 2, 1, 3)  # (B, H, L, D)
        k = k.reshape(by_head).transpose(0, 2, 1, 3)
        v = v.reshape(by_head).transpose(0, 2, 1, 3)
        out = device.attention(q, k, v, self._head_size**-0.5)  # (B, H, L, D)
        return self.proj(out.transpose(0, 2, 1, 3).reshape(batch, length, size))


class MLP(nn.Cell):
    """Linear, GELU (tanh), Linear: `fc1`, `fc2`."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(size, hidden)
        self.fc2 = Linear(hidden, size)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (..., size) -> (..., size)."""
        return self.fc2(gelu_tanh(self.fc1(x)))


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


def sincos_2d(size: int, side: int) -> np.ndarray:
    """Features of the cells of a square grid, row by row -> (side * side, size), float64; columns first, as in MAE."""
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    return np.concatenate([sincos_1d(size // 2, columns), sincos_1d(size // 2, rows)], axis=1)
