"""The kernel distance: against its formula written out, and how often its interval holds the truth."""

import numpy as np
import pytest

from latte.metrics import kernel_distance


def written_out(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased squared MMD, pair by pair."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    def within(rows: np.ndarray) -> float:
        return float(np.mean([kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]))

    return within(first) + within(second) - 2 * float(np.mean([kernel(x, y) for x in first for y in second]))


def rows(seed: int, count: int, shift: float = 0.0, width: int = 5) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, width)) + shift).astype(np.float32)


@pytest.mark.parametrize(("count1", "count2", "rows_per_clip"), [(40, 23, 1), (24, 24, 3), (4, 6, 2), (2, 2, 1)])
def test_the_distance_is_the_formula_whatever_the_groups(count1: int, count2: int, rows_per_clip: int) -> None:
    first, second = rows(1, count1), rows(2, count2, 0.5)
    wanted = written_out(first.astype(float), second.astype(float))
    for groups in (2, 7, 20):
        made = kernel_distance(first, second, groups, rows_per_clip=rows_per_clip)
        assert made.value == pytest.approx(wanted, rel=1e-9)
        assert (made.interval is None) is (count1 == 2)
        assert made.interval is None or made.interval.low < made.value < made.interval.high


def test_the_intervals_groups_are_left_out_as_if_they_had_never_been_there() -> None:
    first, second = rows(1, 12), rows(2, 12, 0.5)
    values = [written_out(np.delete(first, range(g, 12, 3), 0), second) for g in range(3)]
    others = [written_out(first, np.delete(second, range(g, 12, 3), 0)) for g in range(3)]
    variance = sum(2 / 3 * np.square(np.array(each) - np.mean(each)).sum() for each in (values, others))
    made = kernel_distance(first, second, groups=3)
    assert made.interval is not None
    assert made.interval.high - made.value == pytest.approx(1.959964 * variance**0.5, rel=1e-5)


def test_blocks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = rows(1, 64), rows(2, 64, 0.5)
    whole = kernel_distance(first, second, groups=2)
    monkeypatch.setattr("latte.metrics.kernel._BLOCK_ROWS", 7)
    assert kernel_distance(first, second, groups=2).value == pytest.approx(whole.value, rel=1e-12)


def test_sets_of_one_distribution_are_at_0_on_average_and_within_the_interval() -> None:
    made = [kernel_distance(rows(2 * seed, 100), rows(2 * seed + 1, 100)) for seed in range(60)]
    values = np.array([each.value for each in made])
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    assert values.min() < 0 < values.max()
    # Where two sets are alike the estimate is a degenerate U-statistic, and the interval rather too wide.
    assert sum(each.interval is not None and each.interval.low <= 0 <= each.interval.high for each in made) >= 54


def test_the_interval_holds_the_distance_that_many_clips_have() -> None:
    truth = kernel_distance(rows(1000, 3000), rows(1001, 3000, 0.4)).value
    made = [kernel_distance(rows(2 * seed, 100), rows(2 * seed + 1, 100, 0.4)).interval for seed in range(60)]
    assert sum(each is not None and each.low <= truth <= each.high for each in made) >= 52


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (rows(1, 1), rows(2, 4), "of at least 2 clips"),
        (rows(1, 4), rows(2, 4, width=6), "differ in width"),
        (rows(1, 4) * np.float32("nan"), rows(2, 4), "not finite"),
    ],
)
def test_features_without_a_distance_are_refused(first: np.ndarray, second: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kernel_distance(first, second)
