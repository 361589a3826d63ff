"""The scheduler_config.json that diffusers publishes with a model: its noise schedule, and which steps DDIM visits."""

from typing import Any, Literal

import numpy as np
from pydantic import Field

from latte.config import Config, build
from latte.errors import UserError
from latte.spacing import NUM_STEPS

FILE = "scheduler/scheduler_config.json"
# Keys that say what is done here anyway; another value is refused.
_FIXED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("DDIMScheduler", "DDPMScheduler"),
    "num_train_timesteps": (NUM_STEPS,),
    "prediction_type": ("epsilon",),
    "trained_betas": (None,),
    "thresholding": (False,),
    "rescale_betas_zero_snr": (False,),
}
# What there is else: of files of other versions, and of what is switched off.
_IGNORED = {
    "_diffusers_version", "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "variance_type",
    "skip_prk_steps",
}  # fmt: skip


class PublishedScheduler(Config):
    """A schedule of diffusers' DDIMScheduler, in the names and with the defaults of its scheduler_config.json."""

    beta_start: float = Field(default=1e-4, gt=0, lt=1, description="noise of the first step")
    beta_end: float = Field(default=0.02, gt=0, lt=1, description="noise of the last step")
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = Field(
        default="linear", description="how the noise grows between them"
    )
    timestep_spacing: Literal["leading", "trailing", "linspace"] = Field(
        default="leading", description="where in each part of the steps one is visited"
    )
    steps_offset: int = Field(default=0, ge=0, le=NUM_STEPS, description="added to the steps where they lead")
    set_alpha_to_one: bool = Field(default=True, description="the last step leads to no noise at all")

    @classmethod
    def from_published(cls, values: dict[str, Any], source: str) -> "PublishedScheduler":
        """Build from the content of a scheduler_config.json; `source` is named in errors.

        Raises:
            UserError: an unknown key, a bad value, or a key that asks for another process.
        """
        rest = {}
        # The default there is to clip, which is for pixels.
        for key, value in {"clip_sample": True, **values}.items():
            known = (False,) if key == "clip_sample" else _FIXED.get(key)
            if known is not None:
                if value not in known:
                    listed = " or ".join(map(repr, known))
                    raise UserError(f"{source}: {key}: only {listed} is supported (got {value!r})")
            elif key not in _IGNORED:
                rest[key] = value
        return build(cls, rest, source)

    @property
    def noise_schedule(self) -> str:
        """The schedule's name here."""
        return "cosine" if self.beta_schedule == "squaredcos_cap_v2" else "linear"

    @property
    def betas(self) -> np.ndarray:
        """Noise of each step (1000,) float64."""
        if self.beta_schedule == "scaled_linear":
            return np.linspace(self.beta_start**0.5, self.beta_end**0.5, NUM_STEPS, dtype=np.float64) ** 2
        if self.beta_schedule == "squaredcos_cap_v2":
            ends = np.cos((np.arange(NUM_STEPS + 1) / NUM_STEPS + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - ends[1:] / ends[:-1], 0.999)
        return np.linspace(self.beta_start, self.beta_end, NUM_STEPS, dtype=np.float64)

    def timesteps(self, count: int) -> np.ndarray:
        """The visited steps (count,) int64, ascending.

        Raises:
            ValueError: so many do not fit.
        """
        if not 1 <= count <= NUM_STEPS:
            raise ValueError(f"num_sampling_steps {count}: the diffusion has 1 to {NUM_STEPS} steps")
        if self.timestep_spacing == "linspace":
            return np.linspace(0, NUM_STEPS - 1, count).round().astype(np.int64)
        if self.timestep_spacing == "trailing":
            visited = np.round(np.arange(NUM_STEPS, 0, -NUM_STEPS / count)).astype(np.int64) - 1
            return visited[::-1][-count:]
        visited = np.arange(count) * (NUM_STEPS // count) + self.steps_offset
        if visited[-1] >= NUM_STEPS:
            raise ValueError(
                f"num_sampling_steps {count}: with steps_offset {self.steps_offset} the last step is {visited[-1]} "
                f"of {NUM_STEPS}; fewer steps work"
            )
        return visited

    def left_after(self, timesteps: np.ndarray) -> np.ndarray:
        """Share of the clean signal's variance that DDIM leaves after each visited step, float64.

        One stride earlier by whole numbers, which need not be a visited step; no step is earlier than the first.
        """
        whole = np.cumprod(1.0 - self.betas)
        final = 1.0 if self.set_alpha_to_one else whole[0]
        earlier = timesteps - NUM_STEPS // len(timesteps)
        return np.where(earlier >= 0, whole[np.maximum(earlier, 0)], final)
