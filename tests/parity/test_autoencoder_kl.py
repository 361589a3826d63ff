import json

import mindspore as ms
import numpy as np
import pytest

from latte import device
from latte.errors import UserError
from latte.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, decode_in_chunks, encode_in_chunks
from latte.operators import toom
from tests import peers

SMALL = AutoencoderKLConfig(block_out_channels=(8, 16, 24), layers_per_block=1, norm_num_groups=4, latent_channels=3)
PUBLISHED = AutoencoderKLConfig()


@pytest.fixture(scope="module", autouse=True)
def _device():
    device.setup(seed=0)


def published_net(config):
    from diffusers import AutoencoderKL as PublishedAutoencoderKL

    values = {key: value for key, value in config.to_published().items() if not key.startswith("_")}
    return PublishedAutoencoderKL(**values).eval()


def with_weights(config, weights):
    net = AutoencoderKL(config)
    params = dict(net.parameters_and_names())
    assert {name: tuple(param.shape) for name, param in params.items()} == {
        name: value.shape for name, value in weights.items()
    }
    for name, value in weights.items():
        params[name].set_data(ms.Tensor(value))
    return net


def check(name, config, size, batch):
    shapes = peers.shapes(f"{name}-shapes", lambda: published_net(config).state_dict())
    weights = peers.weights(shapes, seed=0)
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (batch, 3, size, size)).astype(np.float32)
    z = rng.standard_normal((batch, config.latent_channels, size // config.downsampling, size // config.downsampling))
    z = z.astype(np.float32)

    def ask():
        import torch

        published = published_net(config)
        published.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        with torch.no_grad():
            posterior = published.encode(torch.from_numpy(x)).latent_dist
            image = published.decode(torch.from_numpy(z)).sample.numpy()
        return {"mean": posterior.mean.numpy(), "logvar": posterior.logvar.numpy(), "image": image}

    theirs = peers.answer(name, ask)
    net = with_weights(config, weights)
    ours = dict(zip(("mean", "logvar"), net.encode(ms.Tensor(x)), strict=True)) | {"image": net.decode(ms.Tensor(z))}
    for key, expected in theirs.items():
        found = expected.same_places(ours[key].asnumpy())
        assert expected.values.std() > 0.01, key
        np.testing.assert_allclose(found, expected.values, atol=1e-4, rtol=0, err_msg=key)


@pytest.mark.peers
def test_small_network_gives_the_published_outputs():
    check("autoencoder-small", SMALL, size=32, batch=3)


@pytest.mark.peers
def test_sd_vae_gives_the_published_outputs():
    check("autoencoder-sd", PUBLISHED, size=64, batch=1)


def test_log_variance_is_clamped_as_published():
    net = AutoencoderKL(SMALL)
    bias = net.quant_conv.bias
    bias.set_data(ms.Tensor(np.array([0.0] * SMALL.latent_channels + [100.0, -100.0, 0.0], np.float32)))
    _, logvar = net.encode(ms.ops.zeros((1, 3, 8, 8), ms.float32))
    assert float(logvar[:, 0].max()) == 20.0
    assert float(logvar[:, 1].min()) == -30.0


def test_chunks_give_what_one_pass_gives():
    net = AutoencoderKL(SMALL)
    x = np.random.default_rng(2).uniform(-1, 1, (5, 3, 16, 16)).astype(np.float32)
    whole, _ = net.encode(ms.Tensor(x))
    mean, logvar = encode_in_chunks(net, x, 2)
    assert mean.shape == logvar.shape == (5, 3, 4, 4)
    np.testing.assert_allclose(mean, whole.asnumpy(), atol=1e-5)
    images = decode_in_chunks(net, mean, 2)
    np.testing.assert_allclose(images, net.decode(whole).asnumpy(), atol=1e-5)


def test_same_seed_same_weights():
    def weights(seed):
        device.setup(seed=seed)
        return AutoencoderKL(SMALL).decoder.conv_in.weight.asnumpy()

    assert np.array_equal(weights(3), weights(3))
    assert not np.array_equal(weights(3), weights(4))


def test_shapes_that_do_not_fit_are_refused():
    net = AutoencoderKL(SMALL)
    for shape in [(1, 3, 18, 16), (1, 4, 16, 16), (3, 16, 16)]:
        with pytest.raises(UserError, match="do not fit"):
            net.encode(ms.ops.zeros(shape, ms.float32))
    with pytest.raises(UserError, match="latents"):
        net.decode(ms.ops.zeros((1, 4, 4, 4), ms.float32))


def test_published_config_is_read_and_written_back(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**PUBLISHED.to_published(), "_diffusers_version": "0.4.2", "sample_size": 256}))
    config = AutoencoderKLConfig.from_json(path)
    assert config == AutoencoderKLConfig(sample_size=256)
    assert config.downsampling == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "relu"}, "act_fn: only 'silu'"),
        ({"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]}, "up_block_types: only"),
        ({"down_block_types": [["DownEncoderBlock2D"]]}, "down_block_types: only"),
        ({"sample_size": [256, "large"]}, "sample_size: Input should be a valid integer"),
        ({"shift_factor": 0.1}, "shift_factor: only None"),
        ({"norm_groups": 8}, "unknown key norm_groups"),
        ({"norm_num_groups": 24}, "cannot be split"),
        ({"block_out_channels": []}, "block_out_channels"),
        ({"scaling_factor": 0}, "scaling_factor"),
    ],
)
def test_configs_of_other_networks_are_refused(tmp_path, change, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**PUBLISHED.to_published(), **change}))
    with pytest.raises(UserError, match=message):
        AutoencoderKLConfig.from_json(path)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_file_that_is_no_config_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        AutoencoderKLConfig.from_json(path)
    with pytest.raises(UserError, match="No such file"):
        AutoencoderKLConfig.from_json(tmp_path / "missing.json")


@pytest.mark.parametrize(("channels_in", "channels_out", "height", "width"), [(128, 128, 8, 5), (130, 128, 4, 16)])
def test_a_convolution_by_fewer_products_is_a_convolution(channels_in, channels_out, height, width):
    rng = np.random.default_rng(height)
    x = rng.standard_normal((2, channels_in, height, width)).astype(np.float32)
    weight = rng.standard_normal((channels_out, channels_in, 3, 3)).astype(np.float32) * (9 * channels_in) ** -0.5
    net = toom.Convolve3x3(channels_out)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    expected = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)  # the definition

    @ms.jit
    def compiled(x, weight):
        return net(x, weight)

    np.testing.assert_allclose(compiled(ms.Tensor(x), ms.Tensor(weight)).asnumpy(), expected, atol=3e-5, rtol=0)


def test_few_products_pay_for_many_channels_and_pixels_only():
    assert toom.worthwhile(128, 256, 1, 64, 64)
    assert toom.worthwhile(64, 128, 8, 16, 16)
    assert not toom.worthwhile(32, 128, 1, 64, 64)
    assert not toom.worthwhile(128, 128, 4, 16, 16)
    assert not toom.worthwhile(128, 128, 1, 66, 64)
