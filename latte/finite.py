"""NaN and infinity where numbers are expected: found here, so that nobody's pictures turn black in silence."""

from collections.abc import Sequence

import numpy as np

_BLOCK = 1 << 20  # elements looked at together: the masks stay small beside the weights


def blemish(values: np.ndarray) -> str:
    """The first kind of number in an array that is not finite: "NaN", "infinity", or "" where all are."""
    if values.dtype.kind not in "fc":
        return ""
    flat = values.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        if not np.isfinite(block).all():
            return "NaN" if np.isnan(flat).any() else "infinity"
    return ""


def bad_rows(values: np.ndarray) -> list[int]:
    """Indices of the first axis' rows (N, …) that hold a number that is not finite."""
    finite = np.isfinite(values)
    return [] if finite.all() else np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1)).tolist()


def to_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """The same numbers in the type that they are stored in; those beyond its range become infinite, without a word."""
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def pixels(images: np.ndarray) -> np.ndarray:
    """Decoded images (N, 3, H, W), about [-1, 1] -> (N, H, W, 3) uint8; what is not finite would turn black.

    Raises:
        ArithmeticError: an image holds NaN or infinity.
    """
    if bad := bad_rows(images):
        raise ArithmeticError(f"decoded to numbers that are not finite in {frames(bad)}")
    return np.ascontiguousarray(np.clip(images * 127.5 + 128.0, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def frames(numbers: Sequence[int]) -> str:
    """Ascending numbers of frames in words: "frame 3", "frames 3 to 7", "4 frames from 3 to 9"."""
    first, last, count = numbers[0], numbers[-1], len(numbers)
    if count == 1:
        return f"frame {first}"
    return f"frames {first} to {last}" if last - first + 1 == count else f"{count} frames from {first} to {last}"
