"""The encoder of T5 v1.1 (Raffel et al. 2020, arXiv:1910.10683; gated GELU after Shazeer 2020, arXiv:2002.05202).

Parameters have the names and shapes of the published files (`encoder.block.0.layer.0.SelfAttention.q.weight`, …), so
that weights need no renaming. The largest, XXL, has 4.8 billion parameters, 19 GB: `EncoderInPieces` keeps one of its
24 blocks at a time.
"""

import math
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import nn

from latte import graph_cache, operators
from latte.errors import UserError
from latte.models import layers
from latte.models.t2v_configs import T5Config

_MASKED = -1e9
_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"


class T5Encoder(nn.Cell):
    """Tokens to hidden states, the whole network at once.

    Fresh weights are zeros, and ones in the norms: nobody trains it here, and drawing billions of them takes minutes.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = layers.Embedding(config.vocab_size, config.d_model)
        self.encoder = _Stack(config)
        for name, param in self.parameters_and_names():
            param.name = name

    def construct(self, tokens: ms.Tensor, mask: ms.Tensor) -> ms.Tensor:
        """Tokens (N, L) int32, mask (N, L) float32, 1 for tokens and 0 for padding -> (N, L, d_model) float32."""
        x = operators.rows(self.shared.weight, tokens)  # (N, L, d_model)
        first = self.encoder.block[0].layer[0].SelfAttention
        bias = first.positions(tokens.shape[1]) + ((1.0 - mask) * _MASKED).reshape(mask.shape[0], 1, 1, -1)
        for block in self.encoder.block:
            x = block(x, bias)
        return self.encoder.final_layer_norm(x)


class EncoderInPieces:
    """The same with one block in memory, into which the blocks' weights come one after the other.

    Each caption is computed alone, in one shape, so that its hidden states follow from it and the weights, bit for bit,
    whatever is embedded beside it.

    Args:
        config: sizes.
        read: a copy of a tensor by its name, float32.
        compute_type: what matrix products take.
    """

    def __init__(
        self, config: T5Config, read: Callable[[str], np.ndarray], compute_type: ms.Type | None = None
    ) -> None:
        self.config = config
        self._read = read
        self._block = _Block(config, has_bias=False)
        for name, param in self._block.parameters_and_names():
            param.name = name
        self._norm = _Norm(config)
        self._positions = _positions(config, read(f"encoder.block.0.{_BIAS}"))
        if compute_type is not None:
            layers.set_compute_type(self._block, compute_type)

    def encode(
        self, tokens: np.ndarray, mask: np.ndarray, on_block: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """Tokens (N, L) of whole numbers, mask (N, L), 1 for tokens -> hidden states (N, L, d_model) float32.

        Args:
            tokens: of the captions.
            mask: of the captions.
            on_block: called with the number of each block that is done.

        Raises:
            UserError: a token that the vocabulary does not have.
        """
        size = self.config.vocab_size
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < size):
            raise UserError(f"text encoder: tokens {tokens.min()} to {tokens.max()} do not fit a vocabulary of {size}")
        states = np.asarray(self._read("shared.weight")[tokens], np.float32)  # (N, L, d_model)
        positions = self._positions(tokens.shape[1])  # (1, H, L, L)
        shut = ((1.0 - mask.astype(np.float32)) * np.float32(_MASKED))[:, None, None, None]  # (N, 1, 1, 1, L)
        for i in range(self.config.num_layers):
            for name, param in self._block.parameters_and_names():
                operators.assign(param, ms.Tensor(self._read(f"encoder.block.{i}.{name}")))
            for row in range(len(states)):
                bias = ms.Tensor((positions + shut[row]).astype(np.float32))
                x = ms.Tensor(states[row : row + 1])  # (1, L, d_model)
                states[row] = graph_cache.call(self._block.run, x, bias).asnumpy()[0]
            if on_block is not None:
                on_block(i)
        operators.assign(self._norm.weight, ms.Tensor(self._read("encoder.final_layer_norm.weight")))
        for row in range(len(states)):
            states[row] = self._norm(ms.Tensor(states[row : row + 1])).asnumpy()[0]
        return states


class _Stack(nn.Cell):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.CellList([_Block(config, has_bias=i == 0) for i in range(config.num_layers)])
        self.final_layer_norm = _Norm(config)


class _Block(nn.Cell):
    """Self-attention and MLP, each behind a norm."""

    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.CellList([_AttentionLayer(config, has_bias), _MlpLayer(config)])

    def construct(self, x: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, d_model) -> the same shape; `bias` (N, H, L, L) is added to the scores."""
        return self.layer[1](self.layer[0](x, bias))

    @ms.jit
    def run(self, x: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """As `construct`, compiled."""
        return self.layer[1](self.layer[0](x, bias))


class _AttentionLayer(nn.Cell):
    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = _Attention(config, has_bias)
        self.layer_norm = _Norm(config)

    def construct(self, x: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, d_model) -> the same shape."""
        return x + self.SelfAttention(self.layer_norm(x), bias)


class _MlpLayer(nn.Cell):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = _GatedMlp(config)
        self.layer_norm = _Norm(config)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, d_model) -> the same shape."""
        return x + self.DenseReluDense(self.layer_norm(x))


class _Attention(nn.Cell):
    """Attention whose products are not scaled: T5 folds the factor into its fresh weights."""

    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        width, inner = config.d_model, config.inner_size
        self.q, self.k, self.v = _Linear(width, inner), _Linear(width, inner), _Linear(width, inner)
        self.o = _Linear(inner, width)
        if has_bias:
            self.relative_attention_bias = layers.Embedding(config.relative_attention_num_buckets, config.num_heads)
        self._config, self._heads, self._size = config, config.num_heads, config.d_kv

    def construct(self, x: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, d_model) -> the same shape; `bias` (N, H, L, L) is added to the scores."""
        by_head = (x.shape[0], x.shape[1], self._heads, self._size)
        q, k, v = (linear(x).reshape(by_head).transpose(0, 2, 1, 3) for linear in (self.q, self.k, self.v))
        out = operators.masked_attention(q, k, v, bias).transpose(0, 2, 1, 3)  # (N, L, H, d)
        return self.o(out.reshape(x.shape[0], x.shape[1], self._heads * self._size))

    def positions(self, length: int) -> ms.Tensor:
        """The bias of relative positions (1, H, L, L)."""
        index = ms.Tensor(buckets(self._config, length).reshape(-1))
        rows = operators.rows(self.relative_attention_bias.weight, index)  # (L * L, H)
        return rows.transpose(1, 0).reshape(1, self._heads, length, length)


class _GatedMlp(nn.Cell):
    """(GELU(x W0) * x W1) W2."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = _Linear(config.d_model, config.d_ff), _Linear(config.d_model, config.d_ff)
        self.wo = _Linear(config.d_ff, config.d_model)
        self._gelu = layers.GeluTanh()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, d_model) -> the same shape."""
        return self.wo(self._gelu(self.wi_0(x))[0] * self.wi_1(x))


class _Linear(nn.Cell):
    """y = x W^T."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = layers.parameter(out_features, in_features)
        self._zeros = ms.Tensor(np.zeros(out_features, np.float32))
        self._sizes = (in_features, out_features)
        self._affine = layers.Affine()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (..., in) -> (..., out)."""
        y = self._affine(x.reshape(-1, self._sizes[0]), self.weight, self._zeros.astype(self.weight.dtype))
        return y.reshape((*x.shape[:-1], self._sizes[1]))


class _Norm(nn.Cell):
    """x over the root of its mean square (Zhang & Sennrich 2019), times a learned weight."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.weight = ms.Parameter(ms.Tensor(np.ones(config.d_model, np.float32)))
        self._epsilon = config.layer_norm_epsilon

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (..., d_model) -> the same shape."""
        return operators.root_mean_square_norm(x, self.weight, self._epsilon)


def _positions(config: T5Config, table: np.ndarray) -> Callable[[int], np.ndarray]:
    """The bias of relative positions (1, H, L, L) by L, of its table (buckets, H)."""
    kept = np.array(table, np.float32)
    return lambda length: kept[buckets(config, length)].transpose(2, 0, 1)[None]


def buckets(config: T5Config, length: int) -> np.ndarray:
    """The bucket of each pair of positions (L, L) int32: exact near by, by the logarithm of the distance further off.

    A quarter of the buckets are exact distances to one side; positions after a token have a half of their own.
    """
    count, exact = config.relative_attention_num_buckets // 2, config.relative_attention_num_buckets // 4
    offset = np.arange(length)[None] - np.arange(length)[:, None]  # (L, L)
    distance = np.abs(offset)
    # In float32 with its roundings, as published: a distance on a border could fall on the other side of it.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    far = ratio / np.float32(math.log(config.relative_attention_max_distance / exact)) * np.float32(count - exact)
    far = np.minimum(exact + far.astype(np.int64), count - 1)
    return (np.where(distance < exact, distance, far) + np.where(offset > 0, count, 0)).astype(np.int32)
