"""Inception I3D (Carreira & Zisserman 2017, "Quo Vadis, Action Recognition?"): the detector of FVD.

Parameters have the names and shapes of the PyTorch port that FVD scorers use (`Mixed_3b.b1a.conv3d.weight`, …), so that
its weights need no renaming. Batch normalisation is always that of evaluation and is folded into the convolutions.
"""

import mindspore as ms
from mindspore import nn, ops

from latte.models.layers import parameter

_BATCH_NORM_EPSILON = 1e-5


class _Weight(nn.Cell):
    """The kernel of a convolution (out, in, k, k, k), and a bias where it has one."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, has_bias: bool) -> None:
        super().__init__()
        self.weight = parameter(channels_out, channels_in, kernel, kernel, kernel)
        if has_bias:
            self.bias = parameter(channels_out)


class _Statistics(nn.Cell):
    """What batch normalisation learned, each (channels,)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = parameter(channels)
        self.bias = parameter(channels)
        self.running_mean = parameter(channels, fixed=True)
        self.running_var = parameter(channels, fixed=True)

    def folded(self) -> tuple[ms.Tensor, ms.Tensor]:
        """The scale and shift, each (channels,), that the normalisation comes to."""
        scale = self.weight / ops.sqrt(self.running_var + _BATCH_NORM_EPSILON)
        return scale, self.bias - self.running_mean * scale


class _Unit(nn.Cell):
    """Convolution with TensorFlow's "same" padding, batch normalisation, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = _Weight(channels_in, channels_out, kernel, has_bias=False)
        self.bn = _Statistics(channels_out)
        self._convolve = ops.Conv3D(channels_out, kernel, pad_mode="same", stride=stride)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Clips (N, in, T, H, W) -> (N, out, T / stride, H / stride, W / stride)."""
        scale, shift = self.bn.folded()
        weight = self.conv3d.weight * scale.reshape(-1, 1, 1, 1, 1)
        return ops.relu(self._convolve(x, weight) + shift.reshape(1, -1, 1, 1, 1))


class _Mixed(nn.Cell):
    """Four branches side by side, concatenated over channels.

    `channels`: of the 1x1x1 branch; of 1x1x1 and 3x3x3 of the second and of the third branch; of max pool and 1x1x1.
    """

    def __init__(self, channels_in: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = _Unit(channels_in, channels[0], 1)
        self.b1a = _Unit(channels_in, channels[1], 1)
        self.b1b = _Unit(channels[1], channels[2], 3)
        self.b2a = _Unit(channels_in, channels[3], 1)
        self.b2b = _Unit(channels[3], channels[4], 3)
        self.b3b = _Unit(channels_in, channels[5], 1)
        self._pool = _max_pool(3, 1)
        self._concat = ops.Concat(axis=1)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Clips (N, in, T, H, W) -> (N, sum of the branches, T, H, W)."""
        return self._concat((self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self._pool(x))))


def _max_pool(kernel: int | tuple[int, ...], stride: int | tuple[int, ...]) -> ops.MaxPool3D:
    # The published code pads with zeros; behind a ReLU that is the same as leaving the border out.
    return ops.MaxPool3D(kernel, stride, pad_mode="same")


class _Logits(nn.Cell):
    """The classifier, a 1x1x1 convolution with a bias."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv3d = _Weight(channels, classes, 1, has_bias=True)

    def construct(self, pooled: ms.Tensor) -> ms.Tensor:
        """Pooled (N, channels) -> (N, classes)."""
        kernel = self.conv3d.weight
        return ops.matmul(pooled, kernel.reshape(kernel.shape[0], -1).T) + self.conv3d.bias


class I3D(nn.Cell):
    """The RGB stream of Inception I3D for the 400 classes of Kinetics; evaluation only.

    The names of the attributes are those of the published state dict.
    """

    NUM_CLASSES = 400
    FEATURE_CHANNELS = 1024
    IMAGE_SIZE = 224
    MIN_FRAMES = 16

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = _Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        self.Mixed_3b = _Mixed(192, (64, 96, 128, 16, 32, 32))
        self.Mixed_3c = _Mixed(256, (128, 128, 192, 32, 96, 64))
        self.Mixed_4b = _Mixed(480, (192, 96, 208, 16, 48, 64))
        self.Mixed_4c = _Mixed(512, (160, 112, 224, 24, 64, 64))
        self.Mixed_4d = _Mixed(512, (128, 128, 256, 24, 64, 64))
        self.Mixed_4e = _Mixed(512, (112, 144, 288, 32, 64, 64))
        self.Mixed_4f = _Mixed(528, (256, 160, 320, 32, 128, 128))
        self.Mixed_5b = _Mixed(832, (256, 160, 320, 32, 128, 128))
        self.Mixed_5c = _Mixed(832, (384, 192, 384, 48, 128, 128))
        self.logits = _Logits(self.FEATURE_CHANNELS, self.NUM_CLASSES)
        self._pool_2a = _max_pool((1, 3, 3), (1, 2, 2))
        self._pool_3a = _max_pool((1, 3, 3), (1, 2, 2))
        self._pool_4a = _max_pool(3, 2)
        self._pool_5a = _max_pool(2, 2)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Class scores before the softmax, averaged over time: what the published FVD takes as features.

        Args:
            x: clips (N, 3, T, 224, 224), float32 in [-1, 1], T at least 16.

        Returns:
            (N, 400) float32.
        """
        return self.logits(self.features(x).mean(axis=(2, 3, 4)))

    def features(self, x: ms.Tensor) -> ms.Tensor:
        """The layer before the classifier: averages over 2 time steps and all positions.

        Args:
            x: clips (N, 3, T, 224, 224), float32 in [-1, 1], T at least 16.

        Returns:
            (N, 1024, T', 1, 1) float32 with T' = ceil(T / 8) - 1.

        Raises:
            ValueError: the shape is another one.
        """
        size = self.IMAGE_SIZE
        if x.ndim != 5 or x.shape[1] != 3 or x.shape[2] < self.MIN_FRAMES or tuple(x.shape[3:]) != (size, size):
            raise ValueError(f"I3D takes (N, 3, T >= {self.MIN_FRAMES}, {size}, {size}), not {tuple(x.shape)}")
        return self._features(x)

    @ms.jit
    def _features(self, x: ms.Tensor) -> ms.Tensor:
        x = self._pool_2a(self.Conv3d_1a_7x7(x))  # (N, 64, T / 2, 56, 56)
        x = self._pool_3a(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)))  # (N, 192, T / 2, 28, 28)
        x = self._pool_4a(self.Mixed_3c(self.Mixed_3b(x)))  # (N, 480, T / 4, 14, 14)
        x = self.Mixed_4f(self.Mixed_4e(self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))))  # (N, 832, T / 4, 14, 14)
        x = self.Mixed_5c(self.Mixed_5b(self._pool_5a(x)))  # (N, 1024, T / 8, 7, 7)
        x = x.mean(axis=(3, 4), keep_dims=True)  # (N, 1024, T / 8, 1, 1)
        return (x[:, :, :-1] + x[:, :, 1:]) / 2  # (N, 1024, T / 8 - 1, 1, 1)
