"""Inception v3 (Szegedy et al. 2015, "Rethinking the Inception Architecture"): the detector of FID and KID.

In two forms. `torchvision` is that of torchvision's `inception_v3`. `fid` is that of the network which Heusel et al.
2017 made FID with, as the package pytorch-fid has it: average pooling leaves the zeros of the border out, the last
block takes a maximum where the others average, and there are 1008 classes. Parameters have torchvision's names and
shapes (`Mixed_5b.branch5x5_1.conv.weight`, …), which those of the FID port are, too.

Published preparation: frames resized to 299 pixels, bilinear with half-pixel centres and without antialiasing
(pytorch-fid: `F.interpolate(…, align_corners=False)`), then scaled from [0, 1] to [-1, 1]. TensorFlow's first code,
which torch-fidelity follows, puts pixels elsewhere when it resizes: its values differ a little.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte import graph_cache, operators
from latte.models.detector_configs import INCEPTION_BLOCKS, Convolution, InceptionConfig
from latte.models.layers import Linear, parameter

_EPSILON = 1e-3


class _Kernel(nn.Cell):
    """The kernel of a convolution (out, in, rows, columns)."""

    def __init__(self, sizes: Convolution) -> None:
        super().__init__()
        self.weight = parameter(sizes.channels_out, sizes.channels_in, *sizes.kernel)


class _BatchStatistics(nn.Cell):
    """Parameters and statistics of batch normalisation, each (channels,)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = parameter(channels)
        self.bias = parameter(channels)
        self.running_mean = parameter(channels, fixed=True)
        self.running_var = parameter(channels, fixed=True)


class _Layer(nn.Cell):
    """Convolution, batch normalisation of evaluation (folded into it), ReLU."""

    def __init__(self, sizes: Convolution) -> None:
        super().__init__()
        self.conv = _Kernel(sizes)
        self.bn = _BatchStatistics(sizes.channels_out)
        self._convolve = operators.ConvolveScaled(sizes.channels_out, sizes.kernel, sizes.stride, sizes.same)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in, H, W) -> (N, out, H', W')."""
        scale = self.bn.weight / ops.sqrt(self.bn.running_var + _EPSILON)  # (out,)
        return self._convolve(x, self.conv.weight, scale, self.bn.bias - self.bn.running_mean * scale)


class _InceptionBlock(nn.Cell):
    """Branches side by side, concatenated over channels; the layers have the names of the published ones."""

    def __init__(self, layers: dict[str, Convolution], pool: nn.Cell) -> None:
        super().__init__()
        for name, sizes in layers.items():
            setattr(self, name, _Layer(sizes))
        self._pool = pool
        self._concat = ops.Concat(axis=1)


class _BlockA(_InceptionBlock):
    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in, H, W) -> (N, out, H, W)."""
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return self._concat((self.branch1x1(x), wide, double, self.branch_pool(self._pool(x))))


class _BlockB(_InceptionBlock):
    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in, H, W) -> (N, out, H / 2, W / 2)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return self._concat((self.branch3x3(x), double, self._pool(x)))


class _BlockC(_InceptionBlock):
    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in, H, W) -> (N, out, H, W)."""
        wide = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return self._concat((self.branch1x1(x), wide, double, self.branch_pool(self._pool(x))))


class _BlockD(_InceptionBlock):
    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in, H, W) -> (N, out, H / 2, W / 2)."""
        wide = self.branch7x7x3_2(self.branch7x7x3_1(x))
        wide = self.branch7x7x3_4(self.branch7x7x3_3(wide))
        return self._concat((self.branch3x3_2(self.branch3x3_1(x)), wide, self._pool(x)))


class _BlockE(_InceptionBlock):
    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in, H, W) -> (N, out, H, W)."""
        wide = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = self.branch_pool(self._pool(x))
        return self._concat(
            (
                self.branch1x1(x), self.branch3x3_2a(wide), self.branch3x3_2b(wide),
                self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), pooled,
            )
        )  # fmt: skip


_FORMS = {"A": _BlockA, "B": _BlockB, "C": _BlockC, "D": _BlockD, "E": _BlockE}
_HALVING = ("B", "D")


class Inception(nn.Cell):
    """Inception v3; evaluation only. The names of the attributes are those of the published state dict.

    Args:
        config: its sizes; None: those of the network that FID is made with.
    """

    def __init__(self, config: InceptionConfig | None = None) -> None:
        super().__init__()
        self.config = config or InceptionConfig()
        fid = self.config.form == "fid"
        layers: dict[str, dict[str, Convolution]] = {name: {} for name in INCEPTION_BLOCKS}
        for name, sizes in self.config.convolutions.items():
            block, _, branch = name.partition(".")
            if branch:
                layers[block][branch] = sizes
            else:
                setattr(self, name, _Layer(sizes))
        for name, (form, _) in INCEPTION_BLOCKS.items():
            pool: nn.Cell = operators.AveragePool(whole=not fid)
            if form in _HALVING:
                pool = operators.MaxPool(2)
            elif fid and name == "Mixed_7c":
                pool = operators.MaxPool(1)
            setattr(self, name, _FORMS[form](layers[name], pool))
        self.fc = Linear(self.config.channels, self.config.num_classes)
        self._pool = operators.MaxPool(2)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Class scores before the softmax.

        Args:
            x: images (N, 3, S, S), float32 in [-1, 1], S the config's image_size (299 published).

        Returns:
            (N, num_classes) float32.

        Raises:
            ValueError: the shape is another one.
        """
        return self.fc(self.features(x))

    def features(self, x: ms.Tensor) -> ms.Tensor:
        """Channels of the last block, averaged over all positions: the features of FID.

        Args:
            x: images (N, 3, S, S), as above.

        Returns:
            (N, 2048 x width) float32.

        Raises:
            ValueError: the shape is another one.
        """
        size = self.config.image_size
        if x.ndim != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"Inception takes (N, 3, {size}, {size}), not {tuple(x.shape)}")
        return graph_cache.call(self._features, x)

    def detect(self, clips: np.ndarray, features: str) -> np.ndarray:
        """Features of every frame: clips (N, 3, F, S, S) float32 in [-1, 1] -> (N, F, D) float32.

        Args:
            clips: S the config's image_size.
            features: "pool", D 2048 x width, as published; or "logits", D the classes.
        """
        count, _, frames = clips.shape[:3]
        images = np.ascontiguousarray(clips.transpose(0, 2, 1, 3, 4)).reshape(
            count * frames, *clips.shape[1:2], *clips.shape[3:]
        )
        rows = (self.features if features == "pool" else self)(ms.Tensor(images)).asnumpy()  # (N F, D)
        return np.asarray(rows).reshape(count, frames, -1)

    @ms.jit
    def _features(self, x: ms.Tensor) -> ms.Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (N, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self._pool(x)))  # (N, 192, 71, 71)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self._pool(x))))  # (N, 288, 35, 35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # (N, 768, 17, 17)
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))  # (N, 1280, 8, 8)
        return operators.mean_of_pixels(self.Mixed_7c(self.Mixed_7b(x)))  # (N, 2048)
