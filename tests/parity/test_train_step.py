"""One training step against the published code's losses and torch.optim.AdamW on the same gradients."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from latte import checkpoints, device
from latte.diffusion import Diffusion
from latte.models.latte import Latte, LatteConfig
from latte.training import optim
from latte.training.loop import make_accumulate
from tests import peers

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


@pytest.mark.peers
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

    # From here on seeded gradients of the same shapes: those of two machines differ in their last bits.
    draw = np.random.default_rng(5)
    before = [param.asnumpy().copy() for param in state.params]
    grads = [draw.standard_normal(value.shape, np.float32) for value in before]

    def ask() -> dict[str, np.ndarray]:
        import torch

        twins = [torch.nn.Parameter(torch.tensor(value)) for value in before]
        for twin, grad in zip(twins, grads, strict=True):
            twin.grad = torch.tensor(grad)
        adamw = torch.optim.AdamW(twins, lr=1e-3, weight_decay=0.05)
        norm = torch.nn.utils.clip_grad_norm_(twins, 0.1)
        adamw.step()
        ends = np.concatenate([twin.detach().numpy().reshape(-1) for twin in twins])
        return {"norm": np.array(float(norm)), "ends": ends}

    theirs = peers.answer("adamw-step", ask)
    for total, grad in zip(state.grads, grads, strict=True):
        ms.ops.assign(total, ms.Tensor(grad))
    update = optim.make_update(state, 0.05)
    norm = float(update(*optim.scalars(1, 1e-3, 0.05, 0.99, 0.1)))
    assert norm == pytest.approx(float(theirs["norm"].values[0]), rel=1e-5)
    ends = np.concatenate([param.asnumpy().reshape(-1) for param in state.params])
    np.testing.assert_allclose(theirs["ends"].same_places(ends), theirs["ends"].values, atol=1e-5)


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
