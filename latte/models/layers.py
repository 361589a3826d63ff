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

_batch_matmul = ops.BatchMatMul()


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


class Affine(nn.Cell):
    """x W^T + b, with a gradient that sums rows by a matrix product: several times faster than BiasAddGrad on a CPU.

    `compute_type` is the type of the products' factors; what goes in and comes out, gradients too, stays float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.compute_type = ms.float32
        self._matmul, self._matmul_t = ops.MatMul(), ops.MatMul(transpose_b=True)
        self._t_matmul = ops.MatMul(transpose_a=True)
        self._bias_add = ops.BiasAdd()

    def construct(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Map x (R, in), weight (out, in), bias (out,) -> (R, out)."""
        if self.compute_type != ms.float32:
            x, weight = x.astype(self.compute_type), weight.astype(self.compute_type)
        return self._bias_add(self._matmul_t(x, weight).astype(ms.float32), bias)

    def bprop(
        self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, out: ms.Tensor, dout: ms.Tensor
    ) -> tuple[ms.Tensor, ...]:
        """Gradients of x, weight and bias."""
        ones = ops.ones((1, x.shape[0]), ms.float32)
        dbias = self._matmul(ones, dout).reshape(bias.shape)
        if self.compute_type != ms.float32:
            x, weight = x.astype(self.compute_type), weight.astype(self.compute_type)
            dout = dout.astype(self.compute_type)
        dx, dweight = self._matmul(dout, weight), self._t_matmul(dout, x)
        return dx.astype(ms.float32), dweight.astype(ms.float32), dbias


def set_compute_type(net: nn.Cell, compute_type: ms.Type) -> None:
    """Let the matrix products of all linear layers of a network take factors of this type."""
    for _, cell in net.cells_and_names():
        if isinstance(cell, Affine):
            cell.compute_type = compute_type


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


class GeluTanh(nn.Cell):
    """GELU by its tanh formula (Hendrycks & Gimpel 2016), several times faster on a CPU than MindSpore's GELU.

    Written with 0.5 (1 + tanh(u)) = sigmoid(2u), and with its gradient, which saves the sums of four gradients of x.
    """

    _SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
    _CUBIC = _SLOPE * 0.044715

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Map x, any shape -> GELU of x, and the sigmoid that the gradient needs."""
        share = device.sigmoid(x * (x * x * self._CUBIC + self._SLOPE))
        return x * share, share

    def bprop(
        self, x: ms.Tensor, out: tuple[ms.Tensor, ms.Tensor], dout: tuple[ms.Tensor, ms.Tensor]
    ) -> tuple[ms.Tensor]:
        """Gradient of x."""
        y, share = out
        inner = x * x * (3.0 * self._CUBIC) + self._SLOPE
        return (dout[0] * (share + (y - y * share) * inner),)


class ModulatedNorm(nn.Cell):
    """Layer normalisation (epsilon 1e-6, nothing learned), then x * (1 + scale) + shift for each sample.

    On a CPU MindSpore's LayerNorm and ReduceSum are far slower than a matrix product with ones; the arithmetic between
    two products becomes one kernel each.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._average = ms.Tensor(np.full((size, 1), 1.0 / size, np.float32))
        self._matmul = ops.MatMul()

    def construct(self, x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """Normalise and modulate.

        Args:
            x: (N, L, D).
            shift: (N, 1, D).
            scale: (N, 1, D).

        Returns:
            The result (N, L, D); for the gradient also the normalised x (N, L, D) and 1 / deviation (N * L, 1).
        """
        rows = x.reshape(-1, self._size)
        centered = rows - self._mean(rows)  # (N * L, D)
        inverse = ops.rsqrt(self._mean(centered * centered) + 1e-6)  # (N * L, 1)
        normal = (centered * inverse).reshape(x.shape)  # (N, L, D)
        return normal * (scale + 1.0) + shift, normal, inverse

    def bprop(
        self,
        x: ms.Tensor,
        shift: ms.Tensor,
        scale: ms.Tensor,
        out: tuple[ms.Tensor, ms.Tensor, ms.Tensor],
        dout: tuple[ms.Tensor, ms.Tensor, ms.Tensor],
    ) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """Gradients of x, shift and scale."""
        _, normal, inverse = out
        grad = dout[0]  # (N, L, D)
        dscale = sum_tokens(grad * normal)
        rows = normal.reshape(-1, self._size)  # (N * L, D)
        drows = (grad * (scale + 1.0)).reshape(-1, self._size)
        dx = (drows - self._mean(drows) - rows * self._mean(drows * rows)) * inverse
        return dx.reshape(x.shape), sum_tokens(grad), dscale

    def _mean(self, rows: ms.Tensor) -> ms.Tensor:
        """Mean of each row (R, D) -> (R, 1)."""
        return self._matmul(rows, self._average)


class GatedAdd(nn.Cell):
    """x + gate * y, one gate for each sample and channel."""

    def construct(self, x: ms.Tensor, y: ms.Tensor, gate: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, D), y (N, L, D), gate (N, 1, D) -> (N, L, D)."""
        return x + y * gate

    def bprop(
        self, x: ms.Tensor, y: ms.Tensor, gate: ms.Tensor, out: ms.Tensor, dout: ms.Tensor
    ) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """Gradients of x, y and gate."""
        return dout, dout * gate, sum_tokens(dout * y)


def sum_tokens(x: ms.Tensor) -> ms.Tensor:
    """Sum (N, L, D) over L -> (N, 1, D), as a product with ones."""
    return _batch_matmul(ops.ones((x.shape[0], 1, x.shape[1]), ms.float32), x)


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


def sincos_2d(size: int, side: int) -> np.ndarray:
    """Features of the cells of a square grid, row by row -> (side * side, size), float64; columns first, as in MAE."""
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    return np.concatenate([sincos_1d(size // 2, columns), sincos_1d(size // 2, rows)], axis=1)
