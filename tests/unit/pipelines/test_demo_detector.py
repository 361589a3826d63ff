"""The demo's detector: its weights are those of its card, and its distances agree with the eye."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from latte import rng
from latte.kinds import i3d
from latte.models.configs import I3DConfig
from pipelines.demo import degradations, train_detector
from tests import soak

FOLDER = Path(__file__).parents[3] / "configs" / "demo" / "detector"
WEIGHTS = FOLDER / "i3d.safetensors"


@pytest.fixture(scope="module")
def net() -> Any:
    return train_detector.detector(load_file(WEIGHTS))


def table(heading: str) -> dict[str, float]:
    """A table of the card."""
    text = (FOLDER / "README.md").read_text().split(heading)[1].split("\n\n")[0]
    return {
        name: float(value) for name, value in re.findall(r"^\| ([a-z ]+) \| ([\d.]+)(?: %)? \|$", text, re.MULTILINE)
    }


def test_weights_are_small_and_of_the_layout_of_i3d() -> None:
    assert WEIGHTS.stat().st_size <= 2**20
    found = {name: value.shape for name, value in load_file(WEIGHTS).items()}
    told, shapes = i3d.KIND.describe(found, {"image_size": 64}, str(WEIGHTS))
    assert found == shapes
    assert I3DConfig(**told) == train_detector.CONFIG


if soak.FULL:

    @pytest.mark.soak
    def test_the_card_states_what_is_measured() -> None:
        figures = train_detector.evaluate(load_file(WEIGHTS), *train_detector.load_clips(0), seed=0)
        accuracy, distances = table("| kind | told right |\n|---|---|\n"), table("| kind | distance |\n|---|---|\n")
        assert {kind: 100 * value for kind, value in figures["kind_accuracy"].items()} == pytest.approx(
            accuracy, abs=1.5
        )
        assert figures["distances"] == pytest.approx(distances, rel=0.02, abs=0.05)
        assert figures["class_accuracy"] > 0.9


def test_clips_that_were_held_out_are_of_their_class_and_the_spoilt_ones_are_told(net: Any) -> None:
    clips, labels = train_detector.real_clips(held_out=True)
    rows = train_detector.features(net, clips)
    classes = len(train_detector.CLASSES)
    assert np.mean(rows[:, :classes].argmax(1) == labels) > 0.9
    for kind in ("blurred", "frozen", "scrambled"):
        random = rng.stream(0, "spoilt", kind)
        spoilt = np.stack([degradations.OF_FRAMES[kind](clip, random) for clip in clips])
        told = train_detector.features(net, spoilt)[:, classes:].argmax(1)
        assert np.mean(told == degradations.KINDS.index(kind)) > 0.8, kind


def test_more_blur_and_more_noise_are_farther_from_real(net: Any) -> None:
    from scipy.ndimage import gaussian_filter

    real = train_detector.real_clips(held_out=False)[0][::3]
    at = train_detector.features(net, real)
    random = rng.stream(0, "noise")

    def blurred(sigma: float) -> np.ndarray:
        return degradations._to_bytes(gaussian_filter(real.astype(np.float32), (0, 0, sigma, sigma, 0)))

    def noisy(level: float) -> np.ndarray:
        return degradations._to_bytes(real + level * random.standard_normal(real.shape, np.float32))

    for worse, strengths in ((blurred, (0.6, 1.5, 4.0)), (noisy, (4, 16, 64))):
        distances = [train_detector.distance(train_detector.features(net, worse(by)), at) for by in strengths]
        assert distances == sorted(distances), (worse.__name__, distances)
