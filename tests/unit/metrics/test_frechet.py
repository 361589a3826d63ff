"""The Fréchet distance against closed forms and against scipy's matrix square root."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from latte.metrics import (
    extrapolated_distance,
    feature_distance,
    frechet_distance,
    jackknife_interval,
    statistics,
)

seeds = st.integers(0, 2**32 - 1)


def by_scipy(mu1, sigma1, mu2, sigma2):
    root = np.real(scipy.linalg.sqrtm(sigma1 @ sigma2))
    return float(np.square(mu1 - mu2).sum() + np.trace(sigma1 + sigma2 - 2 * root))


def features(seed, count, size, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, size)) @ rng.standard_normal((size, size)) * scale + shift


@given(seeds, st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_equals_scipy_on_full_rank_covariances(seed, size):
    first = statistics(features(seed, 3 * size + 5, size))
    second = statistics(features(seed + 1, 2 * size + 5, size, 1.5, 0.3))
    assert frechet_distance(*first, *second) == pytest.approx(by_scipy(*first, *second), rel=1e-6, abs=1e-9)


def test_equals_scipy_where_covariances_are_singular():
    first = statistics(features(1, 20, 60))
    second = statistics(features(2, 31, 60, 0.5, 0.1))
    # scipy's root of a singular product is itself inexact: nudge it off zero, as its users do.
    nudge = np.eye(60) * 1e-10
    expected = by_scipy(first[0], first[1] + nudge, second[0], second[1] + nudge)
    assert frechet_distance(*first, *second) == pytest.approx(expected, rel=1e-6)


@given(seeds, st.integers(1, 12), st.floats(-3, 3), st.floats(0.1, 4), st.floats(0.1, 4))
@settings(max_examples=40, deadline=None)
def test_closed_form_of_spheres(seed, size, shift, std1, std2):
    mean = np.random.default_rng(seed).standard_normal(size)
    value = frechet_distance(mean, np.eye(size) * std1**2, mean + shift, np.eye(size) * std2**2)
    assert value == pytest.approx(size * (shift**2 + (std1 - std2) ** 2), rel=1e-9, abs=1e-9)


@given(seeds, st.integers(2, 40), st.integers(2, 40), st.integers(1, 25), st.sampled_from(["n", "n-1"]))
@settings(max_examples=60, deadline=None)
def test_features_and_statistics_give_the_same_distance(seed, count1, count2, size, divisor):
    first, second = features(seed, count1, size), features(seed + 1, count2, size, 0.7, 0.2)
    direct = feature_distance(first, second, divisor)
    through = frechet_distance(*statistics(first, divisor), *statistics(second, divisor))
    scale = np.square(first).sum() + np.square(second).sum()
    assert direct == pytest.approx(through, rel=1e-7, abs=1e-9 * scale)
    assert feature_distance(second, first, divisor) == pytest.approx(direct, rel=1e-9, abs=1e-9 * scale)
    assert feature_distance(first, first, divisor) == pytest.approx(0, abs=1e-9 * scale)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_rotation_does_not_change_the_distance(seed):
    first, second = features(seed, 30, 8), features(seed + 1, 25, 8, 2.0, 1.0)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((8, 8)))[0]
    assert feature_distance(first @ rotation, second @ rotation) == pytest.approx(feature_distance(first, second))


def test_constant_features_have_only_the_distance_of_means():
    assert feature_distance(np.zeros((5, 3)), np.full((4, 3), 2.0)) == pytest.approx(12)
    assert frechet_distance(np.zeros(3), np.zeros((3, 3)), np.ones(3), np.zeros((3, 3))) == pytest.approx(3)


def test_interval_covers_most_repeated_draws():
    def draw(seed):
        rng = np.random.default_rng(seed)
        return rng.standard_normal((200, 6)), rng.standard_normal((200, 6)) * 1.3 + 0.5

    low, high = jackknife_interval(*draw(0))
    values = [feature_distance(*draw(seed)) for seed in range(60)]
    assert low < values[0] < high
    centre, width = np.mean(values), high - low
    assert sum(centre - width / 2 <= value <= centre + width / 2 for value in values) >= 54
    assert width < 6 * np.std(values)


def test_extrapolation_removes_most_of_the_bias_of_few_samples():
    rng = np.random.default_rng(3)
    first, second = rng.standard_normal((400, 40)), rng.standard_normal((400, 40))
    biased, corrected = feature_distance(first, second), extrapolated_distance(first, second)
    assert biased > 2  # the true distance is 0
    assert abs(corrected) < biased / 4
    assert corrected == extrapolated_distance(first, second)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.zeros(3), np.eye(3), np.zeros(2), np.eye(2)), "do not fit"),
        ((np.zeros(2), np.eye(2), np.array([0, np.nan]), np.eye(2)), "not finite"),
        ((np.zeros(2), np.eye(2), np.zeros(2), np.diag([1.0, -0.5])), "not a covariance"),
    ],
)
def test_bad_statistics_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        frechet_distance(*arguments)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "at least 2"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "differ in width"),
        (np.full((4, 3), np.inf), np.zeros((4, 3)), "not finite"),
    ],
)
def test_bad_features_are_refused(first, second, words):
    with pytest.raises(ValueError, match=words):
        feature_distance(first, second)
