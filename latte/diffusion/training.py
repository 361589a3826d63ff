"""The training loss: noise prediction and, where the variance is learned, the variational bound for the variance."""

import math
from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from latte import operators
from latte.diffusion.schedule import NoiseSchedule

_twice, _four_times = operators.Fan(2), operators.Fan(4)


@ms.jit_class
class Losses:
    """Hybrid loss of Nichol & Dhariwal 2021 (arXiv:2102.09672); works inside `ms.jit`."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        columns = {
            "timestep": schedule.timesteps,
            "sqrt_cumprod": np.sqrt(schedule.alphas_cumprod),
            "sqrt_rest": np.sqrt(1 - schedule.alphas_cumprod),
            "sqrt_recip": np.sqrt(1 / schedule.alphas_cumprod),
            "sqrt_recip_less": np.sqrt(1 / schedule.alphas_cumprod - 1),
            "mean_x0": schedule.posterior_mean_x0,
            "mean_xt": schedule.posterior_mean_xt,
            "log_smallest": schedule.posterior_log_variance,
            "log_largest": np.log(schedule.betas),
        }
        self._split = operators.Split(1, len(columns))
        # One table and one gather: nine small tables would be nine operators for each batch.
        self._table = ms.Tensor(np.stack(list(columns.values()), axis=1).astype(np.float32))  # (steps, 9)

    def __call__(
        self, model: Callable[..., ms.Tensor], x0: ms.Tensor, t: ms.Tensor, noise: ms.Tensor, **cond: Any
    ) -> dict[str, ms.Tensor]:
        """See `latte.diffusion.Diffusion.training_losses`."""
        n, channels = x0.shape[0], x0.shape[2]
        rows = operators.rows(self._table, t.astype(ms.int32))  # (N, 9)
        rows = rows.reshape(n, -1, 1, 1, 1, 1)
        (
            timestep,
            sqrt_cumprod,
            sqrt_rest,
            sqrt_recip,
            sqrt_recip_less,
            mean_x0,
            mean_xt,
            log_smallest,
            log_largest,
        ) = _columns(self._split(rows))  # 9 x (N, 1, 1, 1, 1)
        xt = sqrt_cumprod * x0 + sqrt_rest * noise  # (N, F, C, h, w)
        out = model(xt, timestep.reshape(-1), **cond)
        learned = out.shape[2] == 2 * channels
        predicted, share = operators.halves(out) if learned else (out, None)  # (N, F, C, h, w)
        mse = operators.mean_of_rows(ops.square(noise - predicted))  # (N,)
        if not learned:
            return {"loss": mse, "mse": mse, "vb": ops.zeros_like(mse)}
        up, down = _twice((share + 1.0) * 0.5)
        log_variance = up * log_largest + (1.0 - down) * log_smallest  # (N, F, C, h, w)
        log_variances = _four_times(log_variance)
        # The bound teaches the variance alone: it sees the mean as a constant.
        x0_predicted = sqrt_recip * xt - sqrt_recip_less * ops.stop_gradient(predicted)
        mean = mean_x0 * x0_predicted + mean_xt * xt
        true_mean = mean_x0 * x0 + mean_xt * xt
        kl = 0.5 * (
            log_variances[0]
            - log_smallest
            - 1.0
            + ops.exp(log_smallest - log_variances[1])
            + ops.square(true_mean - mean) * ops.exp(-log_variances[2])
        )
        first = (t == 0).astype(ms.float32)  # (N,)
        likelihood = discretized_gaussian_log_likelihood(x0, mean, 0.5 * log_variances[3])
        vb = ((1.0 - first) * operators.mean_of_rows(kl) - first * operators.mean_of_rows(likelihood)) * (
            1.0 / math.log(2.0)
        )  # bits per dimension
        return {"loss": mse + vb, "mse": mse, "vb": vb}


def discretized_gaussian_log_likelihood(x: ms.Tensor, mean: ms.Tensor, log_scale: ms.Tensor) -> ms.Tensor:
    """Log-probability of `x` under a Gaussian cut into bins of 1/127.5 width, as for 8-bit images scaled to -1..1.

    Args:
        x: data.
        mean: means, same shape.
        log_scale: natural logarithms of the standard deviations, same shape.

    Returns:
        Natural logarithms, same shape; the outermost bins reach to infinity.
    """
    centered = x - mean
    inverse = _twice(ops.exp(-log_scale))
    above = _twice(_normal_cdf(inverse[0] * (centered + 1.0 / 255.0)))
    below = _twice(_normal_cdf(inverse[1] * (centered - 1.0 / 255.0)))
    inside = ops.log(operators.at_least(above[0] - below[0], 1e-12))
    lowest = ops.log(operators.at_least(above[1], 1e-12))
    highest = ops.log(operators.at_least(1.0 - below[1], 1e-12))
    return ops.select(x < -0.999, lowest, ops.select(x > 0.999, highest, inside))


def _normal_cdf(x: ms.Tensor) -> ms.Tensor:
    """The tanh approximation that the published loss uses."""
    a, b, c, d = _four_times(x)
    return 0.5 * (1.0 + ops.tanh(math.sqrt(2.0 / math.pi) * (a + 0.044715 * b * c * d)))


def _columns(parts: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ...]:
    return tuple([part.squeeze(1) for part in parts])
