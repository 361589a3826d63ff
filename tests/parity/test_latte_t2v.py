"""The text-to-video Latte beside diffusers' LatteTransformer3DModel, on random weights."""

import mindspore as ms
import numpy as np
import pytest

from latte import device
from latte.models.latte_t2v import LatteT2V
from latte.models.t2v_configs import LatteT2VConfig
from tests import peers

SMALL = LatteT2VConfig(
    num_attention_heads=3, attention_head_dim=8, num_layers=2, sample_size=8, caption_channels=20, video_length=4
)
LARGE_FRAMES = LatteT2VConfig(
    num_attention_heads=2, attention_head_dim=12, num_layers=1, sample_size=128, patch_size=8, caption_channels=8,
    video_length=2, out_channels=4,
)  # fmt: skip
PUBLISHED = LatteT2VConfig(num_layers=1, sample_size=8, video_length=2)
TOKENS = 10


@pytest.fixture(scope="module", autouse=True)
def _device():
    device.setup(seed=0)


def published_net(config):
    from diffusers import LatteTransformer3DModel

    fixed = {"norm_type": "ada_norm_single", "activation_fn": "gelu-approximate", "attention_bias": True}
    fixed |= {"norm_elementwise_affine": False, "norm_eps": 1e-6, "num_embeds_ada_norm": 1000}
    fixed["cross_attention_dim"] = config.hidden_size
    return LatteTransformer3DModel(**config.model_dump(), **fixed).eval()


def shapes_of(name, config):
    return peers.shapes(f"{name}-shapes", lambda: published_net(config).state_dict())


def inputs(config, frames, batch=2, tokens=TOKENS):
    rng = np.random.default_rng(frames)
    side = config.sample_size
    x = rng.standard_normal((batch, frames, config.in_channels, side, side)).astype(np.float32)
    text = rng.standard_normal((batch, tokens, config.caption_channels)).astype(np.float32)
    mask = (np.arange(tokens) < np.array([[3], [tokens], [1]][:batch])).astype(np.float32)  # (N, S)
    return x, np.array([999, 20, 500], np.int32)[:batch], text, mask


def with_weights(config, weights):
    net = LatteT2V(config)
    params = dict(net.parameters_and_names())
    assert {name: tuple(param.shape) for name, param in params.items()} == {k: v.shape for k, v in weights.items()}
    for name, value in weights.items():
        params[name].set_data(ms.Tensor(value))
    return net


def check(name, config, frames):
    weights = peers.weights(shapes_of(name, config), seed=0)
    x, t, text, mask = inputs(config, frames)

    def ask():
        import torch

        net = published_net(config)
        net.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
        bias = torch.from_numpy((1 - mask) * np.float32(-1e4))[:, None].repeat_interleave(frames, dim=0)  # (N F, 1, S)
        with torch.no_grad():
            out = net(
                torch.from_numpy(x.transpose(0, 2, 1, 3, 4)), torch.from_numpy(t), torch.from_numpy(text), bias
            ).sample  # (N, C, F, h, w)
        return out.numpy().transpose(0, 2, 1, 3, 4)

    expected = peers.one(f"{name}-{frames}", ask)
    net = with_weights(config, weights)
    found = expected.same_places(net(*map(ms.Tensor, (x, t, text, mask))).asnumpy())
    assert expected.values.std() > 0.3
    np.testing.assert_allclose(found, expected.values, atol=1e-4, rtol=0)


@pytest.mark.peers
@pytest.mark.parametrize("frames", [4, 1])
def test_a_video_and_an_image_are_denoised_as_published(frames):
    check("latte-t2v-small", SMALL, frames)


@pytest.mark.peers
def test_positions_of_large_frames_and_outputs_without_variance_are_the_published_ones():
    check("latte-t2v-large-frames", LARGE_FRAMES, 2)


@pytest.mark.peers
def test_one_pair_of_blocks_of_the_published_width():
    check("latte-t2v-published", PUBLISHED, 2)


def test_a_caption_that_is_masked_is_the_caption_cut_off():
    """What the published pipeline does with one caption: it cuts the embedding where the caption ends."""
    net = with_weights(SMALL, peers.weights(shapes_of("latte-t2v-small", SMALL), seed=1))
    x, t, text, mask = inputs(SMALL, 4, batch=3)
    whole = net(*map(ms.Tensor, (x, t, text, mask))).asnumpy()
    changed = np.where(mask[..., None] > 0, text, 7.0).astype(np.float32)
    np.testing.assert_array_equal(net(*map(ms.Tensor, (x, t, changed, mask))).asnumpy(), whole)
    for i, length in enumerate((3, TOKENS, 1)):
        cut = net(*(ms.Tensor(each[i : i + 1]) for each in (x, t, text[:, :length], mask[:, :length])))
        np.testing.assert_allclose(cut.asnumpy(), whole[i : i + 1], atol=1e-5, rtol=0)


def test_guidance_moves_away_from_the_empty_caption_on_the_channels_that_are_asked_for():
    net = with_weights(SMALL, peers.weights(shapes_of("latte-t2v-small", SMALL), seed=1))
    x, _, text, mask = inputs(SMALL, 4)
    args = [np.concatenate([x[:1], x[1:]]), np.full(2, 20, np.int32), text, np.concatenate([mask[:1]] * 2)]
    same = [np.concatenate([x[:1], x[:1]]), *args[1:]]
    plain = net(*map(ms.Tensor, same)).asnumpy()
    guided = plain[1] + 7.5 * (plain[0] - plain[1])
    for all_channels in (True, False):
        out = net.forward_with_cfg(*map(ms.Tensor, args), cfg_scale=7.5, all_channels=all_channels).asnumpy()
        count = 8 if all_channels else 4
        for half in range(2):
            np.testing.assert_allclose(out[half][:, :count], guided[:, :count], atol=1e-4)
            np.testing.assert_allclose(out[half][:, count:], plain[half][:, count:], atol=1e-5)
