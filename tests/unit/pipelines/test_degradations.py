"""What the demo's detector is taught to see."""

import numpy as np
import pytest

from latte import rng
from pipelines.demo import degradations

CLIP = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)


@pytest.mark.parametrize("kind", degradations.OF_FRAMES)
def test_each_kind_follows_from_its_generator_and_changes_the_clip(kind: str) -> None:
    made = [degradations.OF_FRAMES[kind](CLIP, rng.stream(seed, kind)) for seed in (0, 0, 1)]
    assert made[0].shape == CLIP.shape
    assert made[0].dtype == np.uint8
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
    assert not np.array_equal(made[0], CLIP)


def test_shuffling_keeps_the_frames_and_scrambling_their_pixels() -> None:
    shuffled = degradations.shuffled(CLIP, rng.stream(0, "shuffled"))
    assert sorted(frame.tobytes() for frame in shuffled) == sorted(frame.tobytes() for frame in CLIP)
    scrambled = degradations.scrambled(CLIP, rng.stream(0, "scrambled"))
    for before, after in zip(CLIP, scrambled, strict=True):
        np.testing.assert_array_equal(np.sort(before.reshape(-1, 3), axis=0), np.sort(after.reshape(-1, 3), axis=0))


def test_a_frozen_clip_is_one_frame_and_a_blurred_one_has_less_detail() -> None:
    frozen = degradations.frozen(CLIP, rng.stream(0, "frozen"))
    assert (frozen == frozen[0]).all()
    blurred = degradations.blurred(CLIP, rng.stream(0, "blurred"))
    assert blurred.std() < CLIP.std() / 2


def test_spoilt_latents_lie_between_the_clip_and_others() -> None:
    random = np.random.default_rng(0)
    latents, others = (random.standard_normal(shape, np.float32) for shape in ((16, 4, 8, 8), (3, 16, 4, 8, 8)))
    for seed in range(8):
        made = degradations.mushy(latents, others, rng.stream(seed, "mushy"))
        assert made.shape == latents.shape
        assert made.dtype == np.float32
        assert np.isfinite(made).all()
        assert not np.array_equal(made, latents)
