"""Inception v3 against outputs of the published PyTorch code, tests/data/inception.npz.

Those were computed with weights by `latte.kinds.inception.random_weights(5)` on images of 107 pixels: of the form
`fid` by pytorch-fid 0.3.0 (pooled features of images in [0, 1], its own scaling), of the form `torchvision` by
torchvision 0.28.0 (class scores); both loaded every tensor by its name.
"""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from latte import device
from latte.kinds import inception
from latte.models.detector_configs import InceptionConfig
from latte.models.inception import Inception

GOLDEN = Path(__file__).parents[1] / "data" / "inception.npz"
SIZE = 107
IMAGES = np.random.RandomState(6).random_sample((2, 3, SIZE, SIZE)).astype(np.float32)


def built(config: InceptionConfig) -> Inception:
    device.setup()
    net, weights = Inception(config), inception.random_weights(5, config)
    assert {param.name: tuple(param.shape) for param in net.get_parameters()} == inception.shapes_of(config)
    for param in net.get_parameters():
        param.set_data(ms.Tensor(weights[param.name]))
    return net


@pytest.mark.parametrize("form", ["fid", "torchvision"])
def test_features_and_class_scores_equal_the_published_ones(form: str) -> None:
    net = built(InceptionConfig(form=form, num_classes=1008 if form == "fid" else 1000, image_size=SIZE))
    golden = np.load(GOLDEN)[form]
    clips = np.stack([2 * IMAGES - 1] * 2, axis=2)  # (2, 3, 2, S, S): every frame twice
    ours = net.detect(clips, "pool" if form == "fid" else "logits")  # (2, 2, D)
    assert ours.shape == (2, 2, golden.shape[1])
    assert ours.dtype == np.float32
    for frame in range(2):
        assert np.abs(ours[:, frame] - golden).max() <= 1e-4 * np.abs(golden).max()
    assert np.abs(golden[0] - golden[1]).max() > 1e-2 * np.abs(golden).max()


def test_other_shapes_are_refused() -> None:
    config = InceptionConfig(width=0.125, image_size=SIZE)
    with pytest.raises(ValueError, match="Inception takes"):
        Inception(config).features(ms.Tensor(np.zeros((1, 3, SIZE, SIZE + 1), np.float32)))
