"""Convolutions, pooling and normalisation on a CPU: of images (N, C, H, W), and of clips as frames of images.

A convolution over time and space is computed as convolutions over space alone: frames are mixed into fewer frames than
kernel taps times output frames, each is convolved by a mix of the taps, and the results are mixed into output frames
(`latte.operators.toom`). With three taps that is half the multiplications.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte.operators import toom
from latte.operators.toom import Mixing

# How clips lie, (T, N, C, H, W), from (N, C, T, H, W) and back; and which axis has the channels.
CLIP_LAYOUT, CLIP_BACK, CLIP_CHANNELS = (2, 0, 1, 3, 4), (1, 2, 0, 3, 4), 2


class Convolve(nn.Cell):
    """Convolution of images with bias, pad_mode "same": at stride 2 and even sides it pads below and to the right."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self._convolve = ops.Conv2D(channels_out, kernel, pad_mode="same", stride=stride)
        self._bias_add = ops.BiasAdd()
        self._channels = (channels_in, channels_out)
        self._has_rows = kernel == 3 and stride == 1
        if self._has_rows:
            self._convolve_rows = toom.Convolve3x3(channels_out)

    def construct(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Map x (N, in, H, W), weight (out, in, k, k), bias (out,) -> (N, out, H / stride, W / stride)."""
        if self._has_rows and toom.worthwhile(*self._channels, x.shape[0], *x.shape[2:]):
            return self._bias_add(self._convolve_rows(x, weight), bias)
        return self._bias_add(self._convolve(x, weight), bias)


class ConvolveScaled(nn.Cell):
    """Convolution of images, times a scale, plus a shift, ReLU; `same`: zeros are added around, so that sizes stay."""

    def __init__(self, channels_out: int, kernel: tuple[int, int], stride: int, same: bool) -> None:
        super().__init__()
        self._convolve = ops.Conv2D(channels_out, kernel, pad_mode="same" if same else "valid", stride=stride)
        self._bias_add = ops.BiasAdd()

    def construct(self, x: ms.Tensor, weight: ms.Tensor, scale: ms.Tensor, shift: ms.Tensor) -> ms.Tensor:
        """Images (N, in, H, W) -> (N, out, H', W').

        Args:
            x: images.
            weight: (out, in, rows, columns).
            scale: (out,).
            shift: (out,).
        """
        # Broadcast before the product: MindSpore's own broadcasting on a CPU is slow and keeps its memory.
        weight = weight * ops.broadcast_to(scale.reshape(-1, 1, 1, 1), weight.shape)
        return ops.relu(self._bias_add(self._convolve(x, weight), shift))


# Rows of a kernel of three that meet the same pixel of the smaller image, for outputs at even and at odd places.
_MET = (np.array([[1, 0, 0], [0, 1, 1]], np.float32), np.array([[1, 1, 0], [0, 0, 1]], np.float32))


class ConvolveDoubled(nn.Cell):
    """Double the sides of images by nearest neighbour, then convolve by 3x3 with padding 1.

    Three taps meet only two different pixels of the smaller image along each side. So the outputs at even and odd rows
    and columns are four convolutions of the smaller image by 2x2 kernels: 16 multiplications instead of 36.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        places = [(i, j) for i in (0, 1) for j in (0, 1)]
        self._sums = [ms.Tensor(np.ascontiguousarray(np.kron(_MET[i], _MET[j]).T)) for i, j in places]  # 4 x (9, 4)
        self._convolve = [ops.Conv2D(channels, 2, pad_mode="pad", pad=(1 - i, i, 1 - j, j)) for i, j in places]
        self._matmul, self._concat, self._bias_add = ops.MatMul(), ops.Concat(axis=1), ops.BiasAdd()

    def construct(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Map x (N, C, H, W), weight (C, C, 3, 3), bias (C,) -> (N, C, 2 H, 2 W)."""
        batch, channels, height, width = x.shape
        taps = weight.reshape(channels * channels, 9)
        parts = []
        for i in range(4):
            kernel = self._matmul(taps, self._sums[i]).reshape(channels, channels, 2, 2)
            parts.append(self._bias_add(self._convolve[i](x, kernel), bias))  # (N, C, H, W)
        y = self._concat(parts).reshape(batch, 2, 2, channels, height, width).transpose(0, 3, 4, 1, 5, 2)
        return y.reshape(batch, channels, 2 * height, 2 * width)


class GroupNorm(nn.Cell):
    """Normalisation over groups of channels (Wu & He 2018), written out: faster on a CPU than nn.GroupNorm."""

    def __init__(self, groups: int, epsilon: float) -> None:
        super().__init__()
        self._groups, self._epsilon = groups, epsilon

    def construct(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Map x (N, C, H, W), weight and bias (C,) -> the shape of x."""
        batch, channels = x.shape[:2]
        rows = x.reshape(batch * self._groups, -1)  # (N * G, C / G * H * W)
        mean = rows.mean(axis=1, keep_dims=True)  # (N * G, 1)
        centered = rows - mean
        inverse = ops.rsqrt((centered * centered).mean(axis=1, keep_dims=True) + self._epsilon)  # (N * G, 1)
        # One factor and one summand for each channel: two passes over x where group and channel apart take four.
        scale = self._per_channel(inverse, batch, channels) * weight.reshape(1, channels)  # (N, C)
        shift = bias.reshape(1, channels) - self._per_channel(mean, batch, channels) * scale  # (N, C)
        return x * scale.reshape(batch, channels, 1, 1) + shift.reshape(batch, channels, 1, 1)

    def _per_channel(self, value: ms.Tensor, batch: int, channels: int) -> ms.Tensor:
        """A number for each group (N * G, 1) -> the same for each of its channels (N, C)."""
        by_group = (batch, self._groups, channels // self._groups)
        return ops.broadcast_to(value.reshape(batch, self._groups, 1), by_group).reshape(batch, channels)


class MaxPool(nn.Cell):
    """Maximum over 3 x 3 windows of images; at stride 1 the border is left out of its windows, so that sizes stay."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self._pool = ops.MaxPool(3, stride, "same" if stride == 1 else "valid")

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, C, H, W) -> the same shape, at stride 2 (N, C, (H - 1) // 2, (W - 1) // 2)."""
        return self._pool(x)


class AveragePool(nn.Cell):
    """Averages over 3 x 3 windows of images; `whole`: the zeros around the image count as pixels."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self._whole = whole
        self._pad = ops.Pad(((0, 0), (0, 0), (1, 1), (1, 1)))
        # With "same" padding MindSpore's average is over what lies inside the image.
        self._pool = ops.AvgPool(3, 1, "valid" if whole else "same")

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, C, H, W) -> the same shape."""
        return self._pool(self._pad(x) if self._whole else x)


def mean_of_pixels(x: ms.Tensor) -> ms.Tensor:
    """Images (N, C, H, W) -> (N, C)."""
    return x.mean(axis=(2, 3))


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
        by_toom = toom.toom(per_group, len(taps))
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
    """Frame that the k-th of a pooling window is, for each output; beyond the border the border's frame stands in."""
    num_outputs = -(-num_frames // stride)
    before = max((num_outputs - 1) * stride + kernel - num_frames, 0) // 2
    first = np.arange(num_outputs) * stride - before
    return tuple(ms.Tensor(np.clip(first + k, 0, num_frames - 1).astype(np.int32)) for k in range(kernel))


class ConvolveClips(nn.Cell):
    """Convolution of clips by k x k x k with TensorFlow's "same" padding, times a scale, plus a shift, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self._sizes = (channels_in, channels_out, kernel, stride)
        self._convolve = ops.Conv2D(channels_out, kernel, pad_mode="same", stride=stride)
        self._matmul = ops.MatMul()
        self._concat = ops.Concat(axis=0)
        self._bias_add = ops.BiasAdd()

    def construct(self, x: ms.Tensor, weight: ms.Tensor, scale: ms.Tensor, shift: ms.Tensor) -> ms.Tensor:
        """Frames (T, N, in, H, W) -> (T / stride, N, out, H / stride, W / stride).

        Args:
            x: clips.
            weight: (out, in, k, k, k).
            scale: (out,).
            shift: (out,).
        """
        channels_in, channels_out, kernel, stride = self._sizes
        num_frames, count, _, height, width = x.shape
        # Broadcast before the product: MindSpore's own broadcasting on a CPU is slow and keeps its memory.
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


class MaxPoolClips(nn.Cell):
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


def mean_of_images(x: ms.Tensor) -> ms.Tensor:
    """Clips (T, N, C, H, W) -> (T, N, C, 1, 1)."""
    return x.mean(axis=(3, 4), keep_dims=True)


def mean_of_pairs(x: ms.Tensor) -> ms.Tensor:
    """Each frame and the next of clips (T, N, …) -> (T - 1, N, …)."""
    return (x[:-1] + x[1:]) / 2


def mean_of_clips(x: ms.Tensor) -> ms.Tensor:
    """(N, C, T, H, W) -> (N, C)."""
    return x.mean(axis=(2, 3, 4))
