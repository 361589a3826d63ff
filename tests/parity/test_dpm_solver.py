"""DPM-Solver++(2M) against the scheduler in `diffusers`, on the same timesteps."""

import numpy as np
import pytest

from latte.diffusion import Diffusion
from latte.diffusion.schedule import betas_of
from tests import peers

KEPT = np.cumprod(1 - betas_of("linear"))


def predict(x: np.ndarray, step: int) -> np.ndarray:
    """The best noise prediction for data of unit variance, and a wave that moves with the steps."""
    return np.sqrt(1 - KEPT[step]) * x + 0.2 * np.sqrt(KEPT[step]) * np.sin(3 * x + 0.01 * step)


@pytest.mark.peers
@pytest.mark.parametrize("steps", [3, 20, 50, "5,10,20"])
def test_it_is_the_published_solver_on_the_same_timesteps(steps: int | str) -> None:
    ours = Diffusion(steps)
    start = np.random.default_rng(3).standard_normal((2, 3, 4, 8, 8))
    end = ours.sample(lambda x, t: predict(x.asnumpy(), int(t.asnumpy()[0])), start, method="dpm-solver++")

    def ask() -> np.ndarray:
        import torch
        from diffusers import DPMSolverMultistepScheduler

        # The step onto timestep 0 is its last; from there on there is only the clean sample of what it arrives at.
        theirs = DPMSolverMultistepScheduler(
            trained_betas=betas_of("linear"), euler_at_final=True, final_sigmas_type="sigma_min"
        )
        theirs.set_timesteps(timesteps=ours.timesteps[:0:-1].tolist())
        x = torch.tensor(start)
        for step in theirs.timesteps:
            x = theirs.step(torch.tensor(predict(x.numpy(), int(step))), step, x).prev_sample
        return (x.numpy() - np.sqrt(1 - KEPT[0]) * predict(x.numpy(), 0)) / np.sqrt(KEPT[0])

    expected = peers.one(f"dpm-solver-{str(steps).replace(',', '-')}", ask)
    np.testing.assert_allclose(expected.same_places(end), expected.values, rtol=0, atol=1e-4 * expected.largest)
