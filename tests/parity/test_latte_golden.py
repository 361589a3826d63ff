"""Latte and its diffusion against outputs of the published PyTorch code (tests/data, float32 on a CPU)."""

import json
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest

from latte import checkpoints, device
from latte.diffusion import Diffusion
from latte.kinds.latte import shapes_of
from latte.models.latte import Latte, LatteConfig

DATA = Path(__file__).parents[1] / "data"
CONDITIONS = {1: "none", 2: "class", 78: "text"}  # `extras` in the published code


@pytest.fixture(scope="module", params=["uncond", "class", "text"])
def golden(request):
    device.setup(seed=0)
    settings = json.loads((DATA / f"{request.param}.json").read_text())
    config = LatteConfig(condition=CONDITIONS[settings.pop("extras")], **settings)
    net = Latte(config)
    checkpoints.load(net, str(DATA / f"{request.param}.pt"))
    arrays = dict(np.load(DATA / f"{request.param}.npz"))
    cond = {}
    if config.condition == "class":
        cond["y"] = arrays["y"]
    if config.condition == "text":
        cond["text"] = arrays["text_embedding"]
    return SimpleNamespace(net=net, cond=cond, name=request.param, **arrays)


def tensors(*arrays):
    return [ms.Tensor(array) for array in arrays]


def tensor_cond(golden):
    return {name: ms.Tensor(value) for name, value in golden.cond.items()}


def test_names_and_shapes_are_the_published_ones(golden):
    published = {name: array.shape for name, array in checkpoints.read(str(DATA / f"{golden.name}.pt")).items()}
    own = {param.name: tuple(param.shape) for param in golden.net.get_parameters()}
    assert own == published == shapes_of(golden.net.config)


def test_fresh_position_features_are_the_published_ones(golden):
    fresh = Latte(golden.net.config)
    published = checkpoints.read(str(DATA / f"{golden.name}.pt"))
    for name in ("pos_embed", "temp_embed"):
        np.testing.assert_allclose(fresh.parameters_dict()[name].asnumpy(), published[name], atol=1e-6)


def test_forward(golden):
    out = golden.net(*tensors(golden.x, golden.t), **tensor_cond(golden))
    np.testing.assert_allclose(out.asnumpy(), golden.out, atol=1e-5)


def test_forward_with_cfg(golden):
    if not golden.cond:
        with pytest.raises(ValueError, match="condition"):
            Diffusion(10).sample(golden.net, golden.x, cfg_scale=7.0)
        return
    out = golden.net.forward_with_cfg(*tensors(golden.x, golden.t), **tensor_cond(golden), cfg_scale=7.0)
    np.testing.assert_allclose(out.asnumpy(), golden.out_cfg_scale_7, atol=1e-4)


def test_losses_compiled(golden):
    diffusion, net, cond = Diffusion(), golden.net, tensor_cond(golden)
    names = ("loss", "mse", "vb")

    def losses(x0, t, noise, condition):
        if net.config.condition == "class":
            terms = diffusion.training_losses(net, x0, t, noise, y=condition)
        elif net.config.condition == "text":
            terms = diffusion.training_losses(net, x0, t, noise, text=condition)
        else:
            terms = diffusion.training_losses(net, x0, t, noise)
        return terms["loss"], terms["mse"], terms["vb"]

    condition = next(iter(cond.values()), ms.Tensor(0))
    out = ms.jit(losses)(*tensors(golden.loss_x0, golden.t, golden.loss_noise), condition)
    for name, value in zip(names, out, strict=True):
        np.testing.assert_allclose(value.asnumpy(), getattr(golden, f"loss_{name}"), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_samplers(golden, method):
    diffusion = Diffusion(10)
    expected = getattr(golden, f"{method}_out")
    assert diffusion.timesteps.tolist() == getattr(golden, f"{method}_timesteps").tolist()
    out = diffusion.sample(
        golden.net, golden.x, method=method, step_noise=lambda i, shape: golden.ddpm_noise[i], **golden.cond
    )
    # Random weights blow the samples up to several hundred: 1e-6 of that is stricter than 1e-4 of one.
    assert np.abs(out - expected).max() <= 1e-6 * np.abs(expected).max()
