"""Latte, the latent diffusion transformer for video of Ma et al. 2024 (arXiv:2401.03048), variant 1 of the paper.

Blocks alternate between attention over the patches of a frame and attention over the frames at a patch. Parameters
carry the names of the published PyTorch checkpoints (github.com/Vchitect/Latte), so that converting is copying.

Trained parameters in millions, for condition none, as in the paper (position features are fixed and not counted):

    Latte-XL/2   673.68
    Latte-XL/4   673.85
    Latte-XL/8   674.51
    Latte-L/2    456.82
    Latte-L/4    456.96
    Latte-L/8    457.55
    Latte-B/2    129.55
    Latte-B/4    129.66
    Latte-B/8    130.10
    Latte-S/2     32.48
    Latte-S/4     32.54
    Latte-S/8     32.76
"""

import math
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte import operators
from latte.models import layers
from latte.models.configs import TEXT_SHAPE, LatteConfig

STEP_FEATURES = 256
_FIXED = ("pos_embed", "temp_embed")


class PatchEmbed(nn.Cell):
    """Patches to tokens: a convolution with stride equal to kernel, done as one matrix product."""

    def __init__(self, config: LatteConfig) -> None:
        super().__init__()
        self.proj = PatchProjection(config.hidden_size, config.in_channels, config.patch_size)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (B, C, H, W) -> (B, T, D)."""
        return self.proj(x)


class PatchProjection(nn.Cell):
    """Parameters and product of a patch embedding."""

    def __init__(self, width: int, channels: int, patch: int) -> None:
        super().__init__()
        self.weight = layers.parameter(width, channels, patch, patch)
        self.bias = layers.parameter(width)
        self._channels, self._patch, self._width = channels, patch, width
        self._affine = layers.Affine()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (B, C, H, W) -> (B, T, D)."""
        batch, side, c, p = x.shape[0], x.shape[2] // self._patch, self._channels, self._patch
        x = x.reshape(batch, c, side, p, side, p).transpose(0, 2, 4, 1, 3, 5)  # (B, h, w, C, p, p)
        rows = x.reshape(batch * side * side, c * p * p)
        y = self._affine(rows, self.weight.reshape(self._width, c * p * p), self.bias)
        return y.reshape(batch, side * side, self._width)


class StepFeatures(nn.Cell):
    """Diffusion steps to 256 cosines and sines."""

    def __init__(self) -> None:
        super().__init__()
        half = STEP_FEATURES // 2
        rates = np.exp(-math.log(10000) * np.arange(half, dtype=np.float32) / half)
        self._rates = ms.Tensor(rates.astype(np.float32)[None])  # (1, 128)

    def construct(self, t: ms.Tensor) -> ms.Tensor:
        """Map t (N,), whole numbers or float -> (N, 256)."""
        angles = t.astype(ms.float32).reshape(-1, 1) * self._rates  # (N, 128)
        return ops.cat((ops.cos(angles), ops.sin(angles)), axis=1)


class TimestepEmbedder(nn.Cell):
    """Diffusion steps to vectors: 256 sinusoids, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.SequentialCell(layers.Linear(STEP_FEATURES, width), layers.SiLU(), layers.Linear(width, width))
        self._features = StepFeatures()

    def construct(self, t: ms.Tensor) -> ms.Tensor:
        """Map t (N,), whole numbers or float -> (N, D)."""
        return self.mlp(self._features(t))


class LabelEmbedder(nn.Cell):
    """Labels to vectors; the label `num_classes` is the null class of classifier-free guidance."""

    def __init__(self, config: LatteConfig) -> None:
        super().__init__()
        self.embedding_table = layers.Embedding(config.label_rows, config.hidden_size)

    def construct(self, y: ms.Tensor) -> ms.Tensor:
        """Map y (N,) whole numbers -> (N, D)."""
        return self.embedding_table(y.astype(ms.int32))


class Attention(nn.Cell):
    """Self-attention over the patches of each frame or over the frames at each patch."""

    def __init__(self, config: LatteConfig, over_time: bool) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_heads
        self.qkv = layers.Linear(width, 3 * width)
        self.proj = layers.Linear(width, width)
        self._attend = operators.SelfAttention(heads, width // heads, config.num_frames, config.num_patches, over_time)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, F * T, D) -> the same shape."""
        return self._attend(x, self.qkv.weight, self.qkv.bias, self.proj.weight, self.proj.bias)


class Block(nn.Cell):
    """Attention and MLP, each shifted, scaled and gated by the condition (adaLN-zero, Peebles & Xie 2023)."""

    def __init__(self, config: LatteConfig, over_time: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = layers.ModulatedNorm(width)
        self.attn = Attention(config, over_time)
        self.norm2 = layers.ModulatedNorm(width)
        self.mlp = layers.MLP(width, int(width * config.mlp_ratio))
        self.adaLN_modulation = nn.SequentialCell(layers.SiLU(), layers.Linear(width, 6 * width))
        self.gated_add = layers.GatedAdd()
        self._split, self._fan = operators.Split(1, 6), operators.Fan(2)

    def construct(self, x: ms.Tensor, c: ms.Tensor) -> ms.Tensor:
        """Map x (N, F * T, D), c (N, D) -> (N, F * T, D)."""
        modulation = self.adaLN_modulation(c).reshape(c.shape[0], 6, c.shape[1])  # (N, 6, D)
        shift1, scale1, gate1, shift2, scale2, gate2 = self._split(modulation)  # 6 x (N, 1, D)
        x, normed = self._fan(x)
        x = self.gated_add(x, self.attn(self.norm1(normed, shift1, scale1)[0]), gate1)
        x, normed = self._fan(x)
        return self.gated_add(x, self.mlp(self.norm2(normed, shift2, scale2)[0]), gate2)


class FinalLayer(nn.Cell):
    """Tokens to patches of noise and variance."""

    def __init__(self, config: LatteConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = layers.ModulatedNorm(width)
        self.linear = layers.Linear(width, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.SequentialCell(layers.SiLU(), layers.Linear(width, 2 * width))
        self._split = operators.Split(1, 2)

    def construct(self, x: ms.Tensor, c: ms.Tensor) -> ms.Tensor:
        """Map x (N, F * T, D), c (N, D) -> (N, F * T, p * p * 2C)."""
        shift, scale = self._split(self.adaLN_modulation(c).reshape(c.shape[0], 2, c.shape[1]))  # 2 x (N, 1, D)
        return self.linear(self.norm_final(x, shift, scale)[0])


class Latte(nn.Cell):
    """The network: noisy latents, diffusion steps and a condition in; noise and variance out.

    Fresh weights are as published (adaLN-zero: every block starts as the identity, the output as zero) and follow from
    the seed given to `latte.device.setup`.
    """

    def __init__(self, config: LatteConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.x_embedder = PatchEmbed(config)
        self.t_embedder = TimestepEmbedder(width)
        self.pos_embed = layers.parameter(1, config.num_patches, width, fixed=True)
        self.temp_embed = layers.parameter(1, config.num_frames, width, fixed=True)
        if config.condition == "class":
            self.y_embedder = LabelEmbedder(config)
        if config.condition == "text":
            projection = layers.Linear(math.prod(TEXT_SHAPE), width)
            self.text_embedding_projection = nn.SequentialCell(layers.SiLU(), projection)
        self.blocks = nn.CellList([Block(config, over_time=i % 2 == 1) for i in range(config.depth)])
        self.final_layer = FinalLayer(config)
        self._condition = config.condition
        self._guide = Guidance()
        self._twice, self._each = operators.Fan(2), operators.Fan(config.depth + (config.condition == "class"))
        layers.fill(self, _fresh)
        side = config.input_size // config.patch_size
        positions = {
            "pos_embed": (self.pos_embed, layers.sincos_2d(width, side)),
            "temp_embed": (self.temp_embed, layers.sincos_1d(width, np.arange(config.num_frames))),
        }
        for param, values in positions.values():
            param.set_data(ms.Tensor(values[None].astype(np.float32)))
        for name, param in self.parameters_and_names():
            param.name = name

    def construct(self, x: ms.Tensor, t: ms.Tensor, y: Any = None, text: Any = None) -> ms.Tensor:
        """Predict the noise in `x`.

        Args:
            x: noisy latents (N, F, C, H, W), float32.
            t: diffusion steps (N,), 0 to 999, int32 or float32.
            y: labels (N,) int32, for condition class; `num_classes` is the null class, where labels are dropped.
            text: CLIP embeddings (N, 77, 768) float32, for condition text.

        Returns:
            (N, F, 2C, H, W) float32: noise and, in the upper half of the channels, the variance's interpolation;
            (N, F, C, H, W) without learn_sigma.
        """
        config = self.config
        n, frames, channels, height, width = x.shape
        patches, size = config.num_patches, config.hidden_size
        tokens = self.x_embedder(x.reshape(n * frames, channels, height, width))  # (N * F, T, D)
        tokens = tokens + self.pos_embed.astype(tokens.dtype)
        tokens = tokens.reshape(n, frames * patches, size)
        time, condition = self._twice(self.t_embedder(t))  # 2 x (N, D)
        if self._condition == "class":
            condition = condition + self.y_embedder(y)  # (N, D)
        if self._condition == "text":
            condition = condition + self.text_embedding_projection(text.reshape(n, -1))  # (N, D)
        conditions = self._each(condition)
        for i, block in enumerate(self.blocks):
            if i == 1:
                tokens = tokens.reshape(n, frames, patches, size)
                tokens = tokens + self.temp_embed.astype(tokens.dtype).reshape(1, frames, 1, size)
                tokens = tokens.reshape(n, frames * patches, size)
            tokens = block(tokens, conditions[i])  # (N, F * T, D)
        # As published: text does not reach the last modulation, labels do.
        tokens = self.final_layer(tokens, conditions[-1] if self._condition == "class" else time)
        p, out = config.patch_size, config.out_channels
        side = height // p
        tokens = tokens.reshape(n * frames, side, side, p, p, out).transpose(0, 5, 1, 3, 2, 4)
        return tokens.reshape(n, frames, out, height, width).astype(ms.float32)

    def forward_with_cfg(
        self,
        x: ms.Tensor,
        t: ms.Tensor,
        y: ms.Tensor | None = None,
        text: ms.Tensor | None = None,
        cfg_scale: float = 7.0,
        all_channels: bool = False,
    ) -> ms.Tensor:
        """Classifier-free guidance (Ho & Salimans 2022) on a batch of two halves: with condition, then without.

        Args:
            x: (2N, F, C, H, W); as published only the first half is looked at and used for both.
            t: (2N,).
            y: (2N,), the second half the null class.
            text: (2N, 77, 768), the second half the embedding of the empty text.
            cfg_scale: 1 is no guidance.
            all_channels: guide the variance too; published is the noise alone.

        Returns:
            (2N, F, 2C, H, W) float32, the guided channels equal in both halves.
        """
        half = operators.first_rows(x, x.shape[0] // 2)
        out = self.construct(ops.cat((half, half), axis=0), t, y, text)
        return self._guide(out, cfg_scale, self.config.in_channels, all_channels)


class Guidance(nn.Cell):
    """Classifier-free guidance of outputs, the first half of them with a condition, the second without."""

    def __init__(self) -> None:
        super().__init__()
        self._halves = operators.Split(0, 2)

    def construct(self, out: ms.Tensor, cfg_scale: float, noise_channels: int, all_channels: bool) -> ms.Tensor:
        """Outputs (2N, F, C, H, W) -> the same shape, the guided channels equal in both halves."""
        conditional, plain = self._halves(out)  # 2 x (N, F, C, H, W)
        guided = plain + cfg_scale * (conditional - plain)
        if all_channels:
            return ops.cat((guided, guided), axis=0)
        noise = operators.channels(ops.cat((guided, guided), axis=0), 0, noise_channels)
        return ops.cat((noise, operators.channels(out, noise_channels, out.shape[2] - noise_channels)), axis=2)


def _fresh(name: str) -> Any:
    """Initializer of the parameter `name` in the published code; None leaves zeros."""
    zero = ("adaLN_modulation", "final_layer", "pos_embed", "temp_embed")
    if name.endswith(".bias") or any(part in name for part in zero):
        return None
    if name.startswith(("t_embedder", "y_embedder")):
        return layers.normal(0.02)
    return layers.xavier_uniform
