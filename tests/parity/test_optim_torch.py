"""The update graph against torch.optim.AdamW, clip_grad_norm_ and the published EMA rule."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from latte import device
from latte.training import optim
from tests import peers


class Net(nn.Cell):
    def __init__(self, values: list[np.ndarray]) -> None:
        super().__init__()
        self.a = ms.Parameter(ms.Tensor(values[0]), name="a")
        self.b = ms.Parameter(ms.Tensor(values[1]), name="b")


@pytest.mark.peers
@pytest.mark.parametrize(("weight_decay", "max_norm"), [(0.0, None), (0.1, None), (0.0, 0.5), (0.02, 0.1)])
def test_twenty_updates_equal_torch(weight_decay: float, max_norm: float | None) -> None:
    device.setup(seed=0)
    draw = np.random.RandomState(0)
    values = [draw.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (5,))]
    grads = [[draw.standard_normal(value.shape).astype(np.float32) for value in values] for _ in range(20)]

    def ask() -> dict[str, np.ndarray]:
        import torch

        twins = [torch.nn.Parameter(torch.tensor(value)) for value in values]
        adamw = torch.optim.AdamW(twins, lr=1e-2, weight_decay=weight_decay)
        ema = [value.copy() for value in values]
        norms = []
        for given in grads:
            for parameter, grad in zip(twins, given, strict=True):
                parameter.grad = torch.tensor(grad)
            norms.append(float(torch.nn.utils.clip_grad_norm_(twins, max_norm or 1e30)))
            adamw.step()
            ema = [0.9 * old + 0.1 * twin.detach().numpy() for old, twin in zip(ema, twins, strict=True)]
        ends = {f"parameter-{i}": twin.detach().numpy() for i, twin in enumerate(twins)}
        return {"norms": np.array(norms), **ends, **{f"average-{i}": value for i, value in enumerate(ema)}}

    theirs = peers.answer(f"adamw-{weight_decay}-{max_norm}", ask)
    state = optim.make_state(Net(values))
    update = optim.make_update(state, weight_decay)
    norms = []
    for step, given in enumerate(grads, start=1):
        for total, grad in zip(state.grads, given, strict=True):
            ops.assign(total, ms.Tensor(grad))  # a compiled graph does not see set_data
        norms.append(float(update(*optim.scalars(step, 1e-2, weight_decay, 0.9, max_norm))))
    np.testing.assert_allclose(norms, theirs["norms"].values, rtol=1e-6)
    for i, (parameter, average) in enumerate(zip(state.params, state.ema, strict=True)):
        for ours, name in ((parameter, "parameter"), (average, "average")):
            expected = theirs[f"{name}-{i}"]
            np.testing.assert_allclose(expected.same_places(ours.asnumpy()), expected.values, atol=2e-6)


def test_workers_share_the_state_evenly_and_nothing_is_left_out() -> None:
    sizes = [7, 100, 1, 60, 50, 3, 0]
    owner = optim.owners(sizes, 3)
    loads = [sum(size for size, worker in zip(sizes, owner, strict=True) if worker == rank) for rank in range(3)]
    assert loads == [100, 61, 60]
    net = Net([np.zeros(shape, np.float32) for shape in ((3, 4), (5,))])
    states = [optim.make_state(net, rank, 2) for rank in range(2)]
    assert sorted(name for state in states for name in state.averages()) == ["a", "b"]
    assert [len(state.moments()) for state in states] == [2, 2]
    assert not optim.make_state(net).sharded


def test_the_learning_rate_follows_its_schedule() -> None:
    rates = [optim.learning_rate_at(step, 1.0, "linear", 10, 110) for step in (1, 10, 60, 110)]
    assert rates == [0.1, 1.0, 0.5, 0.0]
    assert optim.learning_rate_at(60, 1.0, "cosine", 10, 110) == pytest.approx(0.5)
    assert optim.learning_rate_at(10**6, 3.0, "constant", 0, 100) == 3.0
