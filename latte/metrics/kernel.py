"""The kernel distance between two sets of features: the squared maximum mean discrepancy, and its uncertainty.

Binkowski et al. 2018, "Demystifying MMD GANs": KID, on Inception's features; Unterthiner et al. 2018: KVD, on I3D's.
The kernel is k(x, y) = (x y / D + 1)^3 with D the number of features, as in the published code of KID and in
StyleGAN-V's. Nothing is fitted to the features: the estimate has no bias at any number of clips and can fall below 0.
"""

from typing import NamedTuple

import numpy as np

from latte.metrics.frechet import Interval, grouped, normal_quantile

_BLOCK_ROWS = 1024
_DEGREE = 3


class KernelDistance(NamedTuple):
    """A kernel distance and a confidence interval around it; None where there are too few rows for one."""

    value: float
    interval: Interval | None


def kernel_distance(
    first: np.ndarray, second: np.ndarray, groups: int = 20, confidence: float = 0.95, rows_per_clip: int = 1
) -> KernelDistance:
    """The unbiased estimate of the squared MMD over all pairs of rows, with an interval by the grouped jackknife.

    mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean of k(x_i, y_j), in float64. Published
    code takes the mean over random subsets of 1000 rows instead; it estimates the same number with a larger spread.
    Kernels are summed by pairs of groups, once; with a group left out only its sums are taken away. Beside the features
    the memory is that of a block of 1024 by 1024 kernels.

    Args:
        first: features (N1, D), float32 or float64.
        second: features (N2, D).
        groups: groups of clips per side, at most half the clips of the smaller side.
        confidence: of the interval, 0 < confidence < 1.
        rows_per_clip: rows that follow each other and come of one clip; they are left out together.

    Raises:
        ValueError: fewer than 2 clips, widths that differ, or a number that is not finite.
    """
    for features in (first, second):
        if features.ndim != 2 or len(features) < 2 * rows_per_clip:
            raise ValueError(f"features {features.shape}: expected (N, D) of at least 2 clips")
        if not np.isfinite(features).all():
            raise ValueError("a feature is not finite")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"features {first.shape} and {second.shape} differ in width")
    parts = [grouped(len(rows), rows_per_clip, groups, min(len(first), len(second))) for rows in (first, second)]
    sides = [
        [rows[group == number] for number in range(group.max() + 1)]
        for rows, group in zip((first, second), parts, strict=True)
    ]
    sums = _Sums(sides[0], sides[1])
    value = sums.without(0, None)
    if any(len(rows) - max(map(len, members)) < 2 for rows, members in zip((first, second), sides, strict=True)):
        return KernelDistance(value, None)
    variance = 0.0
    for side, members in enumerate(sides):
        values = np.array([sums.without(side, group) for group in range(len(members))])
        variance += (len(members) - 1) / len(members) * float(np.square(values - values.mean()).sum())
    margin = normal_quantile(0.5 + confidence / 2) * variance**0.5
    return KernelDistance(value, Interval(value - margin, value + margin))


class _Sums:
    """Sums of kernels between groups of rows: within each side (G, G) without a row's own, across both (G1, G2)."""

    def __init__(self, first: list[np.ndarray], second: list[np.ndarray]) -> None:
        self.counts = [np.array([len(group) for group in side]) for side in (first, second)]
        self.within = [_within(side) for side in (first, second)]
        self.across = np.array([[_kernels(a, b) for b in second] for a in first])

    def without(self, side: int, group: int | None) -> float:
        """The estimate without a group of a side; None: with all."""
        kept = [np.ones(len(counts), bool) for counts in self.counts]
        if group is not None:
            kept[side][group] = False
        counts = [int(each[mask].sum()) for each, mask in zip(self.counts, kept, strict=True)]
        value = -2 * float(self.across[np.ix_(*kept)].sum()) / (counts[0] * counts[1])
        for sums, mask, count in zip(self.within, kept, counts, strict=True):
            value += float(sums[np.ix_(mask, mask)].sum()) / (count * (count - 1))
        return value


def _within(groups: list[np.ndarray]) -> np.ndarray:
    sums = np.zeros((len(groups), len(groups)))
    for i, rows in enumerate(groups):
        wide = rows.astype(np.float64)  # (n, D)
        own = ((np.square(wide).sum(axis=1) / wide.shape[1] + 1) ** _DEGREE).sum()
        sums[i, i] = _kernels(rows, rows) - own
        for j in range(i):
            sums[i, j] = sums[j, i] = _kernels(rows, groups[j])
    return sums


def _kernels(first: np.ndarray, second: np.ndarray) -> float:
    """Sum of the kernels of all pairs of rows of (n, D) and (m, D)."""
    total = 0.0
    for i in range(0, len(first), _BLOCK_ROWS):
        rows = first[i : i + _BLOCK_ROWS].astype(np.float64)
        for j in range(0, len(second), _BLOCK_ROWS):
            others = second[j : j + _BLOCK_ROWS].astype(np.float64)
            total += float(((rows @ others.T / rows.shape[1] + 1) ** _DEGREE).sum())
    return total
