"""The Latte network beyond parity: presets, errors, fresh weights, gradients, guidance."""

import re

import mindspore as ms
import numpy as np
import pydantic
import pytest
from mindspore import ops

from latte import device
from latte.diffusion import Diffusion
from latte.errors import UserError
from latte.kinds.latte import KIND, num_parameters, shapes_of
from latte.models import latte as module
from latte.models import layers
from latte.models.configs import PRESETS
from latte.models.latte import Latte, LatteConfig
from latte.training import optim

TINY = {"input_size": 4, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_frames": 2, "num_classes": 3}
RNG = np.random.default_rng(0)


def normal(*shape):
    return ms.Tensor(RNG.standard_normal(shape, np.float32))


@pytest.fixture(autouse=True)
def _device():
    device.setup(seed=0)


def test_table_of_parameters_in_the_docstring():
    rows = dict(re.findall(r"^    (Latte-\S+) +([\d.]+)", module.__doc__, re.MULTILINE))
    assert set(rows) == set(PRESETS)
    assert len(PRESETS) == 12
    for name, millions in rows.items():
        assert f"{num_parameters(LatteConfig.preset(name), trained_only=True) / 1e6:.2f}" == millions, name


@pytest.mark.parametrize("condition", ["none", "class"])
def test_counting_formula_against_a_real_network(condition):
    config = LatteConfig.preset("Latte-S/2", condition=condition)
    net = Latte(config)
    assert {p.name: tuple(p.shape) for p in net.get_parameters()} == shapes_of(config)
    assert sum(p.size for p in net.get_parameters()) == num_parameters(config)
    assert sum(p.size for p in net.trainable_params()) == num_parameters(config, trained_only=True)


@pytest.mark.parametrize(("pixels", "side"), [(256, 32), (512, 64)])
def test_presets_of_256_and_512_pixels(pixels, side):
    """The autoencoder makes 8x8 pixels one latent; only the fixed position features know the size."""
    small, config = (LatteConfig.preset("Latte-XL/2", input_size=size) for size in (32, pixels // 8))
    shapes = shapes_of(config)
    assert shapes["pos_embed"] == (1, (side // 2) ** 2, 1152)
    assert {**shapes, "pos_embed": ()} == {**shapes_of(small), "pos_embed": ()}
    settings, expected = KIND.describe(shapes, {}, "file.pt")
    assert settings["input_size"] == side
    assert expected == shapes
    net = with_random_weights(Latte(LatteConfig(**{**TINY, "input_size": side, "patch_size": 8})))
    out = net(normal(1, 2, 4, side, side), ms.Tensor([3])).asnumpy()
    assert out.shape == (1, 2, 8, side, side)
    assert np.abs(out).max() > 1e-3


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"patch_size": 3}, "patch_size"),
        ({"num_heads": 3}, "num_heads"),
        ({"depth": 3}, "depth"),
        ({"mlp_ratio": 0.01}, r"mlp_ratio=0\.01: leaves"),
        ({"hidden_size": 18, "num_heads": 2}, "hidden_size"),
        ({"condition": "class", "num_classes": 0}, "num_classes"),
        ({"condition": "sound"}, "condition"),
        ({"colour": 1}, "colour"),
        ({"class_dropout_prob": 2}, "class_dropout_prob"),
    ],
)
def test_bad_values_are_named(values, key):
    with pytest.raises(pydantic.ValidationError, match=key):
        LatteConfig(**{**TINY, **values})


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(UserError, match="Latte-XL/2"):
        LatteConfig.preset("Latte-M/2")


def test_fresh_weights_follow_from_the_seed_alone():
    config = LatteConfig(**TINY, condition="class")
    first = {p.name: p.asnumpy() for p in Latte(config).get_parameters()}
    Latte(LatteConfig(**TINY))
    again = {p.name: p.asnumpy() for p in Latte(config).get_parameters()}
    assert all(np.array_equal(first[name], again[name]) for name in first)
    device.setup(seed=1)
    other = {p.name: p.asnumpy() for p in Latte(config).get_parameters()}
    assert not np.array_equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_fresh_weights_are_distributed_as_published():
    net = Latte(LatteConfig(**{**TINY, "hidden_size": 128}, condition="class"))
    weights = {p.name: p.asnumpy() for p in net.get_parameters()}
    zero = [n for n in weights if "adaLN" in n or n.startswith("final_layer.linear") or n.endswith(".bias")]
    assert all(not weights[name].any() for name in zero)
    assert weights["t_embedder.mlp.0.weight"].std() == pytest.approx(0.02, rel=0.05)
    bound = np.sqrt(6 / (128 + 3 * 128))
    assert 0.98 * bound < np.abs(weights["blocks.1.attn.qkv.weight"]).max() <= bound
    bound = np.sqrt(6 / (128 + 16))
    assert 0.9 * bound < np.abs(weights["x_embedder.proj.weight"]).max() <= bound
    out = net(normal(2, 2, 4, 4, 4), ms.Tensor([1, 2]), ms.Tensor([0, 3]))
    assert out.shape == (2, 2, 8, 4, 4)
    assert not out.asnumpy().any()


def test_guidance_on_all_channels_and_without_learned_variance():
    config = LatteConfig(**TINY, condition="class")
    net = with_random_weights(Latte(config))
    x, t, y = normal(4, 2, 4, 4, 4), ms.Tensor([5, 5, 5, 5]), ms.Tensor([0, 1, 3, 3])
    halves = ops.cat((x[:2], x[:2]))
    with_label, plain = np.split(net(halves, t, y).asnumpy(), 2)
    guided = plain + 3.0 * (with_label - plain)
    out = net.forward_with_cfg(x, t, y, cfg_scale=3.0, all_channels=True).asnumpy()
    np.testing.assert_allclose(out, np.concatenate([guided, guided]), atol=1e-5)
    published = net.forward_with_cfg(x, t, y, cfg_scale=3.0).asnumpy()
    np.testing.assert_allclose(published[:2, :, :4], guided[:, :, :4], atol=1e-5)
    np.testing.assert_allclose(published[2:, :, 4:], plain[:, :, 4:], atol=1e-5)
    fixed = with_random_weights(Latte(LatteConfig(**TINY, condition="class", learn_sigma=False)))
    assert fixed.forward_with_cfg(x, t, y, cfg_scale=3.0).shape == (4, 2, 4, 4, 4)


def test_sampling_with_guidance_doubles_the_batch_itself():
    net = with_random_weights(Latte(LatteConfig(**TINY, condition="class")))
    noise, y = RNG.standard_normal((2, 2, 4, 4, 4), np.float32), np.array([0, 2])

    def published(x, t, **cond):
        return net.forward_with_cfg(x, t, **cond)

    doubled = Diffusion(3).sample(published, np.concatenate([noise, noise]), y=np.array([0, 2, 3, 3]), cfg_scale=4.0)
    own = Diffusion(3).sample(net, noise, y=y, cfg_scale=4.0)
    np.testing.assert_allclose(own, doubled[:2], rtol=1e-4, atol=1e-4)
    assert np.abs(own - Diffusion(3).sample(net, noise, y=y)).max() > 1e-3


def with_random_weights(net):
    rng = np.random.default_rng(3)
    for param in net.trainable_params():
        param.set_data(ms.Tensor(rng.standard_normal(param.shape).astype(np.float32) * 0.1))
    return net


def plain_norm(x, shift, scale):
    centered = x - x.mean(-1, keep_dims=True)
    return centered / ops.sqrt(ops.square(centered).mean(-1, keep_dims=True) + 1e-6) * (1 + scale) + shift


def plain_gelu(x):
    return 0.5 * x * (1 + ops.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))


def plain_affine(x, weight, bias):
    return ops.matmul(x, weight.T) + bias


def plain_gate(x, y, gate):
    return x + y * gate


@pytest.mark.parametrize(
    ("layer", "plain", "shapes"),
    [
        (layers.ModulatedNorm(12), plain_norm, [(2, 5, 12), (2, 1, 12), (2, 1, 12)]),
        (layers.GeluTanh(), plain_gelu, [(3, 7)]),
        (layers.Affine(), plain_affine, [(6, 12), (4, 12), (4,)]),
        (layers.GatedAdd(), plain_gate, [(2, 5, 12), (2, 5, 12), (2, 1, 12)]),
    ],
)
def test_written_gradients_are_those_of_the_plain_formula(layer, plain, shapes):
    inputs = [normal(*shape) for shape in shapes]
    places = tuple(range(len(inputs)))

    def value(*args):
        out = layer(*args)
        return out[0] if isinstance(out, tuple) else out

    weight = normal(*value(*inputs).shape)
    np.testing.assert_allclose(value(*inputs).asnumpy(), plain(*inputs).asnumpy(), atol=1e-5)
    own = ms.grad(lambda *args: (value(*args) * weight).sum(), places)(*inputs)
    expected = ms.grad(lambda *args: (plain(*args) * weight).sum(), places)(*inputs)
    if len(inputs) == 1:
        own, expected = (own,), (expected,)
    for one, other in zip(own, expected, strict=True):
        np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), atol=1e-5)


def test_a_few_compiled_updates_lower_the_loss_of_one_batch():
    net = Latte(LatteConfig(**TINY, condition="class"))
    net.set_train(True)
    state = optim.make_state(net)
    diffusion = Diffusion()
    params, sums = state.params, state.grads
    count = len(sums)

    def loss_of(x0, t, noise, y):
        return diffusion.training_losses(net, x0, t, noise, y=y)["loss"].mean()

    grad_of = ops.value_and_grad(loss_of, None, params)

    @ms.jit
    def accumulate(x0, t, noise, y):
        loss, grads = grad_of(x0, t, noise, y)
        for i in range(count):
            loss = ops.depend(loss, ops.assign(sums[i], grads[i]))
        return loss

    update = optim.make_update(state, 0.0)
    batch = normal(4, 2, 4, 4, 4), ms.Tensor([0, 10, 500, 999]), normal(4, 2, 4, 4, 4), ms.Tensor([0, 1, 2, 3])
    losses = []
    for step in range(1, 41):
        losses.append(float(accumulate(*batch)))
        update(*optim.scalars(step, 5e-3, 0.0, 0.99, None))
    assert losses[-1] < 0.8 * losses[0]
    assert not np.array_equal(state.ema[0].asnumpy(), params[0].asnumpy())
