"""Near-doubles: shots whose frames have almost the same perceptual hashes."""

from collections.abc import Sequence

import numpy as np

from latte.data.curation.measuring import HASHES

_BLOCK = 1024


def doubles(hashes: Sequence[str], max_distance: float) -> list[tuple[int, float] | None]:
    """For each of these in turn the first one that stays and is like it, and their distance; None: it stays itself.

    A double of what was left out is no double: it stays unless it is like something that stays.

    Args:
        hashes: `HASHES` hashes of 64 bits of each, hexadecimal, in the order in which they are taken in.
        max_distance: bits of 64 in which the hashes of two differ at most, on average.
    """
    import cv2

    if not hashes:
        return []
    rows = np.array([np.frombuffer(bytes.fromhex(text), np.uint8) for text in hashes])  # (N, 32)
    matcher = cv2.BFMatcher(cv2.NORM_HAMMING)
    radius = float(int(max_distance * HASHES) + 1)  # whole bits; what is just beyond is left out below
    found: list[tuple[int, float] | None] = []
    for start in range(0, len(rows), _BLOCK):
        stop = min(len(rows), start + _BLOCK)
        # What was left out before need not be looked at again.
        kept = np.array([index for index in range(start) if found[index] is None] + list(range(start, stop)))
        for number, matches in enumerate(matcher.radiusMatch(rows[start:stop], rows[kept], radius), start=start):
            near = ((int(kept[match.trainIdx]), match.distance / HASHES) for match in matches)
            like = ((other, apart) for other, apart in near if other < number and apart <= max_distance)
            before = [(other, apart) for other, apart in like if found[other] is None]
            found.append(min(before, default=None))
    return found
