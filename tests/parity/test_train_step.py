"""One training step against the published code's losses and torch.optim.AdamW on the same gradients."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch

from latte import checkpoints, device, optim
from latte.diffusion import Diffusion
from latte.models.latte import Latte, LatteConfig
from latte.training_loop import make_accumulate

DATA = Path(__file__).parents[1] / "data"


def golden_network(name: str) -> Latte:
    """The tiny network of the golden files, with their weights."""
    settings = json.loads((DATA / f"{name}.json").read_text())
    condition = {1: "none", 2: "class"}[settings.pop("extras")]
    device.setup(seed=0)
    net = Latte(LatteConfig(condition=condition, **settings))
    net.set_train(True)
    checkpoints.load(net, str(DATA / f"{name}.pt"))
    return net


def test_a_step_in_two_parts_has_the_golden_loss_and_is_torchs_adamw() -> None:
    parts = 2
    net = golden_network("class")
    golden = np.load(DATA / "class.npz")
    batch = (golden["loss_x0"], golden["t"].astype(np.int32), golden["loss_noise"], golden["y"].astype(np.int32))
    state = optim.make_state(net)
    accumulate = make_accumulate(net, Diffusion(), state, parts)
    size = len(batch[0]) // parts
    losses = []
    for part in range(parts):
        arrays = [array[part * size : (part + 1) * size] for array in batch]
        scalars = (np.float32(part > 0), np.float32(1.0))
        losses.append([float(value) for value in accumulate(*(ms.Tensor(array) for array in (*arrays, *scalars)))])
    expected = [float(golden[f"loss_{key}"].mean()) for key in ("loss", "mse", "vb")]
    np.testing.assert_allclose(np.mean(losses, axis=0), expected, rtol=1e-4, atol=1e-5)

    twins = [torch.nn.Parameter(torch.tensor(param.asnumpy().copy())) for param in state.params]
    for twin, grad in zip(twins, state.grads, strict=True):
        twin.grad = torch.tensor(grad.asnumpy().copy())
    adamw = torch.optim.AdamW(twins, lr=1e-3, weight_decay=0.05)
    norm = torch.nn.utils.clip_grad_norm_(twins, 0.1)
    adamw.step()
    update = optim.make_update(state, 0.05)
    assert update(*optim.scalars(1, 1e-3, 0.05, 0.99, 0.1)) == pytest.approx(float(norm), rel=1e-5)
    for param, twin in zip(state.params, twins, strict=True):
        np.testing.assert_allclose(param.asnumpy(), twin.detach().numpy(), atol=1e-5, err_msg=param.name)


def test_a_scaled_loss_gives_the_same_step_and_an_overflow_gives_none() -> None:
    weights = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    ends = []
    for scale in (1.0, 1024.0):
        net = ms.nn.Dense(4, 3, has_bias=False)
        net.weight.set_data(ms.Tensor(weights))
        state = optim.make_state(net)
        grad = weights[::-1] * 0.3 * np.float32(scale)
        ms.ops.assign(state.grads[0], ms.Tensor(np.ascontiguousarray(grad)))
        update = optim.make_update(state, 0.0)
        update(*optim.scalars(1, 1e-2, 0.0, 0.9, 0.1), loss_scale=scale)
        ends.append(state.params[0].asnumpy().copy())
        ms.ops.assign(state.grads[0], ms.Tensor(np.full((3, 4), np.inf, np.float32)))
        assert not np.isfinite(update(*optim.scalars(2, 1e-2, 0.0, 0.9, 0.1), loss_scale=scale))
        np.testing.assert_array_equal(state.params[0].asnumpy(), ends[-1])
        assert not state.grads[0].asnumpy().any(), "nothing infinite is left for the next step"
    np.testing.assert_allclose(*ends, atol=1e-7)


def test_the_loss_scale_halves_on_overflow_and_doubles_after_calm() -> None:
    scale = optim.LossScale(value=8.0)
    scale.note(finite=False)
    assert (scale.value, scale.skipped, scale.good_steps) == (4.0, 1, 0)
    for _ in range(2000):
        scale.note(finite=True)
    assert (scale.value, scale.good_steps) == (8.0, 0)
