"""I3D against outputs of the published PyTorch code, see tests/data/i3d.npz, and against cd-fvd on the same clips."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from latte import device
from latte.kinds import i3d
from latte.metrics.protocol import prepare
from latte.models.configs import I3DConfig
from latte.models.i3d import I3D
from latte.operators.cpu_images import mixing
from tests import peers

DATA = Path(__file__).parents[1] / "data"


def published_shapes() -> dict[str, tuple[int, ...]]:
    names = json.loads((DATA / "i3d_names.json").read_text())
    return {name: tuple(shape) for name, shape in names.items() if not name.endswith("num_batches_tracked")}


def recipe_weights() -> dict[str, np.ndarray]:
    """The seeded weights that the golden outputs were computed with."""
    rng = np.random.RandomState(21)
    weights = {}
    for name, shape in sorted(published_shapes().items()):
        if name.endswith("running_var"):
            value = 0.5 + rng.random_sample(shape)
        elif name.endswith("bn.weight"):
            value = 0.8 + 0.4 * rng.random_sample(shape)
        elif len(shape) > 1:
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            value = rng.standard_normal(shape) * 0.1
        weights[name] = value.astype(np.float32)
    return weights


@pytest.fixture(scope="module")
def net() -> I3D:
    device.setup()
    net = I3D()
    weights = recipe_weights()
    for param in net.get_parameters():
        param.set_data(ms.Tensor(weights[param.name]))
    return net


def test_parameters_have_the_published_names_and_shapes(net):
    assert {param.name: tuple(param.shape) for param in net.get_parameters()} == published_shapes()


def test_logits_and_features_equal_the_published_ones(net):
    clips = (np.random.RandomState(1021).random_sample((2, 3, 16, 224, 224)) * 2 - 1).astype(np.float32)
    golden = np.load(DATA / "i3d.npz")
    features = net.features(ms.Tensor(clips)).asnumpy()
    logits = net(ms.Tensor(clips)).asnumpy()
    for ours, theirs in ((features, golden["features_T16"]), (logits, golden["logits_T16"])):
        assert ours.shape == theirs.shape
        assert ours.dtype == np.float32
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.peers
def test_scores_of_uint8_clips_equal_those_of_cdfvd(net):
    rng = np.random.default_rng(3)
    t, y, x = np.mgrid[:16, :96, :96].astype(np.float32)
    waves = [np.sin(x * a + y * b + t * c) for a, b, c in rng.uniform(-0.4, 0.4, (6, 3))]
    waves = (127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)  # (16, 96, 96, 6)
    clips = np.stack([waves[..., :3], waves[..., 3:]])  # (2, 16, 96, 96, 3)

    def ask() -> np.ndarray:
        import cdfvd_peer

        peer = cdfvd_peer.evaluator(recipe_weights(), compute_feats=True)
        peer.add_fake_stats(clips)
        return peer.fake_stats.get_all()  # (2, 400)

    ours = net(ms.Tensor(np.stack([prepare(clip) for clip in clips]))).asnumpy()
    theirs = peers.one("cdfvd-scores", ask).values.reshape(2, 400)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-3 * np.abs(theirs).max()
    assert np.abs(theirs[0] - theirs[1]).max() > 0.05 * np.abs(theirs).max()


@pytest.mark.peers
def test_a_narrow_network_is_the_one_that_was_trained_in_pytorch():
    config = I3DConfig(num_classes=5, width=0.125, image_size=64)
    rng = np.random.default_rng(4)
    weights = {
        name: (rng.random(shape) + 0.5 if name.endswith("running_var") else rng.standard_normal(shape) / 3)
        for name, shape in i3d.shapes_of(config).items()
    }
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    clips = (rng.random((2, 3, 16, 64, 64)) * 2 - 1).astype(np.float32)

    def ask() -> np.ndarray:
        import torch

        from pipelines.demo import torch_i3d

        twin = torch_i3d.TorchI3D(config).eval()
        missing = twin.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()}, strict=False)
        assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
        with torch.no_grad():
            return twin(torch.from_numpy(clips)).numpy()

    net = I3D(config)
    for param in net.get_parameters():
        param.set_data(ms.Tensor(weights[param.name]))
    ours = net(ms.Tensor(clips)).asnumpy()
    theirs = peers.one("narrow-i3d", ask).values.reshape(2, 5)
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("shape", [(1, 3, 15, 224, 224), (1, 3, 16, 128, 224), (1, 1, 16, 224, 224), (3, 16, 224, 224)])
def test_other_shapes_are_refused(net, shape):
    with pytest.raises(ValueError, match="I3D takes"):
        net.features(ms.Tensor(np.zeros(shape, np.float32)))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (7, 2)])
@pytest.mark.parametrize("num_frames", [2, 3, 4, 8, 16, 17, 32])
def test_mixing_is_a_convolution_over_time(num_frames, kernel, stride):
    rng = np.random.default_rng(num_frames)
    frames, taps = rng.standard_normal((num_frames, 5)), rng.standard_normal(kernel)
    mixed = mixing(num_frames, kernel, stride)
    groups = len(mixed.inputs) // len(mixed.taps)
    products = (mixed.inputs @ frames) * np.repeat(mixed.taps @ taps, groups)[:, None]
    ours = mixed.outputs @ products
    # TensorFlow's "same" padding: an odd missing frame goes to the end.
    missing = max((-(-num_frames // stride) - 1) * stride + kernel - num_frames, 0)
    padded = np.pad(frames, ((missing // 2, missing - missing // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=0)[::stride]  # (T', 5, kernel)
    np.testing.assert_allclose(ours, windows @ taps, atol=1e-10)
    assert len(mixed.inputs) <= kernel * max(2, len(ours))
