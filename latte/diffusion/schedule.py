"""The forward process: betas, over all steps or over those that sampling visits. All in numpy float64."""

import math
from dataclasses import dataclass

import numpy as np

from latte.kinds.scheduler import PublishedScheduler
from latte.spacing import respaced

NOISE_SCHEDULES = ("linear", "cosine")


def betas_of(noise_schedule: str, num_steps: int = 1000) -> np.ndarray:
    """Betas (num_steps,) of the linear (Ho et al. 2020) or cosine (Nichol & Dhariwal 2021) schedule.

    Raises:
        ValueError: no such schedule.
    """
    if noise_schedule == "linear":
        scale = 1000 / num_steps  # keeps the total amount of noise when the number of steps changes
        return np.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=np.float64)
    if noise_schedule == "cosine":
        ends = np.cos((np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - ends[1:] / ends[:-1], 0.999)
    raise ValueError(f"noise_schedule {noise_schedule!r}: know {', '.join(NOISE_SCHEDULES)}")


@dataclass(frozen=True)
class NoiseSchedule:
    """A process over the visited steps; every array has one float64 (steps: int64) per visited step, ascending.

    Attributes:
        timesteps: the steps of the whole process that are visited; the network is told these.
        betas: noise added between one visited step and the next.
        alphas_cumprod: share of the clean signal's variance left at a step.
        alphas_cumprod_prev: the same one visited step earlier, 1 before the first.
        ddim_alphas_cumprod: what a step of DDIM leads to: `alphas_cumprod_prev`, or what a published scheduler says.
        posterior_variance: variance of q(x_{t-1} | x_t, x_0).
        posterior_log_variance: its logarithm, the first (of variance 0) replaced by the second.
        posterior_mean_x0: weight of x_0 in the mean of q(x_{t-1} | x_t, x_0).
        posterior_mean_xt: weight of x_t in it.
    """

    timesteps: np.ndarray
    betas: np.ndarray
    alphas_cumprod: np.ndarray
    alphas_cumprod_prev: np.ndarray
    ddim_alphas_cumprod: np.ndarray
    posterior_variance: np.ndarray
    posterior_log_variance: np.ndarray
    posterior_mean_x0: np.ndarray
    posterior_mean_xt: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)


def make_schedule(
    noise_schedule: str,
    spacing: int | str | None = None,
    num_steps: int = 1000,
    published: PublishedScheduler | None = None,
) -> NoiseSchedule:
    """The process of `noise_schedule` over the steps of `spacing`.

    With a `published` scheduler its noise counts, and which steps a plain count visits.

    Raises:
        ValueError: no such schedule, or `spacing` cannot be read.
    """
    betas = betas_of(noise_schedule, num_steps) if published is None else published.betas
    whole = np.cumprod(1.0 - betas)
    count = int(spacing) if published is not None and str(spacing).isdecimal() else None  # type: ignore[arg-type]
    if published is not None and count is not None:
        timesteps = published.timesteps(count)
        ddim_left = published.left_after(timesteps)
    else:
        timesteps, ddim_left = respaced(num_steps, spacing), None
    kept = whole[timesteps]
    betas = 1.0 - kept / np.append(1.0, kept[:-1])
    alphas = 1.0 - betas
    cumprod = np.cumprod(alphas)
    previous = np.append(1.0, cumprod[:-1])
    variance = betas * (1.0 - previous) / (1.0 - cumprod)
    return NoiseSchedule(
        timesteps=timesteps,
        betas=betas,
        alphas_cumprod=cumprod,
        alphas_cumprod_prev=previous,
        ddim_alphas_cumprod=previous if ddim_left is None else ddim_left,
        posterior_variance=variance,
        posterior_log_variance=np.log(np.append(variance[1:2] if len(variance) > 1 else betas[:1], variance[1:])),
        posterior_mean_x0=betas * np.sqrt(previous) / (1.0 - cumprod),
        posterior_mean_xt=(1.0 - previous) * np.sqrt(alphas) / (1.0 - cumprod),
    )
