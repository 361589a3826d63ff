"""From noise to latents: DDPM, DDIM and DPM-Solver++(2M), in numpy but for the network."""

from collections.abc import Callable, Iterator

import numpy as np

from latte.diffusion.schedule import NoiseSchedule

METHODS = ("ddpm", "ddim", "dpm-solver++")

# x (N, F, C, h, w), the step as the network counts it -> the network's output (N, F, C or 2C, h, w), both float32
Predict = Callable[[np.ndarray, int], np.ndarray]
StepNoise = Callable[[int, tuple[int, ...]], np.ndarray]


def run(
    schedule: NoiseSchedule, predict: Predict, noise: np.ndarray, method: str, step_noise: StepNoise | None
) -> Iterator[np.ndarray]:
    """Yield the state after every step, the last one the sample.

    Raises:
        ValueError: no such method, or DDPM without `step_noise`.
    """
    if method == "ddpm":
        if step_noise is None:
            raise ValueError("method ddpm draws noise at every step: step_noise is needed")
        return _ddpm(schedule, predict, noise, step_noise)
    if method == "ddim":
        return _ddim(schedule, predict, noise)
    if method == "dpm-solver++":
        return _dpm_solver(schedule, predict, noise)
    raise ValueError(f"method {method!r}: know {', '.join(METHODS)}")


def _ddpm(schedule: NoiseSchedule, predict: Predict, x: np.ndarray, step_noise: StepNoise) -> Iterator[np.ndarray]:
    """Ancestral sampling (Ho et al. 2020), variance interpolated as learned (Nichol & Dhariwal 2021)."""
    channels = x.shape[2]
    log_betas = np.log(schedule.betas)
    for index, i in enumerate(reversed(range(len(schedule)))):
        out = predict(x, int(schedule.timesteps[i]))
        x0 = _clean(schedule, i, x, out[:, :, :channels])
        mean = _f32(schedule.posterior_mean_x0[i]) * x0 + _f32(schedule.posterior_mean_xt[i]) * x
        if out.shape[2] == 2 * channels:
            share = (out[:, :, channels:] + 1) * _f32(0.5)
            log_variance = share * _f32(log_betas[i]) + (1 - share) * _f32(schedule.posterior_log_variance[i])
        else:
            log_variance = np.full_like(x, log_betas[i])  # the published choice where no variance is learned
        x = mean
        if i > 0:
            x = mean + np.exp(_f32(0.5) * log_variance) * np.asarray(step_noise(index, x.shape), np.float32)
        yield x


def _ddim(schedule: NoiseSchedule, predict: Predict, x: np.ndarray) -> Iterator[np.ndarray]:
    """Deterministic sampling (Song et al. 2021, eta 0)."""
    for i in reversed(range(len(schedule))):
        noise = predict(x, int(schedule.timesteps[i]))[:, :, : x.shape[2]]
        x0 = _clean(schedule, i, x, noise)
        left = schedule.ddim_alphas_cumprod[i]
        x = _f32(np.sqrt(left)) * x0 + _f32(np.sqrt(1 - left)) * noise
        yield x


def _dpm_solver(schedule: NoiseSchedule, predict: Predict, x: np.ndarray) -> Iterator[np.ndarray]:
    """DPM-Solver++(2M) (Lu et al. 2022): second order in half the log signal-to-noise ratio, one evaluation a step.

    The first step has no predecessor and the last one leads to no noise at all, where that ratio is infinite: both are
    of first order, which is DDIM. So is the step onto the last visited timestep, several times as long as the one
    before: `lower_order_final` of the authors' code at any number of steps, with `denoise_to_zero`; in diffusers
    DPMSolverMultistepScheduler with euler_at_final and final_sigmas_type sigma_min.
    """
    alphas, left = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    before: tuple[np.ndarray, float] | None = None
    for i in reversed(range(len(schedule))):
        noise = predict(x, int(schedule.timesteps[i]))[:, :, : x.shape[2]]
        x0 = _clean(schedule, i, x, noise)
        ratio = _half_log_snr(alphas[i])
        if i == 0:
            yield x0
            return
        step = _half_log_snr(left[i]) - ratio
        target = x0
        if before is not None and i > 1:
            weight = _f32(step / (2 * (ratio - before[1])))
            target = x0 + weight * (x0 - before[0])
        keep = np.sqrt((1 - left[i]) / (1 - alphas[i]))
        x = _f32(keep) * x - _f32(np.sqrt(left[i]) * np.expm1(-step)) * target
        before = (x0, ratio)
        yield x


def _clean(schedule: NoiseSchedule, i: int, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The clean latents that `noise` in `x` means."""
    share = schedule.alphas_cumprod[i]
    return _f32(np.sqrt(1 / share)) * x - _f32(np.sqrt(1 / share - 1)) * noise


def _half_log_snr(share: float) -> float:
    return float(0.5 * np.log(share / (1 - share)))


def _f32(value: float) -> np.float32:
    return np.float32(value)
