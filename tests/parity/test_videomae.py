"""VideoMAE's features beside those of cd-fvd's own network, with the same random weights."""

import mindspore as ms
import numpy as np
import pytest

from latte import device
from latte.kinds import videomae
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
        from functools import partial

        import torch
        from cdfvd.third_party.VideoMAEv2.videomaev2_finetune import VisionTransformer

        # What cd-fvd's `vit_giant_patch14_224` is built from, with other sizes.
        peer = VisionTransformer(
            img_size=CONFIG.image_size,
            patch_size=CONFIG.patch_size,
            embed_dim=CONFIG.hidden_size,
            depth=CONFIG.num_hidden_layers,
            num_heads=CONFIG.num_attention_heads,
            mlp_ratio=CONFIG.intermediate_size / CONFIG.hidden_size,
            qkv_bias=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_classes=CONFIG.num_classes,
            all_frames=CONFIG.num_frames,
            tubelet_size=CONFIG.tubelet_size,
            use_mean_pooling=True,
        ).eval()
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


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="VideoMAE takes"):
        VideoMAE(CONFIG).features(ms.Tensor(np.zeros((1, 3, 16, 56, 42), np.float32)))
