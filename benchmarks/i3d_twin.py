"""Inception I3D in plain PyTorch, for benchmarks: the same parameters, names and results as `latte.models.i3d`.

Written as one would write it in PyTorch: 3-D convolutions, batch normalisation in evaluation mode, explicit padding.
"""

import torch
import torch.nn.functional as functional
from torch import nn


def padded(x: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    """TensorFlow's "same" padding of (N, C, T, H, W): an odd missing element goes to the end."""
    amounts: list[int] = []
    for size, k, s in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        missing = max((-(-size // s) - 1) * s + k - size, 0)
        amounts += [missing // 2, missing - missing // 2]
    return functional.pad(x, amounts)


class Unit(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels_in, channels_out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(channels_out, eps=1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in, T, H, W) -> (N, out, T', H', W')."""
        x = padded(x, self.conv3d.kernel_size, self.conv3d.stride)
        return functional.relu(self.bn(self.conv3d(x)))


def pool(x: torch.Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> torch.Tensor:
    """Maximum over windows; padding with zeros behind a ReLU leaves the border out."""
    return functional.max_pool3d(padded(x, kernel, stride), kernel, stride)


class Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, channels_in: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Unit(channels_in, channels[0], 1)
        self.b1a, self.b1b = Unit(channels_in, channels[1], 1), Unit(channels[1], channels[2], 3)
        self.b2a, self.b2b = Unit(channels_in, channels[3], 1), Unit(channels[3], channels[4], 3)
        self.b3b = Unit(channels_in, channels[5], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in, T, H, W) -> (N, out, T, H, W)."""
        pooled = pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class Logits(nn.Module):
    """The classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(1024, 400, 1)


class I3DTwin(nn.Module):
    """The RGB stream of Inception I3D."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        self.Mixed_3b = Mixed(192, (64, 96, 128, 16, 32, 32))
        self.Mixed_3c = Mixed(256, (128, 128, 192, 32, 96, 64))
        self.Mixed_4b = Mixed(480, (192, 96, 208, 16, 48, 64))
        self.Mixed_4c = Mixed(512, (160, 112, 224, 24, 64, 64))
        self.Mixed_4d = Mixed(512, (128, 128, 256, 24, 64, 64))
        self.Mixed_4e = Mixed(512, (112, 144, 288, 32, 64, 64))
        self.Mixed_4f = Mixed(528, (256, 160, 320, 32, 128, 128))
        self.Mixed_5b = Mixed(832, (256, 160, 320, 32, 128, 128))
        self.Mixed_5c = Mixed(832, (384, 192, 384, 48, 128, 128))
        self.logits = Logits()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Clips (N, 3, T, 224, 224) in [-1, 1] -> class scores (N, 400)."""
        x = pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        x = pool(self.Mixed_3c(self.Mixed_3b(x)), (3, 3, 3), (2, 2, 2))
        x = self.Mixed_4f(self.Mixed_4e(self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))))
        x = self.Mixed_5c(self.Mixed_5b(pool(x, (2, 2, 2), (2, 2, 2))))
        x = functional.avg_pool3d(x, (2, 7, 7), stride=1)  # (N, 1024, T / 8 - 1, 1, 1)
        return self.logits.conv3d(x).mean(dim=(2, 3, 4))
