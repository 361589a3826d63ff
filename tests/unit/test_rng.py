import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from latte import rng


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**9))
def test_a_stream_depends_on_its_key_alone(seed: int, index: int) -> None:
    first = rng.stream(seed, "noise", index).standard_normal(4)
    rng.stream(seed, "noise", index + 1).standard_normal(1000)
    assert np.array_equal(first, rng.stream(seed, "noise", index).standard_normal(4))
    assert not np.array_equal(first, rng.stream(seed, "noise", index + 1).standard_normal(4))
    assert not np.array_equal(first, rng.stream(seed, "clip", index).standard_normal(4))


def test_indices_do_not_run_together() -> None:
    assert rng.stream(0, "p", 1, 23).random() != rng.stream(0, "p", 12, 3).random()


def test_neighbouring_streams_look_independent() -> None:
    draws = np.stack([rng.stream(0, "noise", i).standard_normal(256) for i in range(256)])
    correlation = np.corrcoef(draws) - np.eye(256)
    # The largest of 32640 sample correlations with n=256 is about 0.27; 0.4 has odds below 1e-6.
    assert np.abs(correlation).max() < 0.4
    assert abs(draws.mean()) < 0.02
