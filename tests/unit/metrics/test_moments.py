"""Exact sums: however the rows are grouped and ordered, mean and covariance have the same bits."""

import tracemalloc
from fractions import Fraction
from functools import reduce
from operator import add

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from latte.metrics import Moments, feature_distance, frechet_distance, statistics

seeds = st.integers(0, 2**32 - 1)


def features(seed: int, count: int, size: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, size)) @ rng.standard_normal((size, size)) * scale + shift
    return mixed.astype(np.float32)


def merged(parts: list[np.ndarray]) -> Moments:
    return reduce(add, [Moments.of(part) for part in parts])


def test_64_partial_statistics_are_one_pass_to_the_bit() -> None:
    rows = features(0, 2048, 48, 20.0, 7.0)
    whole = Moments.of(rows).statistics()
    shuffled = np.random.default_rng(1).permutation(rows)
    for parts in (np.array_split(rows, 64), np.array_split(shuffled, 64), [rows[i::64] for i in range(64)][::-1]):
        for ours, expected in zip(merged(parts).statistics(), whole, strict=True):
            assert ours.tobytes() == expected.tobytes()


@given(seeds, st.integers(2, 60), st.integers(1, 12), st.integers(1, 9), st.floats(1e-3, 1e4), st.floats(-1e3, 1e3))
@settings(max_examples=60, deadline=None)
def test_any_grouping_gives_the_same_bits_and_the_known_values(
    seed: int, count: int, size: int, groups: int, scale: float, shift: float
) -> None:
    rows = features(seed, count, size, scale, shift)
    order = np.random.default_rng(seed).integers(0, groups, count)
    parts = [rows[order == group] for group in range(groups) if (order == group).any()]
    whole = Moments.of(rows).statistics("n-1")
    for ours, expected in zip(merged(parts).statistics("n-1"), whole, strict=True):
        assert ours.tobytes() == expected.tobytes()
    mean, covariance = statistics(rows, "n-1")
    largest = float(np.abs(rows).max())
    np.testing.assert_allclose(whole[0], mean, rtol=1e-12, atol=1e-12 * (1 + largest))
    np.testing.assert_allclose(whole[1], covariance, rtol=1e-9, atol=1e-12 * (1 + largest) ** 2)


def test_each_entry_is_the_exact_value_rounded_once() -> None:
    rows = np.array([[1e5, 2.0**-17], [1e5 + 1 / 128, 3.0], [-7.25, 1 / 3], [0.1, 1e-3]], np.float32)
    exact = [[Fraction(float(value)) for value in column] for column in rows.T]
    # 2^-40 is the grid: what float32 holds below 2^-17 is rounded to it.
    exact = [[Fraction(round(value * 2**40), 2**40) for value in column] for column in exact]
    means = [sum(column) / 4 for column in exact]
    mean, covariance = Moments.of(rows).statistics()
    assert mean.tolist() == [float(value) for value in means]
    for i in range(2):
        for j in range(2):
            terms = [(a - means[i]) * (b - means[j]) for a, b in zip(exact[i], exact[j], strict=True)]
            assert covariance[i, j] == float(sum(terms) / 4)


@pytest.mark.parametrize("count", [12, 300])
def test_distances_through_moments_equal_those_of_features_and_of_scipy(count: int) -> None:
    # 12 rows of 60 numbers: singular. Features far from 0 beside their spread: where sums in float64 lose digits.
    first, second = features(1, count, 60, 0.01, 30.0), features(2, count + 5, 60, 0.02, 30.1)
    ours = [Moments.of(rows).statistics() for rows in (first, second)]
    value = frechet_distance(*ours[0], *ours[1])
    assert value == pytest.approx(feature_distance(first, second), rel=1e-9)
    nudge = np.eye(60) * 1e-16 * np.trace(ours[0][1])
    product = (ours[0][1] + nudge) @ (ours[1][1] + nudge)
    root = np.real(scipy.linalg.sqrtm(product))
    expected = np.square(ours[0][0] - ours[1][0]).sum() + np.trace(ours[0][1] + ours[1][1] - 2 * root)
    assert value == pytest.approx(float(expected), rel=1e-6)


def test_memory_does_not_grow_with_the_number_of_rows() -> None:
    def peak_bytes(parts: int) -> int:
        tracemalloc.start()
        total = Moments.of(features(0, 64, 32))
        for seed in range(1, parts):
            total = total + Moments.of(features(seed, 64, 32))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total.count == 64 * parts
        return peak

    assert peak_bytes(200) < 1.05 * peak_bytes(4)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros(3), "expected"),
        (np.zeros((0, 3)), "expected"),
        (np.full((2, 3), np.nan), "not finite"),
        (np.full((2, 3), 1e6), "not below 262144"),
    ],
)
def test_bad_features_are_refused(rows: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Moments.of(rows)


def test_what_cannot_be_merged_is_refused() -> None:
    one = Moments.of(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="of 3 and 2 numbers"):
        one + Moments.of(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="no covariance"):
        one.statistics()
    with pytest.raises(ValueError, match="divisor"):
        (one + one).statistics("2n")
    with pytest.raises(ValueError, match="at most"):
        Moments(1 << 22, one.sums, one.products) + one
