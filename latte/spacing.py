"""Steps of a diffusion that sampling visits: settings are checked against them without the import of MindSpore."""

import re

import numpy as np

NUM_STEPS = 1000
_MOST_DIGITS = 10


def respaced(num_steps: int, spacing: int | str | None) -> np.ndarray:
    """The ascending steps, out of 0..num_steps-1, that sampling visits.

    Args:
        num_steps: steps of the whole process.
        spacing: None for all; a count (250 or "250"); "ddimN" for N steps of one fixed integer stride (Song et al.
            2021); "a,b,…" for a steps in the first section, b in the second, … of equal sections (improved-diffusion).

    Raises:
        ValueError: `spacing` cannot be read, or asks for more steps than there are.
    """
    if spacing is None:
        return np.arange(num_steps)
    text = str(spacing).strip()
    stride_wanted = text.startswith("ddim")
    parts = [part.strip() for part in text.removeprefix("ddim").split(",", 0 if stride_wanted else -1)]
    # Not what int() takes besides: "1_0", "+5" and the digits of other scripts.
    if not all(part.isascii() and part.isdecimal() and len(part) < _MOST_DIGITS for part in parts):
        raise ValueError(f"num_sampling_steps {spacing!r}: write a count, ddimN or a,b,…")
    counts = [int(part) for part in parts]
    if stride_wanted:
        return _fixed_stride(num_steps, counts[0])
    if min(counts) < 1:
        raise ValueError(f"num_sampling_steps {spacing!r}: a section needs at least one step")
    steps: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        length = num_steps // len(counts) + (1 if i < num_steps % len(counts) else 0)
        if count > length:
            raise ValueError(f"num_sampling_steps {spacing!r}: cannot take {count} of {length} steps")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # The strides are added up one by one, as published: rounding of the sum decides which step is taken.
        position = 0.0
        for _ in range(count):
            steps.append(start + round(position))
            position += stride
        start += length
    return np.array(sorted(set(steps)))


def _fixed_stride(num_steps: int, count: int) -> np.ndarray:
    for stride in range(1, num_steps):
        if len(range(0, num_steps, stride)) == count:
            return np.arange(0, num_steps, stride)
    possible = (len(range(0, num_steps, stride)) for stride in range(1, num_steps))
    nearest = min(possible, key=lambda steps: abs(steps - count))
    raise ValueError(
        f"num_sampling_steps ddim{count}: no integer stride takes {count} of {num_steps} steps; ddim{nearest} works"
    )


def check(spacing: int | str) -> None:
    """Whether a setting names steps of a diffusion of `NUM_STEPS`.

    Raises:
        ValueError: it does not; says what works.
    """
    text = str(spacing)
    if not re.fullmatch(r"-?[0-9]+|ddim[0-9]+|[0-9]+(,[0-9]+)+", text):
        raise ValueError('expected a count, "ddimN" or sections "a,b,…"; 250 works')
    if text.lstrip("-").isdigit():
        if not 1 <= int(text) <= NUM_STEPS:
            raise ValueError(f"the diffusion has 1 to {NUM_STEPS} steps; {min(max(1, int(text)), NUM_STEPS)} works")
        return
    try:
        respaced(NUM_STEPS, text)
    except ValueError as error:
        raise ValueError(str(error).partition(": ")[2]) from None
