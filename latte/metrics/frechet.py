"""The Fréchet distance between two sets of features, its uncertainty, and what it would be with endless samples.

With features X1 (N1, D) and X2 (N2, D), centred and divided by the root of their divisor, the covariances are X^T X and
the trace of sqrt(S1 S2) is the sum of the singular values of X1 X2^T. Working on X itself (through its QR factor), not
on covariances, keeps full precision where a covariance is singular, which it is whenever N < D.
"""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from latte import rng

_MIN_SAMPLES = 2


class Interval(NamedTuple):
    """A confidence interval around a distance."""

    low: float
    high: float


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Distance between two normal distributions (Fréchet 1957; Dowson & Landau 1982).

    |mu1 - mu2|^2 + trace(sigma1 + sigma2 - 2 sqrt(sigma1 sigma2)), in float64, without a matrix square root that could
    turn complex: with sigma = L L^T by eigenvalues, trace(sqrt(sigma1 sigma2)) is the nuclear norm of L1^T L2.

    Args:
        mu1: mean of the first (D,).
        sigma1: its covariance (D, D), symmetric and positive semidefinite up to rounding; may be singular.
        mu2: mean of the second (D,).
        sigma2: its covariance (D, D).

    Raises:
        ValueError: shapes do not fit together, a number is not finite, or a covariance has negative eigenvalues.
    """
    mu1, mu2 = np.asarray(mu1, np.float64), np.asarray(mu2, np.float64)
    sigma1, sigma2 = np.asarray(sigma1, np.float64), np.asarray(sigma2, np.float64)
    size = len(mu1) if mu1.ndim == 1 else -1
    if mu2.shape != (size,) or sigma1.shape != (size, size) or sigma2.shape != (size, size):
        raise ValueError(
            f"means {mu1.shape} and {mu2.shape} and covariances {sigma1.shape} and {sigma2.shape} do not fit together"
        )
    if not all(np.isfinite(array).all() for array in (mu1, mu2, sigma1, sigma2)):
        raise ValueError("a mean or a covariance holds a number that is not finite")
    cross = _root(sigma1).T @ _root(sigma2)  # (rank 1, rank 2)
    return _combine(mu1 - mu2, float(np.trace(sigma1)), float(np.trace(sigma2)), cross)


def statistics(features: np.ndarray, divisor: str = "n") -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D) of features (N, D), float64; `divisor` is "n" or "n-1"."""
    features = _checked(features)
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / _divide_by(len(features), divisor)


def feature_distance(first: np.ndarray, second: np.ndarray, divisor: str = "n") -> float:
    """The Fréchet distance of two sets of features, the same number as through `statistics`, but cheaper where N < D.

    The result depends on the order of the rows only by rounding; whoever wants equal bits sorts them first.

    Args:
        first: features (N1, D).
        second: features (N2, D).
        divisor: of the covariances: "n" as the published FVD scorers, or "n-1".

    Raises:
        ValueError: fewer than 2 rows, widths that differ, or a number that is not finite.
    """
    first, second = _checked(first), _checked(second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"features {first.shape} and {second.shape} differ in width")
    return _distance(_Side(first, divisor), _Side(second, divisor))


def jackknife_interval(
    first: np.ndarray,
    second: np.ndarray,
    divisor: str = "n",
    groups: int = 20,
    confidence: float = 0.95,
    rows_per_clip: int = 1,
) -> Interval:
    """A confidence interval for the distance at these sample sizes, by the grouped jackknife (Quenouille 1949).

    Each side is cut into `groups` interleaved groups; the distance is computed with each group left out; the spread of
    these values gives the standard error. The bootstrap is no use here: drawing with replacement leaves fewer different
    clips, which moves a Fréchet distance upwards by more than the interval is wide.

    Args:
        first: features (N1, D).
        second: features (N2, D).
        divisor: see `feature_distance`.
        groups: groups per side, at most half the clips of the smaller side.
        confidence: of the interval, 0 < confidence < 1.
        rows_per_clip: rows that follow each other and come of one clip; they are left out together.
    """
    first, second = _checked(first), _checked(second)
    whole = (_Side(first, divisor), _Side(second, divisor))
    variance = 0.0
    for side, features in enumerate((first, second)):
        group = grouped(len(features), rows_per_clip, groups, min(len(first), len(second)))  # (N,)
        groups = int(group.max()) + 1
        values = []
        for left_out in range(groups):
            part = _Side(features[group != left_out], divisor)
            values.append(_distance(part, whole[1]) if side == 0 else _distance(whole[0], part))
        variance += (groups - 1) / groups * float(np.square(np.array(values) - np.mean(values)).sum())
    value = _distance(*whole)
    margin = normal_quantile(0.5 + confidence / 2) * variance**0.5
    return Interval(max(0.0, value - margin), value + margin)


def extrapolated_distance(
    first: np.ndarray, second: np.ndarray, divisor: str = "n", sizes: int = 8, seed: int = 0, rows_per_clip: int = 1
) -> float:
    """The distance that endless samples would have: a line through distances over 1/N, read at 0.

    Chong & Forsyth 2020, "Effectively unbiased FID": the bias of a Fréchet distance is close to linear in 1/N. Subsets
    of both sides, from half to all of their clips, are drawn from `seed`. Can be negative where two sets are equal.
    """
    first, second = _checked(first), _checked(second)
    inverse, values = [], []
    for step, share in enumerate(np.linspace(0.5, 1.0, sizes)):
        parts = []
        for side, features in enumerate((first, second)):
            clips = len(features) // rows_per_clip
            count = max(_MIN_SAMPLES, round(share * clips))
            order = rng.stream(seed, "extrapolation", side, step).permutation(clips)[:count]
            rows = np.sort(order)[:, None] * rows_per_clip + np.arange(rows_per_clip)  # (count, rows_per_clip)
            parts.append(_Side(features[rows.reshape(-1)], divisor))
        inverse.append(1.0 / share)
        values.append(_distance(*parts))
    return float(np.polyfit(inverse, values, 1)[1])


def grouped(rows: int, rows_per_clip: int, groups: int, fewest_rows: int) -> np.ndarray:
    """Group (rows,) of each row for the jackknife: clips are dealt out in turn, at least 2 to a group of either side.

    Args:
        rows: of the side.
        rows_per_clip: that follow each other and stay together.
        groups: that are wanted.
        fewest_rows: of the smaller side.
    """
    groups = max(2, min(groups, fewest_rows // rows_per_clip // 2))
    return np.arange(rows) // rows_per_clip % groups


class _Side:
    """One set of features, reduced to what distances need: mean, trace and a factor R of covariance R^T R."""

    def __init__(self, features: np.ndarray, divisor: str) -> None:
        self.mean = features.mean(axis=0)  # (D,)
        scaled = (features - self.mean) / np.sqrt(_divide_by(len(features), divisor))  # (N, D)
        self.trace = float(np.square(scaled).sum())
        self.factor: np.ndarray = np.asarray(np.linalg.qr(scaled, mode="r"))  # (min(N, D), D)


def _distance(first: _Side, second: _Side) -> float:
    return _combine(first.mean - second.mean, first.trace, second.trace, first.factor @ second.factor.T)


def _combine(difference: np.ndarray, trace1: float, trace2: float, cross: np.ndarray) -> float:
    nuclear_norm = float(np.linalg.svd(cross, compute_uv=False).sum()) if cross.size else 0.0
    return max(0.0, float(difference @ difference) + trace1 + trace2 - 2.0 * nuclear_norm)


def _root(sigma: np.ndarray) -> np.ndarray:
    """L (D, rank) with L L^T = sigma; eigenvalues within rounding of 0 are left out."""
    values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
    rounding = len(values) * np.finfo(np.float64).eps * max(float(np.abs(values).max(initial=0.0)), 0.0)
    # Covariances that were summed up in float32 dip below 0 by more than float64's rounding; that is still no error.
    if values.size and values[0] < -1e-5 * max(values[-1], 0.0) - rounding:
        raise ValueError(f"not a covariance: it has the eigenvalue {values[0]:.3g}")
    kept = values > rounding
    return vectors[:, kept] * np.sqrt(values[kept])


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < _MIN_SAMPLES:
        raise ValueError(f"features {features.shape}: expected (N, D) with N of at least {_MIN_SAMPLES}")
    if not np.isfinite(features).all():
        raise ValueError("a feature is not finite")
    return features


def _divide_by(count: int, divisor: str) -> int:
    if divisor not in ("n", "n-1"):
        raise ValueError(f'divisor {divisor!r}: expected "n" or "n-1"')
    return count if divisor == "n" else count - 1


def normal_quantile(probability: float) -> float:
    """The number that a standard normal variable stays below with this probability."""
    return NormalDist().inv_cdf(probability)
