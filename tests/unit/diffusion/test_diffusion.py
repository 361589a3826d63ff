"""Noise schedules, respacing, the hybrid loss and the samplers on models whose answer is known."""

from itertools import pairwise

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import nn, ops

from latte.diffusion import METHODS, Diffusion
from latte.diffusion.schedule import betas_of, make_schedule
from latte.models.configs import LatteConfig
from latte.spacing import respaced


def test_linear_betas_keep_their_total_when_steps_change():
    assert betas_of("linear")[[0, -1]].tolist() == [1e-4, 0.02]
    assert betas_of("linear", 100).sum() == pytest.approx(betas_of("linear").sum())


def test_cosine_betas_follow_their_curve():
    kept = np.cumprod(1 - betas_of("cosine"))
    curve = np.cos((np.arange(1, 1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    curve /= np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(kept[:990], curve[:990], rtol=1e-9)
    assert betas_of("cosine").max() == 0.999


@given(st.integers(1, 1000))
def test_a_count_takes_that_many_steps_from_first_to_last(count):
    steps = respaced(1000, count)
    assert len(steps) == count
    assert (np.diff(steps) > 0).all()
    assert steps[0] == 0
    assert count == 1 or steps[-1] == 999
    assert steps.tolist() == respaced(1000, str(count)).tolist()


@given(st.integers(1, 499))
def test_ddim_spacing_has_one_stride_or_is_refused(count):
    possible = {len(range(0, 1000, stride)): stride for stride in range(999, 0, -1)}
    if count in possible:
        steps = respaced(1000, f"ddim{count}")
        assert len(steps) == count
        assert count == 1 or set(np.diff(steps)) == {possible[count]}
    else:
        with pytest.raises(ValueError, match=f"ddim{count}"):
            respaced(1000, f"ddim{count}")


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_sections_take_their_steps_from_equal_parts(counts):
    steps = respaced(1000, ",".join(map(str, counts)))
    sizes = [1000 // len(counts) + (i < 1000 % len(counts)) for i in range(len(counts))]
    ends = np.cumsum([0, *sizes])
    taken = np.histogram(steps, bins=ends)[0] if len(counts) > 1 else [len(steps)]
    assert list(taken) == counts


def test_known_respacings():
    assert respaced(1000, "10").tolist() == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert respaced(1000, "ddim5").tolist() == [0, 200, 400, 600, 800]
    # improved-diffusion's own example: 300 steps in three sections
    assert respaced(300, "10,15,20").tolist()[:11] == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99, 100]


@pytest.mark.parametrize("spacing", [0, -1, 1001, "x", "10,,2", "ddim", "ddimx", "ddim0", "600,10", "ddim501", "",
                                     "1_0", "+5", "٢", "9" * 5000])  # fmt: skip
def test_bad_spacing_is_named(spacing):
    with pytest.raises(ValueError, match="num_sampling_steps"):
        Diffusion(spacing)


def test_bad_schedule_and_method_are_named():
    with pytest.raises(ValueError, match="sigmoid"):
        Diffusion(noise_schedule="sigmoid")
    with pytest.raises(ValueError, match="euler"):
        Diffusion(5).sample(lambda x, t: x, np.zeros((1, 1, 1, 2, 2)), method="euler")
    with pytest.raises(ValueError, match="step_noise"):
        Diffusion(5).sample(lambda x, t: x, np.zeros((1, 1, 1, 2, 2)), method="ddpm")


class Conditional(nn.Cell):
    """A network of the given condition that predicts no noise."""

    def __init__(self, condition, **settings):
        super().__init__()
        self.config = LatteConfig(condition=condition, num_classes=3, hidden_size=8, depth=2, num_heads=2, **settings)

    def construct(self, x, t, y=None, text=None):
        return ops.zeros_like(x)


TEXT = np.zeros((2, 77, 768))


@pytest.mark.parametrize(
    ("condition", "given", "message"),
    [
        ("class", {}, "condition is class: y is needed"),
        ("class", {"y": np.array([1])}, r"y has shape \(1,\), expected one for each of the 2 samples"),
        ("class", {"y": 1}, r"y has shape \(\)"),
        ("class", {"y": [1, 4]}, r"y is \[1, 4\], expected labels from 0 to 3"),
        ("class", {"y": [-1, 0]}, "expected labels from 0 to 3"),
        ("text", {"text": np.zeros((1, 77, 768))}, r"text has shape \(1, 77, 768\)"),
        ("text", {"text": np.zeros((2, 10, 768))}, r"text has shape \(2, 10, 768\), expected one \(77, 768\) for each"),
        ("text", {"text": TEXT, "cfg_scale": 2.0, "null_text": 0.0}, r"null_text has shape \(\), expected \(77, 768\)"),
        ("text", {"text": TEXT, "y": [1, 2]}, "condition is text: it has no use for y"),
        ("none", {"y": [1, 2], "cfg_scale": 2.0}, "condition is none: it has no use for y"),
        ("class", {"y": [1, 2], "cfg_scale": float("nan")}, "cfg_scale nan: expected a number"),
    ],
)
def test_conditions_that_do_not_fit_are_named(condition, given, message):
    with pytest.raises(ValueError, match=message):
        Diffusion(2).sample(Conditional(condition), np.zeros((2, 1, 1, 2, 2)), **given)


def test_guidance_needs_a_null_class():
    model = Conditional("class", class_dropout_prob=0)
    with pytest.raises(ValueError, match=r"cfg_scale 7\.0: the network has no null class"):
        Diffusion(2).sample(model, np.zeros((2, 1, 1, 2, 2)), y=[0, 2], cfg_scale=7.0)


def test_labels_may_be_a_list():
    start = np.ones((2, 1, 1, 2, 2), np.float32)
    model = Conditional("class")
    assert np.array_equal(
        Diffusion(2).sample(model, start, y=[1, 3]), Diffusion(2).sample(model, start, y=np.array([1, 3]))
    )


@pytest.mark.parametrize("noise_schedule", ["linear", "cosine"])
@pytest.mark.parametrize("spacing", [None, 1, 2, 250, "ddim50", "20,10,5"])
def test_respacing_keeps_the_noise_levels_of_the_visited_steps(noise_schedule, spacing):
    whole, part = make_schedule(noise_schedule), make_schedule(noise_schedule, spacing)
    np.testing.assert_allclose(part.alphas_cumprod, whole.alphas_cumprod[part.timesteps], atol=1e-12)
    assert np.isfinite(part.posterior_log_variance).all()
    assert part.alphas_cumprod_prev[0] == 1.0


def test_the_bound_teaches_the_variance_and_not_the_noise():
    rng = np.random.default_rng(0)
    x0, noise = (ms.Tensor(rng.standard_normal((2, 1, 3, 2, 2), np.float32)) for _ in range(2))
    diffusion, t = Diffusion(), ms.Tensor([0, 300])

    def grad_of(term):
        def loss(out):
            return diffusion.training_losses(lambda x, steps: out, x0, t, noise)[term].sum()

        return ms.grad(loss)(ms.Tensor(rng.standard_normal((2, 1, 6, 2, 2), np.float32))).asnumpy()

    vb, mse = grad_of("vb"), grad_of("mse")
    assert not vb[:, :, :3].any()
    assert vb[:, :, 3:].all()
    assert mse[:, :, :3].all()
    assert not mse[:, :, 3:].any()


def test_at_the_first_step_the_bound_is_the_likelihood_of_8_bit_values():
    rng = np.random.default_rng(0)
    x0 = rng.uniform(-1.2, 1.2, (2, 1, 3, 4, 4))
    noise, error, part = (rng.standard_normal(x0.shape) for _ in range(3))
    out = np.concatenate([noise + error, part], axis=2).astype(np.float32)
    terms = Diffusion().training_losses(
        lambda x, t: ms.Tensor(out),
        ms.Tensor(x0.astype(np.float32)),
        ms.Tensor([0, 0]),
        ms.Tensor(noise.astype(np.float32)),
    )
    schedule = make_schedule("linear")
    kept = schedule.alphas_cumprod[0]
    mean = x0 - np.sqrt(1 / kept - 1) * error
    share = (part + 1) / 2
    deviation = np.exp(0.5 * (share * np.log(schedule.betas[0]) + (1 - share) * schedule.posterior_log_variance[0]))

    def below(z):
        return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    upper, lower = below((x0 - mean + 1 / 255) / deviation), below((x0 - mean - 1 / 255) / deviation)
    probability = np.where(x0 < -0.999, upper, np.where(x0 > 0.999, 1 - lower, upper - lower))
    bits = -np.log2(np.maximum(probability, 1e-12)).reshape(2, -1).mean(1)
    np.testing.assert_allclose(terms["vb"].asnumpy(), bits, rtol=5e-3)


def test_without_learned_variance_the_loss_is_the_squared_error():
    x0 = ms.Tensor(np.ones((2, 1, 3, 2, 2), np.float32))
    terms = Diffusion().training_losses(lambda x, t: ops.zeros_like(x), x0, ms.Tensor([3, 4]), x0 * 2)
    assert terms["loss"].asnumpy().tolist() == terms["mse"].asnumpy().tolist() == [4.0, 4.0]
    assert terms["vb"].asnumpy().tolist() == [0.0, 0.0]


def test_the_network_is_told_steps_of_the_whole_process():
    seen = []

    def model(x, t):
        seen.append(t.asnumpy().tolist())
        return ops.zeros_like(x)

    Diffusion(3).sample(model, np.zeros((2, 1, 1, 2, 2), np.float32), method="ddim")
    assert seen == [[999, 999], [500, 500], [0, 0]]
    Diffusion(3).training_losses(model, *(ms.Tensor(np.zeros((2, 1, 1, 2, 2), np.float32)),), ms.Tensor([0, 1]), 0.0)
    assert seen[-1] == [0, 500]


class Gaussian:
    """Data x0 ~ N(mean, deviation^2): the best noise prediction and the exact end of the sampling path are known."""

    def __init__(self, mean, deviation, noise_schedule):
        self.mean, self.deviation, self.schedule = mean, deviation, noise_schedule
        self.kept = make_schedule(noise_schedule).alphas_cumprod

    def __call__(self, x, t):
        kept = self.kept[int(t.asnumpy()[0])]
        spread = kept * self.deviation**2 + 1 - kept
        return np.sqrt(1 - kept) * (x.asnumpy().astype(np.float64) - np.sqrt(kept) * self.mean) / spread

    def error(self, method, steps):
        start = np.linspace(-2, 2, 16).reshape(1, 1, 4, 2, 2)
        kept = self.kept[-1]
        spread = np.sqrt(kept * self.deviation**2 + 1 - kept)
        exact = self.mean + self.deviation / spread * (start - np.sqrt(kept) * self.mean)
        return np.abs(Diffusion(steps, self.schedule).sample(self, start, method=method) - exact).max()


def gaussians(*schedules):
    return st.builds(Gaussian, st.floats(-1, 1), st.floats(0.6, 2), st.sampled_from(schedules))


@settings(max_examples=5, deadline=None)
@given(gaussians("linear"))
def test_ddim_converges_at_first_order(model):
    for coarse, fine in pairwise([model.error("ddim", n) for n in (40, 80, 160)]):
        assert 1.5 < coarse / fine < 2.7


@settings(max_examples=5, deadline=None)
@given(gaussians("linear"))
def test_dpm_solver_at_20_steps_is_nearer_than_ddim_at_60(model):
    assert model.error("dpm-solver++", 20) < model.error("ddim", 60)
    assert model.error("dpm-solver++", 50) < model.error("ddim", 250)


@settings(max_examples=5, deadline=None)
@given(gaussians("cosine"), st.sampled_from([20, 30, 50]))
def test_dpm_solver_is_nearer_than_ddim_at_twice_its_steps(model, steps):
    assert model.error("dpm-solver++", steps) < model.error("ddim", 2 * steps)


@settings(max_examples=4, deadline=None)
@given(gaussians("linear", "cosine"))
def test_dpm_solver_and_ddim_agree_at_many_steps(model):
    assert model.error("ddim", None) < 0.01
    assert model.error("dpm-solver++", None) < 1e-3


def test_ddpm_draws_from_the_data():
    model = Gaussian(0.5, 0.7, "linear")
    rng = np.random.default_rng(5)
    start = rng.standard_normal((64, 1, 4, 8, 8), np.float32)
    out = Diffusion(100).sample(model, start, "ddpm", lambda i, shape: rng.standard_normal(shape, np.float32))
    assert out.mean() == pytest.approx(0.5, abs=0.02)
    assert out.std() == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_samples_of_a_batch_do_not_depend_on_the_batch(method):
    """Clip 17 is the same whoever samples it: the arithmetic is per element, the noise is the caller's."""
    model = Gaussian(0.2, 1.1, "linear")
    rng = np.random.default_rng(1)
    start, noises = rng.standard_normal((3, 1, 1, 2, 2)), rng.standard_normal((8, 3, 1, 1, 2, 2))
    together = Diffusion(8).sample(model, start, method, lambda i, shape: noises[i])
    alone = Diffusion(8).sample(model, start[1:2], method, lambda i, shape: noises[i, 1:2])
    assert np.array_equal(together[1:2], alone)


def test_a_tensor_comes_back_for_a_tensor_and_steps_are_told():
    told = []
    out = Diffusion(4).sample(lambda x, t: ops.zeros_like(x), ms.Tensor(np.ones((1, 1, 1, 2, 2), np.float32)),
                              on_step=told.append)  # fmt: skip
    assert isinstance(out, ms.Tensor)
    assert told == [0, 1, 2, 3]
