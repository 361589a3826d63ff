"""A stand-in for a published TorchScript I3D: the same architecture under other names, exported by `torch.jit`."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from latte.models.configs import I3DConfig, concatenated

EPSILON = 1e-3
WIDTH = 1 / 32


def _pads(size: int, kernel: int, stride: int) -> list[int]:
    total = max(kernel - stride, 0) if size % stride == 0 else max(kernel - size % stride, 0)
    return [total // 2, total - total // 2]


def same(x: torch.Tensor, kernel: list[int], stride: list[int]) -> torch.Tensor:
    """Zeros as TensorFlow's "same" padding has them."""
    pads = _pads(x.size(4), kernel[2], stride[2]) + _pads(x.size(3), kernel[1], stride[1])
    return torch.nn.functional.pad(x, pads + _pads(x.size(2), kernel[0], stride[0]))


class Unit(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = [kernel] * 3, [stride] * 3
        self.norm = nn.BatchNorm3d(outputs, eps=EPSILON)
        self.filter = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in, T, H, W) -> (N, out, T', H', W')."""
        return torch.relu(self.norm(self.filter(same(x, self.kernel, self.stride))))


class Pool(nn.Module):
    """Maximum with "same" padding."""

    def __init__(self, kernel: list[int], stride: list[int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, T, H, W) -> (N, C, T', H', W')."""
        return torch.nn.functional.max_pool3d(same(x, self.kernel, self.stride), self.kernel, self.stride)


class Block(nn.Module):
    """Four branches; declared in another order than they are put together."""

    def __init__(self, inputs: int, c: tuple[int, ...]) -> None:
        super().__init__()
        self.last = nn.Sequential(Pool([3, 3, 3], [1, 1, 1]), Unit(inputs, c[5], 1))
        self.third = nn.Sequential(Unit(inputs, c[3], 1), Unit(c[3], c[4], 3))
        self.second = nn.Sequential(Unit(inputs, c[1], 1), Unit(c[1], c[2], 3))
        self.first = Unit(inputs, c[0], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in, T, H, W) -> (N, out, T, H, W)."""
        last, third = self.last(x), self.third(x)
        return torch.cat([self.first(x), self.second(x), third, last], dim=1)


class Detector(nn.Module):
    """I3D with the arguments of the published file."""

    def __init__(self) -> None:
        super().__init__()
        config = I3DConfig(width=WIDTH)
        first, width = config.stem_channels
        blocks = []
        for channels in config.mixed_channels.values():
            blocks.append(Block(width, channels))
            width = concatenated(channels)
        self.stem = nn.Sequential(
            Unit(3, first, 7, 2), Pool([1, 3, 3], [1, 2, 2]), Unit(first, first, 1),
            Unit(first, config.stem_channels[1], 3), Pool([1, 3, 3], [1, 2, 2]),
        )  # fmt: skip
        pools = [Pool([3, 3, 3], [2, 2, 2]), Pool([2, 2, 2], [2, 2, 2])]
        self.body = nn.Sequential(*blocks[:2], pools[0], *blocks[2:7], pools[1], *blocks[7:])
        self.head = nn.Conv3d(width, config.num_classes, 1)

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        """(N, 3, T, 224, 224) -> (N, 400)."""
        if resize:
            x = torch.nn.functional.interpolate(x, [x.size(2), 224, 224], mode="trilinear")
        if rescale:
            x = x / 127.5 - 1
        x = torch.nn.functional.avg_pool3d(self.body(self.stem(x)), [2, 7, 7], [1, 1, 1])
        x = self.head(x).mean([2, 3, 4])
        return x if return_features else torch.softmax(x, dim=1)


def detector() -> Detector:
    """The module with random weights of a seed, in evaluation."""
    torch.manual_seed(5)
    net = Detector().eval()
    for name, value in net.state_dict().items():
        if name.endswith(("running_var", "norm.weight")):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
        elif value.ndim > 1:
            value.normal_(0, float(np.prod(value.shape[1:])) ** -0.5 * 1.4)
    # So small variances that the epsilon counts.
    net.stem[0].norm.running_var.fill_(1e-3)
    return net


def write(path: Path) -> None:
    """The archive, as `torch.jit.script` saves it."""
    torch.jit.script(detector()).save(str(path))


def scores(path: Path, clips: np.ndarray) -> np.ndarray:
    """Class scores of the archive as FVD scorers ask for them."""
    with torch.no_grad():
        net = torch.jit.load(str(path))
        return net(torch.from_numpy(clips), rescale=False, resize=False, return_features=True).numpy()
