"""Convolutions by fewer multiplications (Toom 1963, Cook 1966; in neural networks Lavin & Gray 2016).

Some outputs along one axis are computed together: the inputs that they meet are mixed, so are the kernel's taps, each
mixed input is multiplied by one mixed tap, and the products are mixed into the outputs. Three taps and four outputs
then take 6 multiplications instead of 12.
"""

from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import nn, ops

# Where the polynomials of Toom's method are evaluated, by their number; infinity comes on top. Small and with both
# signs, which keeps the rounding error near float32's own.
_POINTS = {3: (0, 1, -1), 4: (0, 1, -1, 2), 5: (0, 1, -1, 2, -0.5), 6: (0, 1, -1, 2, -0.5, 0.5)}
_ROWS, _TAPS = 4, 3
# With fewer channels, or fewer pixels in a batch, the mixing costs what the multiplications save.
_MIN_CHANNELS, _MIN_PIXELS = 64, 2048


class Mixing(NamedTuple):
    """Matrices of a convolution by P multiplications.

    Attributes:
        inputs: (P, inputs), mixes the inputs.
        taps: (P, taps), mixes the kernel's taps.
        outputs: (outputs, P), mixes the products.
    """

    inputs: np.ndarray
    taps: np.ndarray
    outputs: np.ndarray


def toom(outputs: int, taps: int) -> Mixing:
    """Correlation y[i] = sum_k g[k] d[i + k] of `outputs` values by outputs + taps - 1 multiplications.

    It is the transpose of multiplying polynomials by their values at points.
    """
    points = _POINTS[outputs + taps - 2]

    def values(count: int) -> np.ndarray:
        at_infinity = [[0.0] * (count - 1) + [1.0]]
        return np.array([[float(point) ** power for power in range(count)] for point in points] + at_infinity)

    return Mixing(np.linalg.inv(values(outputs + taps - 1)).T, values(taps), values(outputs).T)


def worthwhile(channels_in: int, channels_out: int, batch: int, height: int, width: int) -> bool:
    """Whether `Convolve3x3` can take the images and is faster than the plain convolution on a CPU.

    `benchmarks/models.py` (vae-encode, vae-decode) and `benchmarks/encode.py` are what it was chosen by.
    """
    enough = min(channels_in, channels_out) >= _MIN_CHANNELS and batch * height * width >= _MIN_PIXELS
    return enough and height % _ROWS == 0


class Convolve3x3(nn.Cell):
    """A 3x3 convolution with padding 1, four rows at a time by half the multiplications.

    The error is some 1e-6 of the largest output, three times that of the plain sum in float32.
    """

    def __init__(self, channels_out: int) -> None:
        super().__init__()
        parts = toom(_ROWS, _TAPS)
        self._inputs, self._taps, self._outputs = [tuple(map(tuple, part.tolist())) for part in parts]
        self._points = len(self._inputs)
        self._convolve = ops.Conv2D(channels_out, (1, 3), pad_mode="same")
        self._split, self._concat, self._gather = ops.Split(2, _TAPS), ops.Concat(axis=3), ops.Gather()

    def construct(self, x: ms.Tensor, weight: ms.Tensor) -> ms.Tensor:
        """Map x (N, in, H, W) with H a multiple of 4, weight (out, in, 3, 3) -> (N, out, H, W)."""
        batch, channels, height, width = x.shape
        groups = height // _ROWS
        flat = x.reshape(batch * channels, height, width)
        rows, inside = _rows(height)
        met = [self._gather(flat, rows[k], 1).reshape(batch, channels, groups, width) for k in range(self._points)]
        met[0], met[-1] = met[0] * inside[0], met[-1] * inside[1]  # beyond the border is zero
        taps = self._split(weight)  # 3 x (out, in, 1, 3)
        products = [
            self._convolve(_mix(met, self._inputs[k]), _mix(taps, self._taps[k])) for k in range(self._points)
        ]  # 6 x (N, out, H / 4, W)
        shape = (batch, -1, groups, 1, width)
        return self._concat([_mix(products, factors).reshape(shape) for factors in self._outputs]).reshape(
            batch, -1, height, width
        )


@ops.constexpr
def _rows(height: int) -> tuple[tuple[ms.Tensor, ...], tuple[ms.Tensor, ms.Tensor]]:
    """The k-th row that each group of four meets, 6 x (H / 4,); 0 where the first and the last of them lie outside."""
    first = np.arange(0, height, _ROWS) - 1
    rows = [first + k for k in range(_ROWS + _TAPS - 1)]
    inside = [((row >= 0) & (row < height)).astype(np.float32).reshape(1, 1, -1, 1) for row in (rows[0], rows[-1])]
    clipped = tuple(ms.Tensor(np.clip(row, 0, height - 1).astype(np.int32)) for row in rows)
    return clipped, (ms.Tensor(inside[0]), ms.Tensor(inside[1]))


def _mix(parts: list[ms.Tensor], factors: tuple[float, ...]) -> ms.Tensor:
    """Sum of parts times factors, without what is multiplied by 0."""
    total = None
    for i in range(len(factors)):
        if factors[i] != 0.0:
            term = parts[i] if factors[i] == 1.0 else parts[i] * factors[i]
            total = term if total is None else total + term
    return total
