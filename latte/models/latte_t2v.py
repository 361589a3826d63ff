"""Latte-1, the text-to-video diffusion transformer (Ma et al. 2024, arXiv:2401.03048), there called LatteT2V.

Pairs of blocks attend over the patches of a frame, with the caption beside, and over the frames at a patch. The
diffusion step reaches the blocks through one projection for all of them and a table for each (adaLN-single, Chen et al.
2023, arXiv:2310.00426). Parameters carry the names of the published files, those of diffusers' LatteTransformer3DModel,
so that weights need no renaming.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte import operators
from latte.models import layers
from latte.models.latte import STEP_FEATURES, Guidance, PatchProjection, StepFeatures
from latte.models.t2v_configs import LatteT2VConfig

_MASKED = -1e4
_MLP_RATIO = 4
# Side of the latents whose cells the positions count; larger ones are counted at the same extent (PixArt-alpha).
_POSITION_SIDE = 64


class LatteT2V(nn.Cell):
    """The network: noisy latents, diffusion steps and embedded captions in; noise and variance out.

    Fresh weights follow from the seed given to `latte.device.setup`; the output starts as zero.
    """

    def __init__(self, config: LatteT2VConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.pos_embed = _PositionedPatches(config)
        self.transformer_blocks = nn.CellList([_Block(config, over_time=False) for _ in range(config.num_layers)])
        self.temporal_transformer_blocks = nn.CellList(
            [_Block(config, over_time=True) for _ in range(config.num_layers)]
        )
        self.norm_out = layers.ModulatedNorm(width)
        self.scale_shift_table = layers.parameter(2, width)
        self.proj_out = layers.Linear(width, config.patch_size**2 * config.out_channels)
        self.adaln_single = _SharedModulation(width)
        self.caption_projection = _TextProjection(config.caption_channels, width)
        self._over_time = ms.Tensor(layers.sincos_1d(width, np.arange(config.video_length)).astype(np.float32))
        self._halves, self._guide = operators.Split(1, 2), Guidance()
        layers.fill(self, _fresh)
        for name, param in self.parameters_and_names():
            param.name = name

    def construct(self, x: ms.Tensor, t: ms.Tensor, text: ms.Tensor, text_mask: ms.Tensor) -> ms.Tensor:
        """Predict the noise in `x`.

        Args:
            x: noisy latents (N, F, C, H, W), float32; F is the config's video_length, or 1 for an image.
            t: diffusion steps (N,), 0 to 999, int32 or float32.
            text: hidden states of the captions (N, S, caption_channels) float32.
            text_mask: (N, S) float32, 1 for tokens that are looked at and 0 for those beyond a caption's end.

        Returns:
            (N, F, out_channels, H, W) float32: noise and, in the upper half of the channels, the variance's
            interpolation.
        """
        n, frames, channels, height, width = x.shape
        size = self.config.hidden_size
        tokens = self.pos_embed(x.reshape(n * frames, channels, height, width))  # (N * F, T, D)
        patches = tokens.shape[1]
        tokens = tokens.reshape(n, frames * patches, size)
        modulation, time = self.adaln_single(t)  # (N, 6, D), (N, D)
        caption = self.caption_projection(text)  # (N, S, D)
        bias = ((1.0 - text_mask) * _MASKED).reshape(n, 1, 1, -1)  # (N, 1, 1, S)
        for i in range(self.config.num_layers):
            tokens = self.transformer_blocks[i](tokens, modulation, frames, caption, bias)
            if i == 0 and frames > 1:
                places = self._over_time.astype(tokens.dtype).reshape(1, frames, 1, size)
                tokens = (tokens.reshape(n, frames, patches, size) + places).reshape(n, frames * patches, size)
            tokens = self.temporal_transformer_blocks[i](tokens, modulation, frames)  # (N, F * T, D)
        ends = self.scale_shift_table.reshape(1, 2, size) + time.reshape(n, 1, size)  # (N, 2, D)
        shift, scale = self._halves(ends)  # 2 x (N, 1, D)
        tokens = self.proj_out(self.norm_out(tokens, shift, scale)[0])  # (N, F * T, p * p * out)
        p, out = self.config.patch_size, self.config.out_channels
        tokens = tokens.reshape(n * frames, height // p, width // p, p, p, out).transpose(0, 5, 1, 3, 2, 4)
        return tokens.reshape(n, frames, out, height, width).astype(ms.float32)

    def forward_with_cfg(
        self,
        x: ms.Tensor,
        t: ms.Tensor,
        text: ms.Tensor,
        text_mask: ms.Tensor,
        cfg_scale: float = 7.5,
        all_channels: bool = True,
    ) -> ms.Tensor:
        """Classifier-free guidance (Ho & Salimans 2022) on a batch of two halves: with the captions, then without.

        Args:
            x: (2N, F, C, H, W); only the first half is looked at and used for both.
            t: (2N,).
            text: (2N, S, caption_channels), the second half that of the empty caption.
            text_mask: (2N, S), both halves those of the captions, as published: the empty caption is cut to their
                length.
            cfg_scale: 1 is no guidance.
            all_channels: guide the variance too, as published.

        Returns:
            (2N, F, out_channels, H, W) float32, the guided channels equal in both halves.
        """
        half = operators.first_rows(x, x.shape[0] // 2)
        out = self.construct(ops.cat((half, half), axis=0), t, text, text_mask)
        return self._guide(out, cfg_scale, self.config.in_channels, all_channels)


class _PositionedPatches(nn.Cell):
    """Patches to tokens with 2-D sine positions, which no file holds."""

    def __init__(self, config: LatteT2VConfig) -> None:
        super().__init__()
        self.proj = PatchProjection(config.hidden_size, config.in_channels, config.patch_size)
        scale = max(config.sample_size // _POSITION_SIDE, 1)
        side = config.sample_size // config.patch_size
        self._positions = ms.Tensor(layers.sincos_2d(config.hidden_size, side, 1 / scale).astype(np.float32)[None])

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (B, C, H, W) -> (B, T, D)."""
        tokens = self.proj(x)
        return tokens + self._positions.astype(tokens.dtype)


class _SharedModulation(nn.Cell):
    """Diffusion steps to the modulation that all blocks begin from."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = _StepEmbedding(width)
        self.linear = layers.Linear(width, 6 * width)
        self._silu = layers.SiLU()

    def construct(self, t: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Map t (N,) -> (N, 6, D), (N, D)."""
        time = self.emb(t)  # (N, D)
        return self.linear(self._silu(time)).reshape(time.shape[0], 6, time.shape[1]), time


class _StepEmbedding(nn.Cell):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = _TwoLinears(STEP_FEATURES, width)
        self._features = StepFeatures()
        self._silu = layers.SiLU()

    def construct(self, t: ms.Tensor) -> ms.Tensor:
        """Map t (N,) -> (N, D)."""
        mlp = self.timestep_embedder
        return mlp.linear_2(self._silu(mlp.linear_1(self._features(t))))


class _TwoLinears(nn.Cell):
    """Parameters of two linear layers under the published names."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.linear_1 = layers.Linear(size, width)
        self.linear_2 = layers.Linear(width, width)


class _TextProjection(_TwoLinears):
    """Hidden states of the text encoder to the network's width."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__(size, width)
        self._gelu = layers.GeluTanh()

    def construct(self, text: ms.Tensor) -> ms.Tensor:
        """Map text (N, S, C) -> (N, S, D)."""
        return self.linear_2(self._gelu(self.linear_1(text))[0])


class _Block(nn.Cell):
    """Self-attention, over space cross-attention to the caption, MLP; the caption comes in without a norm before it."""

    def __init__(self, config: LatteT2VConfig, over_time: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.scale_shift_table = layers.parameter(6, width)
        self.norm1 = layers.ModulatedNorm(width)
        self.attn1 = _SelfAttention(config, over_time)
        if not over_time:
            self.attn2 = _CrossAttention(config)
        self.norm2 = layers.ModulatedNorm(width)
        self.ff = _FeedForward(width)
        self.gated_add = layers.GatedAdd()
        self._has_text = not over_time
        self._split = operators.Split(1, 6)

    def construct(
        self,
        x: ms.Tensor,
        modulation: ms.Tensor,
        frames: int,
        caption: ms.Tensor | None = None,
        bias: ms.Tensor | None = None,
    ) -> ms.Tensor:
        """Map x (N, F * T, D), modulation (N, 6, D), caption (N, S, D), bias (N, 1, 1, S) -> (N, F * T, D)."""
        modulation = modulation + self.scale_shift_table.reshape(1, 6, x.shape[2])  # (N, 6, D)
        shift1, scale1, gate1, shift2, scale2, gate2 = self._split(modulation)  # 6 x (N, 1, D)
        x = self.gated_add(x, self.attn1(self.norm1(x, shift1, scale1)[0], frames), gate1)
        if self._has_text:
            x = x + self.attn2(x, caption, bias)
        return self.gated_add(x, self.ff(self.norm2(x, shift2, scale2)[0]), gate2)


class _Projections(nn.Cell):
    """Parameters of an attention under the published names."""

    def __init__(self, config: LatteT2VConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.to_q = layers.Linear(width, width)
        self.to_k = layers.Linear(width, width)
        self.to_v = layers.Linear(width, width)
        self.to_out = nn.CellList([layers.Linear(width, width)])
        self._heads, self._head_size = config.num_attention_heads, config.attention_head_dim


class _SelfAttention(_Projections):
    """Attention over the patches of each frame, or over the frames at each patch; tokens stay in one order."""

    def __init__(self, config: LatteT2VConfig, over_time: bool) -> None:
        super().__init__(config)
        self._is_over_time = over_time

    def construct(self, x: ms.Tensor, frames: int) -> ms.Tensor:
        """Map x (N, F * T, D) -> the same shape."""
        patches = x.shape[1] // frames
        # Over space (N * F, T, H, d) -> (N * F, H, T, d); over time (N, F, T * H, d) -> (N, T * H, F, d).
        inner = frames if self._is_over_time else patches
        columns = patches * self._heads if self._is_over_time else self._heads
        q, k, v = (self._arrange(linear(x), inner, columns) for linear in (self.to_q, self.to_k, self.to_v))
        out = operators.attention(q, k, v, self._head_size**-0.5)  # (N * outer, H, inner, d)
        out = out.reshape(-1, columns, inner, self._head_size).transpose(0, 2, 1, 3)
        return self.to_out[0](out.reshape(x.shape))

    def _arrange(self, part: ms.Tensor, inner: int, columns: int) -> ms.Tensor:
        """Queries, keys or values (N, F * T, D) -> (N * outer, H, inner, d)."""
        part = part.reshape(-1, inner, columns, self._head_size).transpose(0, 2, 1, 3)
        return part.reshape(-1, self._heads, inner, self._head_size)


class _CrossAttention(_Projections):
    """Attention of all tokens to those of the caption, with a mask, written out: 120 tokens need no fused kernel."""

    def __init__(self, config: LatteT2VConfig) -> None:
        super().__init__(config)

    def construct(self, x: ms.Tensor, caption: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, D), caption (N, S, D) -> (N, L, D); `bias` (N, 1, 1, S) is added to the scores."""
        q = self._by_head(self.to_q(x) * self._head_size**-0.5)  # (N, H, L, d)
        k, v = self._by_head(self.to_k(caption)), self._by_head(self.to_v(caption))  # (N, H, S, d)
        out = operators.masked_attention(q, k, v, bias).transpose(0, 2, 1, 3)  # (N, L, H, d)
        return self.to_out[0](out.reshape(x.shape))

    def _by_head(self, part: ms.Tensor) -> ms.Tensor:
        return part.reshape(part.shape[0], -1, self._heads, self._head_size).transpose(0, 2, 1, 3)


class _FeedForward(nn.Cell):
    """Linear, GELU (tanh), Linear, under the published names: `net.0.proj`, `net.2`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.CellList([_Inner(width), nn.Identity(), layers.Linear(_MLP_RATIO * width, width)])

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (..., D) -> (..., D)."""
        return self.net[2](self.net[0](x))


class _Inner(nn.Cell):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = layers.Linear(width, _MLP_RATIO * width)
        self._gelu = layers.GeluTanh()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (..., D) -> (..., 4 D)."""
        return self._gelu(self.proj(x))[0]


def _fresh(name: str) -> Any:
    """Initializer of the parameter `name`, as in the published code; None leaves zeros."""
    if name.endswith(".bias") or name.startswith("proj_out"):
        return None
    if name.endswith("scale_shift_table"):
        return lambda rng, shape: layers.normal(shape[1] ** -0.5)(rng, shape)
    if name.startswith(("adaln_single", "caption_projection")):
        return layers.normal(0.02)
    return layers.xavier_uniform
