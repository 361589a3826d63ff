"""Latte in plain PyTorch, for benchmarks: the same parameters, names and results as `latte.models.latte`.

Written as one would write it in PyTorch today: fused attention (`scaled_dot_product_attention`), tanh GELU and layer
norm kernels, adaLN once per sample.
"""

import math

import torch
import torch.nn.functional as functional
from torch import nn


class Attention(nn.Module):
    """Self-attention within each row of a batch."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (B, L, D) -> (B, L, D)."""
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, H, L, d)
        out = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """Linear, GELU (tanh), Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """A transformer block with adaLN-zero."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.width = width
        self.attn, self.mlp = Attention(width, heads), MLP(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: torch.Tensor, c: torch.Tensor, over_time: bool) -> torch.Tensor:
        """Map x (N, F, T, D), c (N, D) -> (N, F, T, D)."""
        parts = self.adaLN_modulation(c)[:, None, None].chunk(6, dim=-1)  # 6 x (N, 1, 1, D)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        h = functional.layer_norm(x, (self.width,), eps=1e-6) * (1 + scale1) + shift1
        if over_time:
            h = h.transpose(1, 2)  # (N, T, F, D)
        h = self.attn(h.reshape(-1, *h.shape[2:])).reshape(h.shape)
        if over_time:
            h = h.transpose(1, 2)
        x = x + gate1 * h
        return x + gate2 * self.mlp(functional.layer_norm(x, (self.width,), eps=1e-6) * (1 + scale2) + shift2)


class PatchEmbed(nn.Module):
    """A convolution over patches."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)


class FinalLayer(nn.Module):
    """Tokens to patches."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))


class TimestepEmbedder(nn.Module):
    """The MLP on sinusoids of the step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))


class LatteTwin(nn.Module):
    """The unconditional Latte."""

    def __init__(
        self, input_size: int, patch_size: int, hidden_size: int, depth: int, num_heads: int, num_frames: int
    ) -> None:
        super().__init__()
        self.patch, self.side, self.frames = patch_size, input_size // patch_size, num_frames
        self.width, self.out = hidden_size, 8
        self.x_embedder = PatchEmbed(4, hidden_size, patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.side**2, hidden_size), requires_grad=False)
        self.temp_embed = nn.Parameter(torch.zeros(1, num_frames, hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList([Block(hidden_size, num_heads, 4 * hidden_size) for _ in range(depth)])
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * self.out)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Map x (N, F, 4, H, W), t (N,) -> (N, F, 8, H, W)."""
        n, frames, patches = x.shape[0], self.frames, self.side**2
        tokens = self.x_embedder.proj(x.flatten(0, 1)).flatten(2).transpose(1, 2) + self.pos_embed  # (N * F, T, D)
        tokens = tokens.reshape(n, frames, patches, self.width)
        rates = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
        angles = t[:, None].float() * rates
        c = self.t_embedder.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))  # (N, D)
        for i, block in enumerate(self.blocks):
            if i == 1:
                tokens = tokens + self.temp_embed[:, :, None]
            tokens = block(tokens, c, over_time=i % 2 == 1)
        shift, scale = self.final_layer.adaLN_modulation(c)[:, None, None].chunk(2, dim=-1)
        tokens = functional.layer_norm(tokens, (self.width,), eps=1e-6) * (1 + scale) + shift
        tokens = self.final_layer.linear(tokens)
        p, side = self.patch, self.side
        tokens = tokens.reshape(n, frames, side, side, p, p, self.out).permute(0, 1, 6, 2, 4, 3, 5)
        return tokens.reshape(n, frames, self.out, side * p, side * p)
