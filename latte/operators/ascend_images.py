"""Convolutions, pooling and normalisation on Ascend, of images (N, C, H, W) and of clips (N, C, T, H, W)."""

import mindspore as ms
from mindspore import mint, nn

F = mint.nn.functional
# How clips lie, from (N, C, T, H, W) and back; and which axis has the channels.
CLIP_LAYOUT, CLIP_BACK, CLIP_CHANNELS = (0, 1, 2, 3, 4), (0, 1, 2, 3, 4), 1


class Convolve(nn.Cell):
    """Convolution of images with bias, pad_mode "same": at stride 2 and even sides it pads below and to the right."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self._stride, self._padding = stride, (kernel - 1) // 2 if stride == 1 else 0
        self._after = kernel - stride if stride > 1 else 0

    def construct(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Map x (N, in, H, W), weight (out, in, k, k), bias (out,) -> (N, out, H / stride, W / stride)."""
        if self._after:
            x = F.pad(x, (0, self._after, 0, self._after))
        return F.conv2d(x, weight, bias, self._stride, self._padding)


class ConvolveScaled(nn.Cell):
    """Convolution of images, times a scale, plus a shift, ReLU; `same`: zeros are added around, so that sizes stay."""

    def __init__(self, channels_out: int, kernel: tuple[int, int], stride: int, same: bool) -> None:
        super().__init__()
        self._stride = stride
        self._padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2) if same else (0, 0)

    def construct(self, x: ms.Tensor, weight: ms.Tensor, scale: ms.Tensor, shift: ms.Tensor) -> ms.Tensor:
        """Images (N, in, H, W) -> (N, out, H', W').

        Args:
            x: images.
            weight: (out, in, rows, columns).
            scale: (out,).
            shift: (out,).
        """
        return F.relu(F.conv2d(x, weight * scale.reshape(-1, 1, 1, 1), shift, self._stride, self._padding))


class ConvolveDoubled(nn.Cell):
    """Double the sides of images by nearest neighbour, then convolve by 3x3 with padding 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def construct(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Map x (N, C, H, W), weight (C, C, 3, 3), bias (C,) -> (N, C, 2 H, 2 W)."""
        doubled = F.interpolate(x, size=(2 * x.shape[2], 2 * x.shape[3]), mode="nearest")
        return F.conv2d(doubled, weight, bias, 1, 1)


class GroupNorm(nn.Cell):
    """Normalisation over groups of channels (Wu & He 2018)."""

    def __init__(self, groups: int, epsilon: float) -> None:
        super().__init__()
        self._groups, self._epsilon = groups, epsilon

    def construct(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Map x (N, C, H, W), weight and bias (C,) -> the shape of x."""
        return F.group_norm(x, self._groups, weight, bias, self._epsilon)


class MaxPool(nn.Cell):
    """Maximum over 3 x 3 windows of images; at stride 1 the border is left out of its windows, so that sizes stay."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self._stride, self._padding = stride, 1 if stride == 1 else 0

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, C, H, W) -> the same shape, at stride 2 (N, C, (H - 1) // 2, (W - 1) // 2)."""
        return F.max_pool2d(x, 3, self._stride, self._padding)


class AveragePool(nn.Cell):
    """Averages over 3 x 3 windows of images; `whole`: the zeros around the image count as pixels."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self._whole = whole

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, C, H, W) -> the same shape."""
        return F.avg_pool2d(x, 3, 1, 1, False, self._whole)


def mean_of_pixels(x: ms.Tensor) -> ms.Tensor:
    """Images (N, C, H, W) -> (N, C)."""
    return mint.mean(x, (2, 3))


def padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same" padding before and after: an odd missing element is added at the end."""
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return missing // 2, missing - missing // 2


class ConvolveClips(nn.Cell):
    """Convolution of clips by k x k x k with TensorFlow's "same" padding, times a scale, plus a shift, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self._kernel, self._stride = kernel, stride

    def construct(self, x: ms.Tensor, weight: ms.Tensor, scale: ms.Tensor, shift: ms.Tensor) -> ms.Tensor:
        """Clips (N, in, T, H, W) -> (N, out, T / stride, H / stride, W / stride).

        Args:
            x: clips.
            weight: (out, in, k, k, k).
            scale: (out,).
            shift: (out,).
        """
        if self._kernel > 1:
            sides = [padding(size, self._kernel, self._stride) for size in (x.shape[4], x.shape[3], x.shape[2])]
            x = F.pad(x, (*sides[0], *sides[1], *sides[2]))
        return F.relu(F.conv3d(x, weight * scale.reshape(-1, 1, 1, 1, 1), shift, self._stride, 0))


class MaxPoolClips(nn.Cell):
    """Maximum over windows of space, then of time, padded with zeros as published: what comes in is not negative.

    The library has no pooling over three axes; two over two axes come to the same.
    """

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__()
        self._kernel, self._stride = kernel, stride

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Clips (N, C, T, H, W) -> (N, C, T / stride, H / stride, W / stride)."""
        count, channels, frames, height, width = x.shape
        rows, columns = (padding(size, self._kernel[1], self._stride[1]) for size in (height, width))
        x = F.pad(x.view(count * channels, frames, height, width), (*columns, *rows))
        x = F.max_pool2d(x, self._kernel[1], self._stride[1])  # (N C, T, H', W')
        height, width = x.shape[2:]
        if self._kernel[0] > 1:
            x = F.pad(
                x.view(count, channels, frames, height * width),
                (0, 0, *padding(frames, self._kernel[0], self._stride[0])),
            )
            x = F.max_pool2d(x, (self._kernel[0], 1), (self._stride[0], 1))  # (N, C, T', H' W')
            frames = x.shape[2]
        return x.view(count, channels, frames, height, width)


def mean_of_images(x: ms.Tensor) -> ms.Tensor:
    """Clips (N, C, T, H, W) -> (N, C, T, 1, 1)."""
    return mint.mean(x, (3, 4), True)


def mean_of_pairs(x: ms.Tensor) -> ms.Tensor:
    """Each frame and the next of clips (N, C, T, …) -> (N, C, T - 1, …)."""
    frames = x.shape[2]
    return (mint.narrow(x, 2, 0, frames - 1) + mint.narrow(x, 2, 1, frames - 1)) / 2


def mean_of_clips(x: ms.Tensor) -> ms.Tensor:
    """(N, C, T, H, W) -> (N, C)."""
    return mint.mean(x, (2, 3, 4))
