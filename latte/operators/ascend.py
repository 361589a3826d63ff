"""The operators of the networks on Ascend: kernels of CANN's operator library (aclnn), seen in a dry run alone.

A network computes in the type of its weights: what comes in is brought to it once, norms' statistics, the softmax and
the sums of a product are float32 within their kernels. Where MindSpore would add the gradients of several uses by a
kernel that CANN compiles first (AddN), `Fan` adds them.
"""

from typing import Any

import mindspore as ms
from mindspore import mint, nn, ops
from mindspore.ops import auto_generate as primitives

F = mint.nn.functional
_batch_matmul, _transposing_matmul = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)
_softmax, _copy = ops.Softmax(axis=-1), primitives.InplaceCopy()
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
# The flash kernel takes heads of a multiple of 16 channels: those of Latte-XL, 72, are padded to 80.
_FLASH_MULTIPLE = 16


def compute_in(net: nn.Cell, compute_type: ms.Type) -> None:
    """Bring the trained weights of a network, and with them all that it computes, to this type."""
    if compute_type != ms.float32:
        for param in net.trainable_params():
            param.set_dtype(compute_type)


class Affine(nn.Cell):
    """x W^T + b in the type of the weight.

    Without a gradient of its own: MindSpore copies a parameter that it hands to one, and makes the same kernels.
    """

    def construct(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Map x (R, in), weight (out, in), bias (out,) -> (R, out)."""
        return F.linear(x.astype(weight.dtype), weight, bias)


class SiLU(nn.Cell):
    """x * sigmoid(x)."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Any shape."""
        return F.silu(x)


class GeluTanh(nn.Cell):
    """GELU by its tanh formula; the second result is the first, for the interface's sake."""

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Map x, any shape -> GELU of x, twice."""
        y = F.gelu(x, approximate="tanh")
        return y, y


class ModulatedNorm(nn.Cell):
    """Layer normalisation (epsilon 1e-6, nothing learned), then x * (1 + scale) + shift for each sample."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._shape = (size,)

    def construct(self, x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """Normalise and modulate x (N, L, D) by shift and scale (N, 1, D) -> (N, L, D), in a tuple."""
        normal = F.layer_norm(x, self._shape, None, None, 1e-6)
        return (mint.addcmul(shift, normal, scale + 1.0),)


class GatedAdd(nn.Cell):
    """x + gate * y, one gate for each sample and channel."""

    def construct(self, x: ms.Tensor, y: ms.Tensor, gate: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, D), y (N, L, D), gate (N, 1, D) -> (N, L, D)."""
        return mint.addcmul(x, y, gate)


def attention(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, scale: float) -> ms.Tensor:
    """Softmax attention, softmax(q k^T * scale) v.

    Half precision takes the fused kernel, float32 products and a softmax in float32.

    Args:
        q: queries (B, H, L, D).
        k: keys (B, H, S, D).
        v: values (B, H, S, D).
        scale: factor on the products of queries and keys.

    Returns:
        (B, H, L, D) in the dtype of `q`.
    """
    if q.dtype == ms.float32:
        weights = _softmax(_transposing_matmul(q * scale, k))  # (B, H, L, S)
        return _batch_matmul(weights, v)
    size = q.shape[3]
    padding = -size % _FLASH_MULTIPLE
    if padding:
        q, k, v = F.pad(q, (0, padding)), F.pad(k, (0, padding)), F.pad(v, (0, padding))
    out = ops.flash_attention_score(q, k, v, q.shape[1], scalar_value=scale, input_layout="BNSD")
    return mint.narrow(out, 3, 0, size) if padding else out


class SelfAttention(nn.Cell):
    """Attention of tokens (N, outer * inner, D) over the inner of two axes, or with `over_outer` over the outer one."""

    def __init__(self, heads: int, head_size: int, outer: int, inner: int, over_outer: bool) -> None:
        super().__init__()
        self._heads, self._head_size = heads, head_size
        self._outer, self._inner, self._over_outer = outer, inner, over_outer
        self._length = outer if over_outer else inner
        self._padding = -head_size % _FLASH_MULTIPLE
        self._affine, self._project = Affine(), Affine()

    def construct(
        self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, out_weight: ms.Tensor, out_bias: ms.Tensor
    ) -> ms.Tensor:
        """Map x (N, O * I, D), by weights (3D, D) of queries, keys and values and (D, D) of the result -> as x."""
        count, _, size = x.shape
        if self._over_outer:
            x = x.view(count, self._outer, self._inner, size).transpose(0, 2, 1, 3)  # (N, I, O, D)
        tokens = x.view(-1, size)
        if weight.dtype == ms.float32:
            out = self._in_float32(self._affine(tokens, weight, bias))
        else:
            if self._padding:
                weight, bias, out_weight = self._padded(weight, bias, out_weight)
            out = self._fused(self._affine(tokens, weight, bias))
        y = self._project(out, out_weight, out_bias)  # (N * O * I, D)
        if self._over_outer:
            y = y.view(count, self._inner, self._outer, size).transpose(0, 2, 1, 3)
        return y.view(count, -1, size)

    def _padded(self, weight: ms.Tensor, bias: ms.Tensor, out_weight: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """Weights whose heads have zeros at their ends: a hundredth of the tokens that would be padded instead."""
        size, padding = self._head_size, self._padding
        heads, width = 3 * self._heads, self._heads * (size + padding)
        weight = F.pad(weight.view(heads, size, -1), (0, 0, 0, padding)).view(3 * width, -1)
        bias = F.pad(bias.view(heads, size), (0, padding)).view(3 * width)
        out_weight = F.pad(out_weight.view(-1, self._heads, size), (0, padding)).view(-1, width)
        return weight, bias, out_weight

    def _fused(self, qkv: ms.Tensor) -> ms.Tensor:
        """Queries, keys and values side by side (R, 3 * H * d) -> (R, H * d), in half precision."""
        width = qkv.shape[1] // 3
        q, k, v = mint.chunk(qkv.view(-1, self._length, 3 * width), 3, 2)  # 3 x (B, L, H * d)
        out = ops.flash_attention_score(q, k, v, self._heads, scalar_value=self._head_size**-0.5, input_layout="BSH")
        return out.view(-1, width)

    def _in_float32(self, qkv: ms.Tensor) -> ms.Tensor:
        """The same by float32 products: fp32 means fp32, and the same bytes each time."""
        heads = (-1, self._length, 3, self._heads, self._head_size)
        qkv = qkv.view(heads).transpose(2, 0, 3, 1, 4)  # (3, B, H, L, d)
        q, k, v = mint.unbind(qkv, 0)
        out = attention(q, k, v, self._head_size**-0.5)
        return out.transpose(0, 2, 1, 3).view(-1, self._heads * self._head_size)


def masked_attention(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, mask: ms.Tensor) -> ms.Tensor:
    """softmax(q k^T + mask) v of (B, H, L, D); `mask` float32, such that it can be added to (B, H, L, S).

    In half precision, too, the softmax is that of float32 sums.
    """
    weights = _softmax(_transposing_matmul(q, k) + mask)  # (B, H, L, S)
    return _batch_matmul(weights.astype(v.dtype), v)


class Split(nn.Cell):
    """A tensor in equal parts along an axis: views."""

    def __init__(self, axis: int, parts: int) -> None:
        super().__init__()
        self._axis, self._parts = axis, parts

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """(…, parts * n, …) -> parts times (…, n, …)."""
        return mint.chunk(x, self._parts, self._axis)


class Fan(nn.Cell):
    """A tensor for each of several uses, whose gradients are added."""

    def __init__(self, uses: int) -> None:
        super().__init__()
        self._uses = uses

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """The same tensor, as often as it is used."""
        return (x,) * self._uses

    def bprop(self, x: ms.Tensor, out: tuple[ms.Tensor, ...], dout: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor]:
        """The sum of the gradients."""
        if self._uses == 2:
            return (mint.add(dout[0], dout[1]),)
        return (mint.sum(mint.stack(dout, 0), 0),)


def first_rows(x: ms.Tensor, count: int) -> ms.Tensor:
    """X (R, …) -> (count, …)."""
    return mint.narrow(x, 0, 0, count)


def first_corner(x: ms.Tensor, size: int) -> ms.Tensor:
    """X (L, L) -> (size, size)."""
    return mint.narrow(mint.narrow(x, 0, 0, size), 1, 0, size)


def channels(x: ms.Tensor, first: int, count: int) -> ms.Tensor:
    """Channels of clips (N, F, C, …) -> (N, F, count, …)."""
    return mint.narrow(x, 2, first, count)


def rows(table: ms.Tensor, index: ms.Tensor) -> ms.Tensor:
    """Rows of a table (R, D) by index (…) int32 -> (…, D)."""
    return F.embedding(index, table)


def layer_norm(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, epsilon: float) -> ms.Tensor:
    """Normalisation over the last axis, then weight and bias (D,)."""
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def quick_gelu(x: ms.Tensor) -> ms.Tensor:
    """X * sigmoid(1.702 x)."""
    return x * mint.sigmoid(1.702 * x)


def silu(x: ms.Tensor) -> ms.Tensor:
    """X * sigmoid(x), where no gradient is asked for."""
    return F.silu(x)


def gelu(x: ms.Tensor) -> ms.Tensor:
    """GELU by the error function, where no gradient is asked for."""
    return F.gelu(x)


def root_mean_square_norm(x: ms.Tensor, weight: ms.Tensor, epsilon: float) -> ms.Tensor:
    """X over the root of its mean square over the last axis, times weight (D,)."""
    return ops.rms_norm(x, weight.astype(x.dtype), epsilon)[0]


def mean_of_tokens(x: ms.Tensor) -> ms.Tensor:
    """(N, L, D) -> (N, D)."""
    return mint.mean(x, 1)


def mean_of_rows(x: ms.Tensor) -> ms.Tensor:
    """(N, …) -> (N,)."""
    return mint.mean(x.view(x.shape[0], -1), 1)


def mean(x: ms.Tensor) -> ms.Tensor:
    """The mean of all."""
    return mint.mean(x)


def halves(x: ms.Tensor) -> tuple[ms.Tensor, ...]:
    """The channels of clips (N, F, 2C, …) in two halves, each (N, F, C, …)."""
    return mint.chunk(x, 2, 2)


def at_least(x: ms.Tensor, low: float) -> ms.Tensor:
    """The larger one of x and a number."""
    return mint.clamp(x, min=low)


class AdamW(nn.Cell):
    """AdamW (Loshchilov & Hutter 2019) as one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self._adamw = primitives.AdamW()

    def construct(
        self, weights: ms.Parameter, exp_avg: ms.Parameter, exp_avg_sq: ms.Parameter, grads: ms.Tensor,
        step: ms.Tensor, rate: float, decay: float,
    ) -> ms.Tensor:  # fmt: skip
        """Update flat float32 tensors in place; `step` (1,) float32 is the number of this update."""
        self._adamw(
            weights, exp_avg, exp_avg_sq, exp_avg_sq, grads, step, rate, BETA1, BETA2, decay, EPSILON, False, False
        )
        return step


def adamw_numbers(step: int, rate: float, decay: float) -> tuple[Any, ...]:
    """The last arguments of `AdamW` for its `step`-th update, such that another value compiles nothing anew."""
    # The kernel counts from the update before.
    return ms.Tensor([step - 1], ms.float32), ms.mutable(float(rate)), ms.mutable(float(decay))


def norm(x: ms.Tensor) -> ms.Tensor:
    """The Euclidean norm of a flat tensor."""
    return mint.norm(x)


def between(a: ms.Tensor, b: ms.Tensor, share: ms.Tensor) -> ms.Tensor:
    """A + share * (b - a)."""
    return mint.lerp(a, b, share)


def piece(x: ms.Tensor, first: int, count: int) -> ms.Tensor:
    """`count` numbers of a flat tensor."""
    return mint.narrow(x, 0, first, count)


def pieces(x: ms.Tensor, sizes: tuple[int, ...]) -> tuple[ms.Tensor, ...]:
    """A flat tensor cut into such sizes: views."""
    return mint.split(x, sizes)


def assign(param: ms.Parameter, value: ms.Tensor) -> ms.Tensor:
    """Copy a value into a parameter, in the parameter's type."""
    return _copy(param, value)
