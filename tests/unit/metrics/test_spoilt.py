"""The sets that `benchmarks/spoilt.py` spoils, and what it says of them; without a network."""

import numpy as np
import pytest
import spoilt

from latte.facts import ScoreValue


@pytest.fixture
def given() -> spoilt.Dealt:
    random = np.random.default_rng(0)
    clips = random.integers(0, 256, (50, 6, 8, 8, 3), dtype=np.uint8)
    return spoilt.dealt(clips, np.arange(50) % 3, count=20)


def keys(clips: np.ndarray) -> list[bytes]:
    return [clip.tobytes() for clip in clips]


def test_the_three_parts_share_no_clip(given: spoilt.Dealt) -> None:
    parts = [keys(part) for part in (given.real, given.half, given.rest)]
    assert [len(part) for part in parts] == [20, 20, 10]
    assert len({clip for part in parts for clip in part}) == 50


def test_every_way_spoils_what_it_says_and_nothing_else(given: spoilt.Dealt) -> None:
    made = {way: spoil(given) for way, spoil in spoilt.WAYS.items()}
    for clips in made.values():
        assert (clips.shape, clips.dtype) == (given.half.shape, np.uint8)
    np.testing.assert_array_equal(made["as it is"], given.half)
    for clip, frames in zip(made["shuffle"], given.half, strict=True):
        assert sorted(keys(clip)) == sorted(keys(frames))
    assert any(keys(clip) != keys(frames) for clip, frames in zip(made["shuffle"], given.half, strict=True))
    assert all(len(set(keys(clip))) == 1 for clip in made["freeze"])
    assert len(set(keys(made["mode collapse"]))) == spoilt.KEPT_CLIPS
    wrong = given.half_classes == 0
    np.testing.assert_array_equal(made["wrong class"][~wrong], given.half[~wrong])
    others = set(keys(given.rest[given.rest_classes != 0]))
    assert set(keys(made["wrong class"][wrong])) <= others
    before, noisy, soft = (made[way].astype(float) for way in ("as it is", "noise", "blur"))
    assert np.abs(noisy - before).mean() == pytest.approx(spoilt.NOISE * (2 / np.pi) ** 0.5, rel=0.15)
    assert np.abs(np.diff(soft, axis=3)).mean() < 0.5 * np.abs(np.diff(before, axis=3)).mean()


def test_a_metric_sees_what_lies_above_the_interval_of_the_set_as_it_is() -> None:
    untouched = ScoreValue(value=1.0, interval_low=0.5, interval_high=1.5)
    apart, over = (ScoreValue(value=2.0, interval_low=low, interval_high=3.0) for low in (1.6, 1.4))
    assert spoilt.sees(apart, untouched)
    assert not spoilt.sees(over, untouched)
    assert not spoilt.sees(ScoreValue(value=2.0), untouched)
    ways = {**dict.fromkeys(spoilt.WAYS, over), "as it is": untouched, "blur": apart}
    line = spoilt.table({"fvd": ways}).splitlines()[2]
    assert line.count("**") == 2
    assert line.startswith("| `fvd` | 1 (0.5 to 1.5) | **2 (1.6 to 3)** |")
