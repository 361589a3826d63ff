"""The operators of the networks on a CPU: what is fast there in graph mode.

GELU is written out, tensors are split and not sliced, sums are products with ones. The arithmetic between two products
becomes one kernel (Decision 9).
"""

import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops

_transposing_matmul = ops.BatchMatMul(transpose_b=True)
_batch_matmul = ops.BatchMatMul()
_softmax = ops.Softmax(axis=-1)
_norm_product = ops.MatMul(transpose_b=True)
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
_divide = ops.RealDiv()
_ROOT_OF_2 = 2.0**0.5
# Clips in I3D lie as frames of images (T, N, C, H, W): convolutions over time are those over space of mixed frames.
CLIP_FROM_INPUT, CLIP_CHANNELS, CLIP_FRAMES = (2, 0, 1, 3, 4), 2, 0

# Beyond this tanh is 1 in float32; factors of the highest power first.
_TANH_RANGE = 7.90531110763549805
_TANH_ODD = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_EVEN = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def compute_in(net: nn.Cell, compute_type: ms.Type) -> None:
    """Let the matrix products of a network take factors of this type; weights and all between them stay float32."""
    for _, cell in net.cells_and_names():
        if isinstance(cell, Affine):
            cell.compute_type = compute_type


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
        share = sigmoid(x * (x * x * self._CUBIC + self._SLOPE))
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


def attention(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, scale: float) -> ms.Tensor:
    """Softmax attention, softmax(q k^T * scale) v.

    Args:
        q: queries (B, H, L, D).
        k: keys (B, H, S, D).
        v: values (B, H, S, D).
        scale: factor on the products of queries and keys.

    Returns:
        (B, H, L, D) in the dtype of `q`.
    """
    weights = _softmax(_transposing_matmul(q * scale, k))  # (B, H, L, S)
    return _batch_matmul(weights, v)  # (B, H, L, D)


def sigmoid(x: ms.Tensor) -> ms.Tensor:
    """1 / (1 + exp(-x)), within 3e-7.

    Written with arithmetic alone, which becomes part of a fused kernel: 0.5 + 0.5 tanh(x / 2), tanh as the
    quotient of odd and even polynomials of degrees 13 and 6 that Eigen and XLA use.
    """
    u = ops.minimum(ops.maximum(x * 0.5, -_TANH_RANGE), _TANH_RANGE)
    square = u * u
    odd, even = square * _TANH_ODD[0] + _TANH_ODD[1], square * _TANH_EVEN[0] + _TANH_EVEN[1]
    for factor in _TANH_ODD[2:]:
        odd = odd * square + factor
    for factor in _TANH_EVEN[2:]:
        even = even * square + factor
    return _divide(u * odd, even) * 0.5 + 0.5


class SelfAttention(nn.Cell):
    """Attention of tokens (N, outer * inner, D) over the inner of two axes, or with `over_outer` over the outer one.

    Tokens stay in one order; only queries, keys and values are brought into the order that the attention needs.
    """

    def __init__(self, heads: int, head_size: int, outer: int, inner: int, over_outer: bool) -> None:
        super().__init__()
        self._heads, self._head_size = heads, head_size
        # Over the inner axis (N * O, I, H, d) -> (N * O, H, I, d); over the outer (N, O, I * H, d) -> (N, I * H, O, d).
        self._length = outer if over_outer else inner
        self._columns = inner * heads if over_outer else heads
        self._split = ops.Split(axis=0, output_num=3)
        self._affine, self._project = Affine(), Affine()

    def construct(
        self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, out_weight: ms.Tensor, out_bias: ms.Tensor
    ) -> ms.Tensor:
        """Map x (N, O * I, D), by weights (3D, D) of queries, keys and values and (D, D) of the result -> as x."""
        # Three products with parts of the weight: splitting what one product gives would move several times as much.
        weights, biases = self._split(weight), self._split(bias)  # 3 x (D, D), 3 x (D,)
        tokens = x.reshape(-1, x.shape[2])  # (N * O * I, D)
        q, k, v = [self._arrange(self._affine(tokens, weights[i], biases[i])) for i in range(3)]
        out = attention(q, k, v, self._head_size**-0.5)  # (N * outer, H, inner, d)
        out = out.reshape(-1, self._columns, self._length, self._head_size).transpose(0, 2, 1, 3)
        return self._project(out.reshape(-1, x.shape[2]), out_weight, out_bias).reshape(x.shape)

    def _arrange(self, part: ms.Tensor) -> ms.Tensor:
        """Queries, keys or values (N * O * I, D) -> (N * O, H, I, d) or (N * I, H, O, d)."""
        part = part.reshape(-1, self._length, self._columns, self._head_size).transpose(0, 2, 1, 3)
        return part.reshape(-1, self._heads, self._length, self._head_size)


def masked_attention(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, mask: ms.Tensor) -> ms.Tensor:
    """softmax(q k^T + mask) v of (B, H, L, D); `mask` (L, L)."""
    weights = _softmax(_transposing_matmul(q, k) + mask)  # (B, H, L, L)
    return _batch_matmul(weights, v)


class Split(nn.Cell):
    """A tensor in equal parts along an axis."""

    def __init__(self, axis: int, parts: int) -> None:
        super().__init__()
        self._split = ops.Split(axis, parts)

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """(…, parts * n, …) -> parts times (…, n, …)."""
        return self._split(x)


class Fan(nn.Cell):
    """A tensor for each of several uses, whose gradients are added."""

    def __init__(self, uses: int) -> None:
        super().__init__()
        self._uses = uses

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """The same tensor, as often as it is used."""
        return (x,) * self._uses


def first_rows(x: ms.Tensor, count: int) -> ms.Tensor:
    """X (R, …) -> (count, …)."""
    return x[:count]


def first_corner(x: ms.Tensor, size: int) -> ms.Tensor:
    """X (L, L) -> (size, size)."""
    return x[:size, :size]


def channels(x: ms.Tensor, first: int, count: int) -> ms.Tensor:
    """Channels of clips (N, F, C, …) -> (N, F, count, …)."""
    return x[:, :, first : first + count]


def rows(table: ms.Tensor, index: ms.Tensor) -> ms.Tensor:
    """Rows of a table (R, D) by index (…) int32 -> (…, D)."""
    return ops.gather(table, index, 0)


def layer_norm(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, epsilon: float) -> ms.Tensor:
    """Normalisation over the last axis, then weight and bias (D,)."""
    return ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=epsilon)(x, weight, bias)[0]


def quick_gelu(x: ms.Tensor) -> ms.Tensor:
    """X * sigmoid(1.702 x)."""
    return x * ops.sigmoid(1.702 * x)


def silu(x: ms.Tensor) -> ms.Tensor:
    """X * sigmoid(x), where no gradient is asked for."""
    return x * sigmoid(x)


def gelu(x: ms.Tensor) -> ms.Tensor:
    """GELU by the error function, where no gradient is asked for."""
    return x * 0.5 * (ops.erf(x / _ROOT_OF_2) + 1.0)


def root_mean_square_norm(x: ms.Tensor, weight: ms.Tensor, epsilon: float) -> ms.Tensor:
    """X over the root of its mean square over the last axis, times weight (D,)."""
    return x * ops.rsqrt(ops.mean(x * x, -1, True) + epsilon) * weight


def mean_of_tokens(x: ms.Tensor) -> ms.Tensor:
    """(N, L, D) -> (N, D)."""
    return x.mean(axis=1)


def mean_of_rows(x: ms.Tensor) -> ms.Tensor:
    """(N, …) -> (N,)."""
    return x.reshape(x.shape[0], -1).mean(1)


def mean(x: ms.Tensor) -> ms.Tensor:
    """The mean of all."""
    return x.mean()


def halves(x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
    """The channels of clips (N, F, 2C, …) in two halves, each (N, F, C, …)."""
    count = x.shape[2] // 2
    return x[:, :, :count], x[:, :, count:]


def at_least(x: ms.Tensor, low: float) -> ms.Tensor:
    """The larger one of x and a number."""
    return ops.maximum(x, low)


class AdamW(nn.Cell):
    """AdamW (Loshchilov & Hutter 2019) by the fused Adam kernel; corrections are folded into its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._adam = ops.Adam()
        self._zero, self._beta1, self._beta2 = (ms.Tensor(value, ms.float32) for value in (0.0, BETA1, BETA2))

    def construct(
        self, weights: ms.Parameter, exp_avg: ms.Parameter, exp_avg_sq: ms.Parameter, grads: ms.Tensor,
        step: tuple[ms.Tensor, ms.Tensor], rate: ms.Tensor, decay: ms.Tensor,
    ) -> ms.Tensor:  # fmt: skip
        """Update float32 tensors in place; the last three are those of `adamw_numbers`."""
        shrunk = ops.depend(weights, ops.assign(weights, weights * decay))
        self._adam(shrunk, exp_avg, exp_avg_sq, self._zero, self._zero, rate, self._beta1, self._beta2, step, grads)
        return rate


def adamw_numbers(step: int, rate: float, decay: float) -> tuple[ms.Tensor, ...]:
    """The last arguments of `AdamW` for its `step`-th update (1-based), computed in float64."""
    correction1, correction2 = 1 - BETA1**step, math.sqrt(1 - BETA2**step)
    values = (EPSILON * correction2, rate * correction2 / correction1, 1 - rate * decay)
    return tuple(ms.Tensor(value, ms.float32) for value in values)


def norm(x: ms.Tensor) -> ms.Tensor:
    """The Euclidean norm of a flat tensor."""
    row = x.reshape(1, -1)
    return ops.sqrt(_norm_product(row, row).reshape(()))


def between(a: ms.Tensor, b: ms.Tensor, share: ms.Tensor) -> ms.Tensor:
    """A + share * (b - a)."""
    return (1.0 - share) * a + share * b


def piece(x: ms.Tensor, first: int, count: int) -> ms.Tensor:
    """`count` numbers of a flat tensor."""
    return x[first : first + count]


def pieces(x: ms.Tensor, sizes: tuple[int, ...]) -> tuple[ms.Tensor, ...]:
    """A flat tensor cut into such sizes."""
    return ops.split(x, sizes)


def assign(param: ms.Parameter, value: ms.Tensor) -> ms.Tensor:
    """Copy a value into a parameter, in the parameter's type."""
    return ops.assign(param, value.astype(param.dtype))
