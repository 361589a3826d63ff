"""Inception I3D in PyTorch, to be trained: the names of its state dict are the published ones, which MindSpore reads.

Only `pipelines.demo.train_detector` imports it; nothing of a run needs PyTorch.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import max_pool3d, pad

from latte.models.configs import I3DConfig, concatenated


def _same(x: torch.Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> torch.Tensor:
    """Zeros around (N, C, T, H, W) as TensorFlow's "same" padding has them: an odd one is added at the end."""
    widths: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        widths += [total // 2, total - total // 2]
    return pad(x, widths)


def _pooled(x: torch.Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> torch.Tensor:
    return max_pool3d(_same(x, kernel, stride), kernel, stride)


class _Unit(nn.Module):
    """Convolution with "same" padding, batch normalisation, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels_in, channels_out, kernel, stride, bias=False)
        nn.init.kaiming_normal_(self.conv3d.weight)
        self.bn = nn.BatchNorm3d(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in, T, H, W) -> (N, out, T / stride, H / stride, W / stride)."""
        kernel, stride = self.conv3d.kernel_size, self.conv3d.stride
        return torch.relu(self.bn(self.conv3d(_same(x, kernel, stride))))


class _Mixed(nn.Module):
    """Four branches side by side, concatenated over channels."""

    def __init__(self, channels_in: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = channels
        self.b0 = _Unit(channels_in, b0, 1)
        self.b1a, self.b1b = _Unit(channels_in, b1a, 1), _Unit(b1a, b1b, 3)
        self.b2a, self.b2b = _Unit(channels_in, b2a, 1), _Unit(b2a, b2b, 3)
        self.b3b = _Unit(channels_in, b3b, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in, T, H, W) -> (N, sum of the branches, T, H, W)."""
        pooled = _pooled(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class _Logits(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels, classes, 1)


class TorchI3D(nn.Module):
    """The network of `latte.models.i3d.I3D`, with gradients and batch statistics.

    Args:
        config: its sizes.
    """

    def __init__(self, config: I3DConfig) -> None:
        super().__init__()
        first, width = config.stem_channels
        self.Conv3d_1a_7x7 = _Unit(3, first, 7, stride=2)
        self.Conv3d_2b_1x1 = _Unit(first, first, 1)
        self.Conv3d_2c_3x3 = _Unit(first, width, 3)
        for name, channels in config.mixed_channels.items():
            setattr(self, name, _Mixed(width, channels))
            width = concatenated(channels)
        self.logits = _Logits(width, config.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Clips (N, 3, T, S, S) in [-1, 1] -> class scores (N, num_classes), averaged over time."""
        mixed: dict[str, Any] = dict(self.named_children())
        x = _pooled(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = _pooled(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in ("Mixed_3b", "Mixed_3c"):
            x = mixed[name](x)
        x = _pooled(x, (3, 3, 3), (2, 2, 2))
        for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
            x = mixed[name](x)
        x = _pooled(x, (2, 2, 2), (2, 2, 2))
        x = mixed["Mixed_5c"](mixed["Mixed_5b"](x)).mean((3, 4))  # (N, C, T / 8)
        x = ((x[:, :, :-1] + x[:, :, 1:]) / 2).mean(2)  # as the published pooling over two time steps
        return x @ self.logits.conv3d.weight.flatten(1).T + self.logits.conv3d.bias
