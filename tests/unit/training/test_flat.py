import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from latte import operators
from latte.diffusion import Diffusion
from latte.models.configs import LatteConfig
from latte.models.latte import Latte
from latte.training import flat, optim
from latte.training.graph import make_accumulate

SHAPES = {"a": (3, 4), "b": (5,), "c": (2, 2, 2)}


class Net(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        for name, shape in SHAPES.items():
            values = rng.standard_normal(shape, np.float32)
            setattr(self, name, ms.Parameter(ms.Tensor(values), name=name))


def gradients(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step + 1)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


def end_to_end(state: flat.FlatState, grads: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([grads[name].reshape(-1) for name in state.names])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_one_flat_tensor_is_updated_like_many(weight_decay: float) -> None:
    one, many = Net(), Net()
    flat_state, state = flat.make_state(one), optim.make_state(many)
    updates = flat.make_update(flat_state, weight_decay), optim.make_update(state, weight_decay)
    for step in range(3):
        grads = gradients(step)
        ms.ops.assign(flat_state.grads, ms.Tensor(end_to_end(flat_state, grads)))
        for param, total in zip(state.params, state.grads, strict=True):
            ms.ops.assign(total, ms.Tensor(grads[param.name]))
        numbers = (step + 1, 1e-2, weight_decay, 0.9, 0.5)
        norms = (
            updates[0](*flat.scalars(*numbers), loss_scale=2.0),
            updates[1](*optim.scalars(*numbers), loss_scale=2.0),
        )
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    gather = flat.make_gather(flat_state)
    averages = {name: tensor.asnumpy() for name, tensor in state.averages().items()}
    for name, param in many.parameters_dict().items():
        np.testing.assert_allclose(one.parameters_dict()[name].asnumpy(), param.asnumpy(), rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(gather(flat_state.ema)[name], averages[name], rtol=2e-6, atol=1e-7)


def test_weights_in_half_precision_follow_float32_ones() -> None:
    net, plain = Net(), Net()
    state = flat.make_state(net)
    for param in net.trainable_params():
        param.set_dtype(ms.float16)
    update = flat.make_update(state, 0.0)
    for _ in range(50):  # each step is below float16's resolution around 1
        ms.ops.assign(state.grads, ms.Tensor(np.ones(state.grads.shape, np.float32)))
        update(*flat.scalars(1, 1e-5, 0.0, 0.9, None))
    moved = flat.weights(net, state, flat.make_gather(state))
    for name, param in net.parameters_dict().items():
        assert param.dtype == ms.float16
        assert moved[name].dtype == np.float32
        np.testing.assert_array_equal(param.asnumpy(), moved[name].astype(np.float16))
        start = plain.parameters_dict()[name].asnumpy()
        assert np.all(start - moved[name] > 1e-4), "what is smaller than float16's step adds up"


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    net = Net()
    state = flat.make_state(net)
    before = state.weights.asnumpy().copy()
    ms.ops.assign(state.grads, ms.Tensor(np.full(state.grads.shape, np.inf, np.float32)))
    assert not np.isfinite(flat.make_update(state, 0.1)(*flat.scalars(1, 1e-2, 0.1, 0.9, 1.0)))
    np.testing.assert_array_equal(state.weights.asnumpy(), before)
    assert not state.grads.asnumpy().any(), "nothing infinite is left for the next step"


def test_what_a_checkpoint_holds_is_taken_back() -> None:
    state = flat.make_state(Net())
    values = gradients(7)
    state.restore("model", values)
    state.restore("ema", values)
    state.restore(
        "optimizer", {f"{kind}.{name}": v for kind in ("exp_avg", "exp_avg_sq") for name, v in values.items()}
    )
    gather = flat.make_gather(state)
    for part in (state.weights, state.ema, state.exp_avg, state.exp_avg_sq):
        for name, value in gather(part).items():
            np.testing.assert_array_equal(value, values[name])


def test_the_parts_of_workers_make_the_whole() -> None:
    states = [flat.make_state(Net(), rank, 2) for rank in range(2)]
    assert states[0].names == states[1].names
    assert [state.parts[state.rank][1] for state in states] == [state.weights.size for state in states]
    whole = np.concatenate([state.weights.asnumpy() for state in states])
    values = {name: param.asnumpy() for name, param in Net().parameters_dict().items()}
    np.testing.assert_array_equal(whole, end_to_end(states[0], values))


def test_gradients_end_to_end_are_those_of_many_tensors() -> None:
    sizes = {"input_size": 4, "hidden_size": 16, "num_heads": 2, "depth": 2, "num_frames": 2}
    net = Latte(LatteConfig(**sizes, num_classes=2, condition="class"))
    rng = np.random.default_rng(0)
    for param in net.trainable_params():
        param.set_data(ms.Tensor(rng.standard_normal(param.shape, np.float32) * np.float32(0.1)))
    flat_state, state = flat.make_state(net), optim.make_state(net)
    fronts = [make_accumulate(net, Diffusion(), kind, 2) for kind in (flat_state, state)]
    x, noise = rng.standard_normal((2, 2, 2, 4, 4, 4), np.float32)
    for part in range(2):
        arrays = (x, np.array([0, 500 + part], np.int32), noise, np.array([0, 2], np.int32), np.float32(part))
        losses = [front(*map(ms.Tensor, arrays), ms.Tensor(1.0, ms.float32)) for front in fronts]
        assert [float(loss) for loss in losses[0]] == pytest.approx([float(loss) for loss in losses[1]], rel=1e-6)
    expected = {param.name: total.asnumpy() for param, total in zip(state.params, state.grads, strict=True)}
    np.testing.assert_allclose(flat_state.grads.asnumpy(), end_to_end(flat_state, expected), rtol=1e-5, atol=1e-7)


def test_the_operators_of_both_devices_have_the_same_names() -> None:
    from latte.operators import cpu, cpu_images

    assert all(hasattr(cpu, name) or hasattr(cpu_images, name) for name in operators.__all__)
