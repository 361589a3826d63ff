"""Inception I3D (Carreira & Zisserman 2017, "Quo Vadis, Action Recognition?"): the detector of FVD.

Parameters have the names and shapes of the PyTorch port that FVD scorers use (`Mixed_3b.b1a.conv3d.weight`, …), so that
its weights need no renaming. Batch normalisation is always that of evaluation and is folded into the convolutions.
Between the layers clips lie as the device's operators take them (`latte.operators.CLIP_LAYOUT`).
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte import graph_cache, operators
from latte.models.configs import I3DConfig, concatenated
from latte.models.layers import parameter


class _Weight(nn.Cell):
    """The kernel of a convolution (out, in, k, k, k), and a bias where it has one."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, has_bias: bool) -> None:
        super().__init__()
        self.weight = parameter(channels_out, channels_in, kernel, kernel, kernel)
        if has_bias:
            self.bias = parameter(channels_out)


class _Statistics(nn.Cell):
    """Parameters and statistics of batch normalisation, each (channels,)."""

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__()
        self._epsilon = epsilon
        self.weight = parameter(channels)
        self.bias = parameter(channels)
        self.running_mean = parameter(channels, fixed=True)
        self.running_var = parameter(channels, fixed=True)

    def folded(self) -> tuple[ms.Tensor, ms.Tensor]:
        """The scale and shift, each (channels,), that the normalisation comes to."""
        scale = self.weight / ops.sqrt(self.running_var + self._epsilon)
        return scale, self.bias - self.running_mean * scale


class _Unit(nn.Cell):
    """Convolution with TensorFlow's "same" padding, batch normalisation, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, epsilon: float, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = _Weight(channels_in, channels_out, kernel, has_bias=False)
        self.bn = _Statistics(channels_out, epsilon)
        self._convolve = operators.ConvolveClips(channels_in, channels_out, kernel, stride)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Clips of `in` channels -> of `out` channels, time and sides divided by the stride."""
        scale, shift = self.bn.folded()
        return self._convolve(x, self.conv3d.weight, scale, shift)


class _Mixed(nn.Cell):
    """Four branches side by side, concatenated over channels.

    `channels`: of the 1x1x1 branch; of 1x1x1 and 3x3x3 of the second and of the third branch; of max pool and 1x1x1.
    """

    def __init__(self, channels_in: int, channels: tuple[int, ...], epsilon: float) -> None:
        super().__init__()
        self.b0 = _Unit(channels_in, channels[0], 1, epsilon)
        self.b1a = _Unit(channels_in, channels[1], 1, epsilon)
        self.b1b = _Unit(channels[1], channels[2], 3, epsilon)
        self.b2a = _Unit(channels_in, channels[3], 1, epsilon)
        self.b2b = _Unit(channels[3], channels[4], 3, epsilon)
        self.b3b = _Unit(channels_in, channels[5], 1, epsilon)
        self._pool = operators.MaxPoolClips((3, 3), (1, 1))
        self._concat = ops.Concat(axis=operators.CLIP_CHANNELS)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Clips of `in` channels -> of the sum of the branches' channels."""
        return self._concat((self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self._pool(x))))


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
    """The RGB stream of Inception I3D, by default for the 400 classes of Kinetics; evaluation only.

    The names of the attributes are those of the published state dict.

    Args:
        config: its sizes; None: the published ones.
    """

    MIN_FRAMES = 16

    def __init__(self, config: I3DConfig | None = None) -> None:
        super().__init__()
        self.config = config or I3DConfig()
        first, width = self.config.stem_channels
        epsilon = self.config.epsilon
        self.Conv3d_1a_7x7 = _Unit(3, first, 7, epsilon, stride=2)
        self.Conv3d_2b_1x1 = _Unit(first, first, 1, epsilon)
        self.Conv3d_2c_3x3 = _Unit(first, width, 3, epsilon)
        for name, channels in self.config.mixed_channels.items():
            setattr(self, name, _Mixed(width, channels, epsilon))
            width = concatenated(channels)
        self.logits = _Logits(width, self.config.num_classes)
        self._pool_2a = operators.MaxPoolClips((1, 3), (1, 2))
        self._pool_3a = operators.MaxPoolClips((1, 3), (1, 2))
        self._pool_4a = operators.MaxPoolClips((3, 3), (2, 2))
        self._pool_5a = operators.MaxPoolClips((2, 2), (2, 2))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Class scores before the softmax, averaged over time: what the published FVD takes as features.

        Args:
            x: clips (N, 3, T, S, S), float32 in [-1, 1], T at least 16, S the config's image_size (224 published).

        Returns:
            (N, num_classes) float32.

        Raises:
            ValueError: the shape is another one.
        """
        return self.logits(operators.mean_of_clips(self.features(x)))

    def features(self, x: ms.Tensor) -> ms.Tensor:
        """The layer before the classifier: averages over 2 time steps and all positions.

        Args:
            x: clips (N, 3, T, S, S), as above.

        Returns:
            (N, 1024 x width, T', 1, 1) float32 with T' = ceil(T / 8) - 1.

        Raises:
            ValueError: the shape is another one.
        """
        size = self.config.image_size
        if x.ndim != 5 or x.shape[1] != 3 or x.shape[2] < self.MIN_FRAMES or tuple(x.shape[3:]) != (size, size):
            raise ValueError(f"I3D takes (N, 3, T >= {self.MIN_FRAMES}, {size}, {size}), not {tuple(x.shape)}")
        return graph_cache.call(self._features, x)

    def detect(self, clips: np.ndarray, features: str) -> np.ndarray:
        """Features of a score: clips (N, 3, T, S, S) float32 in [-1, 1] -> (N, 1, D) float32.

        Args:
            clips: see `construct`.
            features: "logits", D the classes, or "pool", D the channels before.
        """
        if features == "logits":
            return np.asarray(self(ms.Tensor(clips)).asnumpy())[:, None]
        return np.asarray(self.features(ms.Tensor(clips)).asnumpy().mean(axis=(2, 3, 4)))[:, None]

    @ms.jit
    def _features(self, x: ms.Tensor) -> ms.Tensor:
        x = x.transpose(operators.CLIP_LAYOUT)
        x = self._pool_2a(self.Conv3d_1a_7x7(x))  # T / 2, 64, 56, 56
        x = self._pool_3a(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)))  # T / 2, 192, 28, 28
        x = self._pool_4a(self.Mixed_3c(self.Mixed_3b(x)))  # T / 4, 480, 14, 14
        x = self.Mixed_4f(self.Mixed_4e(self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))))  # T / 4, 832, 14, 14
        x = self.Mixed_5c(self.Mixed_5b(self._pool_5a(x)))  # T / 8, 1024, 7, 7
        x = operators.mean_of_pairs(operators.mean_of_images(x))  # T / 8 - 1, 1024, 1, 1
        return x.transpose(operators.CLIP_BACK)  # (N, 1024, T / 8 - 1, 1, 1)
