"""Inception I3D (Carreira & Zisserman 2017, "Quo Vadis, Action Recognition?"): the detector of FVD.

Parameters have the names and shapes of the PyTorch port that FVD scorers use (`Mixed_3b.b1a.conv3d.weight`, …), so that
its weights need no renaming. Batch normalisation is always that of evaluation and is folded into the convolutions.

A convolution over time and space is computed as convolutions over space alone: frames are mixed into fewer frames than
kernel taps times output frames, each is convolved by a mix of the taps, and the results are mixed into output frames
(`latte.models.toom`). With three taps that is half the multiplications.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte.models.configs import I3DConfig, concatenated
from latte.models.layers import parameter
from latte.models.toom import Mixing, toom

_BATCH_NORM_EPSILON = 1e-5


def mixing(num_frames: int, kernel: int, stride: int) -> Mixing:
    """The mixing of frames for "same" padding as TensorFlow has it: an odd missing frame is added at the end.

    A stride of 2 splits the input into even and odd frames and the kernel into the taps that meet them.

    Returns:
        Inputs (P groups, T), taps (P, kernel), outputs (T / stride, P groups).
    """
    num_outputs = -(-num_frames // stride)
    before = max((num_outputs - 1) * stride + kernel - num_frames, 0) // 2
    per_group = 4 if num_outputs > 2 else 2
    groups = -(-num_outputs // per_group)
    parts = []
    for phase in range(stride):
        taps = list(range(phase, kernel, stride))
        by_toom = toom(per_group, len(taps))
        count = len(by_toom.taps)
        frames = np.zeros((count, groups, num_frames))
        outputs = np.zeros((num_outputs, count, groups))
        for group in range(groups):
            for i in range(count):
                frame = (per_group * group + i) * stride + phase - before
                if 0 <= frame < num_frames:
                    frames[:, group, frame] = by_toom.inputs[:, i]
            for i in range(min(per_group, num_outputs - per_group * group)):
                outputs[per_group * group + i, :, group] = by_toom.outputs[i]
        spread = np.zeros((count, kernel))
        spread[:, taps] = by_toom.taps
        parts.append(Mixing(frames.reshape(-1, num_frames), spread, outputs.reshape(num_outputs, -1)))
    return Mixing(
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.taps for part in parts]),
        np.concatenate([part.outputs for part in parts], axis=1),
    )


@ops.constexpr
def _mixing_tensors(num_frames: int, kernel: int, stride: int) -> tuple[ms.Tensor, ...]:
    return tuple(ms.Tensor(part.astype(np.float32)) for part in mixing(num_frames, kernel, stride))


@ops.constexpr
def _window(num_frames: int, kernel: int, stride: int) -> tuple[ms.Tensor, ...]:
    """Which frame the k-th of a pooling window is, for each output; beyond the border the border's frame stands in."""
    num_outputs = -(-num_frames // stride)
    before = max((num_outputs - 1) * stride + kernel - num_frames, 0) // 2
    first = np.arange(num_outputs) * stride - before
    return tuple(ms.Tensor(np.clip(first + k, 0, num_frames - 1).astype(np.int32)) for k in range(kernel))


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
        self._sizes = (channels_in, channels_out, kernel, stride)
        self._convolve = ops.Conv2D(channels_out, kernel, pad_mode="same", stride=stride)
        self._matmul = ops.MatMul()
        self._concat = ops.Concat(axis=0)
        self._bias_add = ops.BiasAdd()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Frames (T, N, in, H, W) -> (T / stride, N, out, H / stride, W / stride)."""
        channels_in, channels_out, kernel, stride = self._sizes
        num_frames, count, _, height, width = x.shape
        scale, shift = self.bn.folded()
        # Broadcast before the product: MindSpore's own broadcasting on a CPU is slow and keeps its memory.
        weight = self.conv3d.weight
        weight = weight * ops.broadcast_to(scale.reshape(-1, 1, 1, 1, 1), weight.shape)  # (out, in, k, k, k)
        if kernel == 1:
            y = self._convolve(
                x.reshape(-1, channels_in, height, width), weight.reshape(channels_out, channels_in, 1, 1)
            )
        else:
            mix_frames, mix_taps, mix_outputs = _mixing_tensors(num_frames, kernel, stride)
            points = mix_taps.shape[0]
            groups = mix_frames.shape[0] // points
            mixed = self._matmul(mix_frames, x.reshape(num_frames, -1))  # (P groups, N in H W)
            mixed = mixed.reshape(points * groups * count, channels_in, height, width)
            taps = weight.transpose(2, 0, 1, 3, 4).reshape(kernel, -1)  # (k, out in k k)
            taps = self._matmul(mix_taps, taps).reshape(points * channels_out, channels_in, kernel, kernel)
            mixed, taps = ops.Split(0, points)(mixed), ops.Split(0, points)(taps)
            results = [self._convolve(mixed[i], taps[i]) for i in range(points)]  # P times (groups N, out, H', W')
            y = self._matmul(mix_outputs, self._concat(results).reshape(points * groups, -1))  # (T', N out H' W')
        height, width = -(-height // stride), -(-width // stride)
        y = self._bias_add(y.reshape(-1, channels_out, height, width), shift)  # (T' N, out, H', W')
        return ops.relu(y).reshape(-1, count, channels_out, height, width)


class _MaxPool(nn.Cell):
    """Maximum over windows of time, then of space, with "same" padding.

    The published code pads with zeros; behind a ReLU that is the same as leaving the border out.
    """

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__()
        self._time = (kernel[0], stride[0])
        self._space = ops.MaxPool(kernel[1], stride[1], "same")

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Frames (T, N, C, H, W) -> (T / stride, N, C, H / stride, W / stride)."""
        num_frames, count, channels, height, width = x.shape
        x = self._space(x.reshape(-1, channels, height, width))  # (T N, C, H', W')
        height, width = x.shape[2:]
        kernel, stride = self._time
        if kernel > 1:
            x = x.reshape(num_frames, -1)
            windows = _window(num_frames, kernel, stride)
            best = ops.gather(x, windows[0], 0)  # (T', N C H' W')
            for k in range(1, kernel):
                best = ops.maximum(best, ops.gather(x, windows[k], 0))
            x = best
        return x.reshape(-1, count, channels, height, width)


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
        self._pool = _MaxPool((3, 3), (1, 1))
        self._concat = ops.Concat(axis=2)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Frames (T, N, in, H, W) -> (T, N, sum of the branches, H, W)."""
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
        self.Conv3d_1a_7x7 = _Unit(3, first, 7, stride=2)
        self.Conv3d_2b_1x1 = _Unit(first, first, 1)
        self.Conv3d_2c_3x3 = _Unit(first, width, 3)
        for name, channels in self.config.mixed_channels.items():
            setattr(self, name, _Mixed(width, channels))
            width = concatenated(channels)
        self.logits = _Logits(width, self.config.num_classes)
        self._pool_2a = _MaxPool((1, 3), (1, 2))
        self._pool_3a = _MaxPool((1, 3), (1, 2))
        self._pool_4a = _MaxPool((3, 3), (2, 2))
        self._pool_5a = _MaxPool((2, 2), (2, 2))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Class scores before the softmax, averaged over time: what the published FVD takes as features.

        Args:
            x: clips (N, 3, T, S, S), float32 in [-1, 1], T at least 16, S the config's image_size (224 published).

        Returns:
            (N, num_classes) float32.

        Raises:
            ValueError: the shape is another one.
        """
        return self.logits(self.features(x).mean(axis=(2, 3, 4)))

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
        return self._features(x)

    @ms.jit
    def _features(self, x: ms.Tensor) -> ms.Tensor:
        x = x.transpose(2, 0, 1, 3, 4)  # (T, N, 3, 224, 224)
        x = self._pool_2a(self.Conv3d_1a_7x7(x))  # (T / 2, N, 64, 56, 56)
        x = self._pool_3a(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)))  # (T / 2, N, 192, 28, 28)
        x = self._pool_4a(self.Mixed_3c(self.Mixed_3b(x)))  # (T / 4, N, 480, 14, 14)
        x = self.Mixed_4f(self.Mixed_4e(self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))))  # (T / 4, N, 832, 14, 14)
        x = self.Mixed_5c(self.Mixed_5b(self._pool_5a(x)))  # (T / 8, N, 1024, 7, 7)
        x = x.mean(axis=(3, 4), keep_dims=True)  # (T / 8, N, 1024, 1, 1)
        x = (x[:-1] + x[1:]) / 2  # (T / 8 - 1, N, 1024, 1, 1)
        return x.transpose(1, 2, 0, 3, 4)
