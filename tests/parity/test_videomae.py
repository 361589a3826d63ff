"""VideoMAE's features beside those of cd-fvd's own network, with the same random weights."""

import mindspore as ms
import numpy as np
import pytest

from latte import device
from latte.kinds import videomae
from latte.metrics.protocol import prepare
from latte.models.detector_configs import VideoMAEConfig
from latte.models.videomae import VideoMAE
from tests import peers

CONFIG = VideoMAEConfig(
    num_classes=5, hidden_size=48, intermediate_size=100, num_hidden_layers=3, num_attention_heads=4, image_size=56
)


@pytest.mark.peers
def test_features_and_class_scores_equal_those_of_cdfvd() -> None:
    shapes = videomae.shapes_of(CONFIG)
    weights = peers.weights(shapes, seed=3)
    clips = np.random.default_rng(7).random((2, 3, 16, 56, 56), np.float32)

    def ask() -> dict[str, np.ndarray]:
        import cdfvd_peer
        import torch

        peer = cdfvd_peer.videomae(CONFIG).eval()
        assert {name: tuple(value.shape) for name, value in peer.state_dict().items()} == shapes
        peer.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        x = torch.from_numpy(clips)
        with torch.no_grad():
            return {"features": peer.forward_features(x).numpy(), "scores": peer(x).numpy()}

    device.setup()
    net = VideoMAE(CONFIG)
    assert {param.name: tuple(param.shape) for param in net.get_parameters()} == shapes
    for param in net.get_parameters():
        param.set_data(ms.Tensor(weights[param.name]))
    theirs = peers.answer("cdfvd-videomae", ask)
    for key, features in (("features", "pool"), ("scores", "logits")):
        ours = net.detect(clips * 2 - 1, features)
        assert ours.shape == (2, 1, theirs[key].shape[1])
        assert np.abs(ours.reshape(-1) - theirs[key].values).max() <= 1e-4 * theirs[key].largest
    values = theirs["features"].values.reshape(2, -1)
    assert np.abs(values[0] - values[1]).max() > 1e-3 * theirs["features"].largest


@pytest.mark.peers
def test_frames_are_prepared_as_cdfvd_prepares_them() -> None:
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 120, 90, 3), dtype=np.uint8)

    def ask() -> np.ndarray:
        import cdfvd_peer

        return cdfvd_peer.module().preprocess_videomae(clips).numpy()  # (N, 3, F, 224, 224)

    theirs = peers.one("cdfvd-videomae-prepared", ask)
    # The network takes [0, 1]; `detect` makes that of what every detector is given.
    ours = np.stack([prepare(clip) for clip in clips]) * np.float32(0.5) + np.float32(0.5)
    assert np.abs(theirs.same_places(ours) - theirs.values).max() < 1e-4


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="VideoMAE takes"):
        VideoMAE(CONFIG).features(ms.Tensor(np.zeros((1, 3, 16, 56, 42), np.float32)))
