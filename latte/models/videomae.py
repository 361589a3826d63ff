"""VideoMAE V2 (Wang et al. 2023), finetuned on classes: a detector of clips, as the package cd-fvd has it.

Ge et al. 2024, "On the Content Bias in Fréchet Video Distance", found its features to see motion where I3D's class
scores see frames. A vision transformer on patches of 2 frames, with fixed sinusoids for the positions; parameters have
the names and shapes of the published file (`blocks.0.attn.qkv.weight`, …).

Published preparation (cd-fvd 0.1.1): frames resized to 224 pixels, bilinear with half-pixel centres and without
antialiasing, in [0, 1] and not normalised further; the features are the tokens' mean, normalised by `fc_norm`.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte import graph_cache, operators
from latte.models.detector_configs import VideoMAEConfig
from latte.models.layers import Affine, Linear, parameter

_EPSILON = 1e-6


class _TokenNorm(nn.Cell):
    """Normalisation over the last axis with learned `weight` and `bias`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = parameter(size)
        self.bias = parameter(size)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (..., size) -> the same shape."""
        return operators.layer_norm(x, self.weight, self.bias, _EPSILON)


class _FullAttention(nn.Cell):
    """Multi-head attention over all tokens of a clip; keys have no bias."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.qkv = _Matrix(size, 3 * size)
        self.q_bias = parameter(size)
        self.v_bias = parameter(size)
        self.proj = Linear(size, size)
        self._heads = num_heads
        self._scale = (size // num_heads) ** -0.5
        self._no_bias = ms.Tensor(np.zeros(size, np.float32))
        self._affine = Affine()
        self._concat, self._split = ops.Concat(), operators.Split(1, 3)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, size) -> the same shape."""
        count, length, size = x.shape
        bias = self._concat((self.q_bias, self._no_bias, self.v_bias))
        q, k, v = self._split(self._affine(x.reshape(-1, size), self.qkv.weight, bias))  # 3 of (N L, size)
        by_head = (count, length, self._heads, size // self._heads)
        q, k, v = (part.reshape(by_head).transpose(0, 2, 1, 3) for part in (q, k, v))  # 3 x (N, H, L, D)
        out = operators.attention(q, k, v, self._scale)  # (N, H, L, D)
        return self.proj(out.transpose(0, 2, 1, 3).reshape(x.shape))


class _Matrix(nn.Cell):
    """The `weight` (out, in) of a linear layer without a bias."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.weight = parameter(size_out, size_in)


class _ErfMLP(nn.Cell):
    """Linear, GELU by the error function, Linear."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.fc1 = Linear(size, inner)
        self.fc2 = Linear(inner, size)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, size) -> the same shape."""
        return self.fc2(operators.gelu(self.fc1(x)))


class _VideoBlock(nn.Cell):
    """Pre-norm transformer block."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.norm1 = _TokenNorm(config.hidden_size)
        self.attn = _FullAttention(config.hidden_size, config.num_attention_heads)
        self.norm2 = _TokenNorm(config.hidden_size)
        self.mlp = _ErfMLP(config.hidden_size, config.intermediate_size)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, hidden) -> the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Tubelets(nn.Cell):
    """Patches of a few frames to tokens: a convolution whose windows do not overlap, so a matrix product."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.proj = _TubeletKernel(config)
        self._sizes = (config.tubelet_size, config.patch_size)
        self._affine = Affine()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Clips (N, 3, T, S, S) -> (N, L, hidden), tokens in the order time, rows, columns."""
        frames, side = self._sizes
        count, channels, num_frames, height, width = x.shape
        x = x.reshape(count, channels, num_frames // frames, frames, height // side, side, width // side, side)
        x = x.transpose(0, 2, 4, 6, 1, 3, 5, 7).reshape(-1, channels * frames * side * side)  # (N L, 3 t p p)
        weight = self.proj.weight.reshape(self.proj.weight.shape[0], -1)  # (hidden, 3 t p p)
        return self._affine(x, weight, self.proj.bias).reshape(count, -1, weight.shape[0])


class _TubeletKernel(nn.Cell):
    """Kernel (hidden, 3, t, p, p) and bias of the patches' convolution."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.weight = parameter(config.hidden_size, 3, config.tubelet_size, config.patch_size, config.patch_size)
        self.bias = parameter(config.hidden_size)


class VideoMAE(nn.Cell):
    """The encoder of VideoMAE V2 with its classifier; evaluation only.

    Args:
        config: its sizes; None: ViT-giant's.
    """

    def __init__(self, config: VideoMAEConfig | None = None) -> None:
        super().__init__()
        self.config = config or VideoMAEConfig()
        size = self.config.hidden_size
        self.patch_embed = _Tubelets(self.config)
        self.blocks = nn.CellList([_VideoBlock(self.config) for _ in range(self.config.num_hidden_layers)])
        self.fc_norm = _TokenNorm(size)
        self.head = Linear(size, self.config.num_classes)
        self._positions = ms.Tensor(positions(self.config.num_tokens, size)[None])  # (1, L, hidden)
        for name, param in self.parameters_and_names():
            param.name = name

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Class scores before the softmax: clips (N, 3, T, S, S) float32 in [0, 1] -> (N, num_classes) float32."""
        return self.head(self.features(x))

    def features(self, x: ms.Tensor) -> ms.Tensor:
        """Mean of the tokens, normalised: the features of cd-fvd.

        Args:
            x: clips (N, 3, T, S, S), float32 in [0, 1], T and S as the config has them (16 and 224 published).

        Returns:
            (N, hidden) float32.

        Raises:
            ValueError: the shape is another one.
        """
        frames, size = self.config.num_frames, self.config.image_size
        if x.ndim != 5 or tuple(x.shape[1:]) != (3, frames, size, size):
            raise ValueError(f"VideoMAE takes (N, 3, {frames}, {size}, {size}), not {tuple(x.shape)}")
        return graph_cache.call(self._features, x)

    def detect(self, clips: np.ndarray, features: str) -> np.ndarray:
        """Features of a score: clips (N, 3, T, S, S) float32 in [-1, 1] -> (N, 1, D) float32.

        Args:
            clips: T and S as the config has them.
            features: "pool", D the channels, as published; or "logits", D the classes.
        """
        x = ms.Tensor(clips * np.float32(0.5) + np.float32(0.5))
        return np.asarray((self.features if features == "pool" else self)(x).asnumpy())[:, None]

    @ms.jit
    def _features(self, x: ms.Tensor) -> ms.Tensor:
        x = self.patch_embed(x) + self._positions  # (N, L, hidden)
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(operators.mean_of_tokens(x))  # (N, hidden)


def positions(count: int, size: int) -> np.ndarray:
    """Sinusoids of the positions (count, size) float32: sines at even channels, cosines at odd ones."""
    rates = 10000.0 ** -(2 * (np.arange(size) // 2) / size)
    angles = np.arange(count)[:, None] * rates  # (count, size)
    return np.where(np.arange(size) % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)
