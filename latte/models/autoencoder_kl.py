"""AutoencoderKL: the convolutional autoencoder whose latents Latte models.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models". Parameters have the names and
shapes of the published `diffusers` checkpoints (sd-vae-ft-mse, sd-vae-ft-ema; attention as `to_q`, `to_k`, `to_v`,
`to_out.0`), so that weights need no renaming.
"""

import math
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte import graph_cache, operators
from latte.errors import UserError
from latte.models import layers
from latte.models.configs import AutoencoderKLConfig
from latte.models.layers import Linear, parameter

_NORM_EPSILON = 1e-6
_LOGVAR_RANGE = (-30.0, 20.0)


class AutoencoderKL(nn.Cell):
    """Images to the mean and log-variance of a normal distribution over latents, and latents back to images.

    Fresh weights follow from the seed given to `latte.device.setup`. `encode` and `decode` are compiled once per shape.

    Args:
        config: sizes.
    """

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quant_conv = _Conv(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = _Conv(config.latent_channels, config.latent_channels, 1)
        self._split = operators.Split(1, 2)
        layers.fill(self, _fresh_rule(self))
        for name, param in self.parameters_and_names():
            param.name = name

    def encode(self, x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Images (N, 3, H, W) float32 in [-1, 1] -> mean and log-variance, each (N, C, H / 8, W / 8) float32.

        Raises:
            UserError: the shape does not fit: other channels, or sides that are not multiples of the downsampling.
        """
        factor = self.config.downsampling
        if x.ndim != 4 or x.shape[1] != self.config.in_channels or x.shape[2] % factor or x.shape[3] % factor:
            raise UserError(
                f"autoencoder: images {tuple(x.shape)} do not fit, expected (N, {self.config.in_channels}, H, W) with "
                f"H and W multiples of {factor}"
            )
        return graph_cache.call(self._encode, x)

    def decode(self, z: ms.Tensor) -> ms.Tensor:
        """Latents (N, C, h, w) float32, not scaled -> images (N, 3, 8 h, 8 w) float32, about [-1, 1].

        Raises:
            UserError: the latents have other channels.
        """
        if z.ndim != 4 or z.shape[1] != self.config.latent_channels:
            raise UserError(
                f"autoencoder: latents {tuple(z.shape)} do not fit, expected (N, {self.config.latent_channels}, h, w)"
            )
        return graph_cache.call(self._decode, z)

    def construct(self, x: ms.Tensor, noise: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """Encode x (N, 3, H, W), draw latents with noise (N, C, h, w), decode -> (images, mean, log-variance)."""
        mean, logvar = self.moments(x)
        return self.image(mean + ops.exp(0.5 * logvar) * noise), mean, logvar

    def moments(self, x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """`encode` without its check and its compilation, as a part of a larger graph."""
        mean, logvar = self._split(self.quant_conv(self.encoder(x)))  # 2 x (N, C, h, w)
        return mean, ops.clamp(logvar, *_LOGVAR_RANGE)

    def image(self, z: ms.Tensor) -> ms.Tensor:
        """`decode` without its check and its compilation, as a part of a larger graph."""
        return self.decoder(self.post_quant_conv(z))  # (N, 3, H, W)

    @ms.jit
    def _encode(self, x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        return self.moments(x)

    @ms.jit
    def _decode(self, z: ms.Tensor) -> ms.Tensor:
        return self.image(z)


def encode_in_chunks(net: AutoencoderKL, images: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """Encode images (N, 3, H, W) at most `chunk` at a time, so that memory is bounded by `chunk`, not by N.

    The last chunk is filled up with its last image: one compiled graph serves all.

    Returns:
        Mean and log-variance, each (N, C, h, w) float32.

    Raises:
        UserError: no images, no room for one in a chunk, or a shape that does not fit.
    """
    parts = [net.encode(ms.Tensor(part)) for part in _chunks(images, chunk)]
    means, logvars = (np.concatenate([part[i].asnumpy() for part in parts]) for i in (0, 1))
    return means[: len(images)], logvars[: len(images)]


def decode_in_chunks(net: AutoencoderKL, latents: np.ndarray, chunk: int) -> np.ndarray:
    """Decode latents (N, C, h, w), not scaled, at most `chunk` at a time -> images (N, 3, 8 h, 8 w) float32.

    Raises:
        UserError: no latents, no room for one in a chunk, or a shape that does not fit.
    """
    parts = [net.decode(ms.Tensor(part)).asnumpy() for part in _chunks(latents, chunk)]
    return np.concatenate(parts)[: len(latents)]


def _chunks(items: np.ndarray, chunk: int) -> list[np.ndarray]:
    if chunk < 1 or len(items) == 0:
        raise UserError(f"autoencoder: cannot go through {len(items)} items in chunks of {chunk}")
    parts = [items[first : first + chunk] for first in range(0, len(items), chunk)]
    missing = chunk - len(parts[-1])
    if missing and len(parts) > 1:
        parts[-1] = np.concatenate([parts[-1], np.repeat(parts[-1][-1:], missing, axis=0)])
    return [np.ascontiguousarray(part, np.float32) for part in parts]


class _Conv(nn.Cell):
    """Convolution with bias; torch.nn.Conv2d's `weight` (out, in, k, k) and `bias` (out,).

    It is padded as torch's with padding 1 at stride 1. At stride 2 and even sides it pads below and to the right only,
    which is what the published downsampling does by hand.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = parameter(channels_out, channels_in, kernel, kernel)
        self.bias = parameter(channels_out)
        self._convolve = operators.Convolve(channels_in, channels_out, kernel, stride)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, in, H, W) -> (N, out, H / stride, W / stride)."""
        return self._convolve(x, self.weight, self.bias)


class _GroupNorm(nn.Cell):
    """Normalisation over groups of channels (Wu & He 2018)."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.weight = parameter(channels)
        self.bias = parameter(channels)
        self._norm = operators.GroupNorm(groups, _NORM_EPSILON)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, C, H, W) -> the same shape."""
        return self._norm(x, self.weight, self.bias)


class _ResnetBlock(nn.Cell):
    """Two convolutions, each behind normalisation and SiLU, around a shortcut."""

    def __init__(self, groups: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = _GroupNorm(groups, channels_in)
        self.conv1 = _Conv(channels_in, channels_out, 3)
        self.norm2 = _GroupNorm(groups, channels_out)
        self.conv2 = _Conv(channels_out, channels_out, 3)
        self._has_shortcut = channels_in != channels_out
        if self._has_shortcut:
            self.conv_shortcut = _Conv(channels_in, channels_out, 1)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, in, H, W) -> (N, out, H, W)."""
        y = self.conv1(operators.silu(self.norm1(x)))
        y = self.conv2(operators.silu(self.norm2(y)))
        return y + (self.conv_shortcut(x) if self._has_shortcut else x)


class _Attention(nn.Cell):
    """Self-attention of one head over all pixels, around a shortcut."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.group_norm = _GroupNorm(groups, channels)
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.to_out = nn.CellList([Linear(channels, channels)])
        self._scale = channels**-0.5

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, C, H, W) -> the same shape."""
        batch, channels, height, width = x.shape
        pixels = self.group_norm(x).reshape(batch, channels, height * width).transpose(0, 2, 1)  # (N, H * W, C)
        one_head = (batch, 1, height * width, channels)
        q, k, v = (self.to_q(pixels), self.to_k(pixels), self.to_v(pixels))
        y = operators.attention(q.reshape(one_head), k.reshape(one_head), v.reshape(one_head), self._scale)
        y = self.to_out[0](y.reshape(batch, height * width, channels))
        return x + y.transpose(0, 2, 1).reshape(x.shape)


class _MidBlock(nn.Cell):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.attentions = nn.CellList([_Attention(groups, channels)])
        self.resnets = nn.CellList([_ResnetBlock(groups, channels, channels) for _ in range(2)])

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, C, H, W) -> the same shape."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class _Downsampler(nn.Cell):
    """Halve the sides by a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _Conv(channels, channels, 3, stride=2)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, C, H, W) -> (N, C, H / 2, W / 2)."""
        return self.conv(x)


class _Upsampler(nn.Cell):
    """Double the sides by nearest neighbour, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _Conv(channels, channels, 3)
        self._convolve = operators.ConvolveDoubled(channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, C, H, W) -> (N, C, 2 H, 2 W)."""
        return self._convolve(x, self.conv.weight, self.conv.bias)


class _Block(nn.Cell):
    """Residual blocks of one resolution, then a change of resolution unless it is the last."""

    def __init__(self, groups: int, channels_in: int, channels_out: int, count: int, sampler: str | None) -> None:
        super().__init__()
        sizes = [channels_in] + [channels_out] * count
        self.resnets = nn.CellList([_ResnetBlock(groups, sizes[i], sizes[i + 1]) for i in range(count)])
        self._has_sampler = sampler is not None
        if sampler == "down":
            self.downsamplers = nn.CellList([_Downsampler(channels_out)])
        elif sampler == "up":
            self.upsamplers = nn.CellList([_Upsampler(channels_out)])
        self._up = sampler == "up"

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, in, H, W) -> (N, out, H', W')."""
        for resnet in self.resnets:
            x = resnet(x)
        if self._has_sampler:
            x = self.upsamplers[0](x) if self._up else self.downsamplers[0](x)
        return x


class _Encoder(nn.Cell):
    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = _Conv(config.in_channels, channels[0], 3)
        inputs = (channels[0], *channels[:-1])
        last = len(channels) - 1
        self.down_blocks = nn.CellList(
            [
                _Block(groups, inputs[i], channels[i], config.layers_per_block, "down" if i < last else None)
                for i in range(len(channels))
            ]
        )
        self.mid_block = _MidBlock(groups, channels[-1])
        self.conv_norm_out = _GroupNorm(groups, channels[-1])
        self.conv_out = _Conv(channels[-1], 2 * config.latent_channels, 3)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, 3, H, W) -> (N, 2 C, h, w)."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(operators.silu(self.conv_norm_out(self.mid_block(x))))


class _Decoder(nn.Cell):
    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = _Conv(config.latent_channels, channels[0], 3)
        inputs = (channels[0], *channels[:-1])
        last = len(channels) - 1
        self.up_blocks = nn.CellList(
            [
                _Block(groups, inputs[i], channels[i], config.layers_per_block + 1, "up" if i < last else None)
                for i in range(len(channels))
            ]
        )
        self.mid_block = _MidBlock(groups, channels[0])
        self.conv_norm_out = _GroupNorm(groups, channels[-1])
        self.conv_out = _Conv(channels[-1], config.out_channels, 3)

    def construct(self, z: ms.Tensor) -> ms.Tensor:
        """Latents (N, C, h, w) -> images (N, 3, H, W)."""
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(operators.silu(self.conv_norm_out(x)))


def _fresh_rule(net: nn.Cell) -> Any:
    """Uniform within 1 / sqrt(inputs of a unit) for kernels and biases, 1 and 0 for norms: PyTorch's defaults."""
    shapes = {name: tuple(param.shape) for name, param in net.parameters_and_names()}

    def rule(name: str) -> Any:
        kernel = shapes[name.rsplit(".", 1)[0] + ".weight"]
        if len(kernel) == 1:
            value = 1.0 if name.endswith(".weight") else 0.0
            return lambda rng, shape: np.full(shape, value, np.float32)
        bound = np.float32(1 / math.sqrt(math.prod(kernel[1:])))
        return lambda rng, shape: (rng.random(shape, np.float32) * 2 - 1) * bound

    return rule
