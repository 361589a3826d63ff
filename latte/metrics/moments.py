"""Mean and covariance in one pass, summed without rounding, so that parts merge to the bits of the whole.

A feature is rounded once to a multiple of 2^-40, which is exact for float32 features of at least 2^-17 and moves
smaller ones by less than 1e-12. From there on all is whole numbers: a feature is three limbs of 20 bits, the products
of two limb matrices are computed by the BLAS in float64, exactly as long as no sum reaches 2^53, and kept in int64.
Whatever the order and the grouping of the rows, the sums are the same numbers; the only rounding left is the last one,
of each entry of the mean and of the covariance.
"""

from dataclasses import dataclass

import numpy as np

_FRACTION_BITS = 40
_LIMB_BITS = 20
_LIMBS = 3
_LIMIT = 2.0 ** (_LIMBS * _LIMB_BITS - _FRACTION_BITS - 2)
_BLOCK_ROWS = 8192  # products below 2^38, so sums below 2^51
# What is said of a feature that cannot be summed.
UNUSABLE = f"not finite, or not below {_LIMIT:.0f}"
_MAX_ROWS = 1 << 22  # three products of a level, each below 2^38, so sums in int64 below 2^62


@dataclass(frozen=True)
class Moments:
    """Sums over features (N, D), exact; `+` merges the sums of disjoint sets of rows.

    Attributes:
        count: N.
        sums: of each limb (3, D) int64, in units of 2^(20 limb - 40).
        products: of limbs whose numbers add up to the level (5, D, D) int64, in units of 2^(20 level - 80).
    """

    count: int
    sums: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """The moments of features (N, D), N of at least 1.

        Raises:
            ValueError: another shape, a number that is not finite, or one of 2^18 or more.
        """
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features {features.shape}: expected (N, D) with N of at least 1")
        if unusable_rows(features):
            raise ValueError(f"a feature is {UNUSABLE}")
        size = features.shape[1]
        sums = np.zeros((_LIMBS, size), np.int64)
        products = np.zeros((2 * _LIMBS - 1, size, size), np.int64)
        for first in range(0, len(features), _BLOCK_ROWS):
            limbs = _limbs(features[first : first + _BLOCK_ROWS])  # 3 of (n, D)
            for i, limb in enumerate(limbs):
                sums[i] += limb.sum(axis=0).astype(np.int64)
                products[2 * i] += (limb.T @ limb).astype(np.int64)
                for j in range(i):
                    cross = (limb.T @ limbs[j]).astype(np.int64)  # (D, D)
                    products[i + j] += cross + cross.T
        return cls(len(features), sums, products)

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets of rows together.

        Raises:
            ValueError: the features differ in width, or there are more rows than the sums can hold.
        """
        if self.sums.shape != other.sums.shape:
            raise ValueError(f"features of {self.sums.shape[1]} and {other.sums.shape[1]} numbers cannot be merged")
        if self.count + other.count > _MAX_ROWS:
            raise ValueError(f"{self.count + other.count} rows: at most {_MAX_ROWS} can be summed exactly")
        return Moments(self.count + other.count, self.sums + other.sums, self.products + other.products)

    def statistics(self, divisor: str = "n") -> tuple[np.ndarray, np.ndarray]:
        """Mean (D,) and covariance (D, D), float64, each entry the exact value rounded once; divisor "n" or "n-1".

        Raises:
            ValueError: an unknown divisor, or fewer than 2 rows.
        """
        if divisor not in ("n", "n-1"):
            raise ValueError(f'divisor {divisor!r}: expected "n" or "n-1"')
        if self.count < 2:
            raise ValueError(f"{self.count} rows have no covariance")
        sums = _joined(self.sums)  # (D,) whole numbers in units of 2^-40
        mean = sums / (self.count << _FRACTION_BITS)
        upper = np.triu_indices(len(sums))
        centred = _joined(self.products[:, *upper]) * self.count - sums[upper[0]] * sums[upper[1]]
        over = self.count * (self.count if divisor == "n" else self.count - 1) << (2 * _FRACTION_BITS)
        covariance = np.empty((len(sums), len(sums)))
        covariance[upper] = (centred / over).astype(np.float64)
        covariance.T[upper] = covariance[upper]
        return mean.astype(np.float64), covariance


def unusable_rows(features: np.ndarray) -> list[int]:
    """Rows of features (N, D) with a number that cannot be summed: NaN, infinite, or 2^18 or more."""
    usable = np.abs(features) < _LIMIT  # false for NaN
    return [] if usable.all() else np.flatnonzero(~usable.all(axis=1)).tolist()


def _limbs(features: np.ndarray) -> list[np.ndarray]:
    """Limbs as float64, 19 bits and a sign each, lowest first: features * 2^40 = sum of limb_i * 2^(20 i)."""
    rest = np.rint(np.ldexp(np.asarray(features, np.float64), _FRACTION_BITS)).astype(np.int64)  # (n, D)
    half, mask = 1 << (_LIMB_BITS - 1), (1 << _LIMB_BITS) - 1
    limbs = []
    for _ in range(_LIMBS - 1):
        low = ((rest + half) & mask) - half
        limbs.append(low.astype(np.float64))
        rest = (rest - low) >> _LIMB_BITS
    return [*limbs, rest.astype(np.float64)]


def _joined(levels: np.ndarray) -> np.ndarray:
    """Levels (L, …) int64 -> whole numbers (…) of any size, level i in units of 2^(20 i)."""
    total = levels[-1].astype(object)
    for level in levels[-2::-1]:
        total = total * (1 << _LIMB_BITS) + level.astype(object)
    return np.asarray(total, object)
