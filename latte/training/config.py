"""Settings of a training run, and the weights that it starts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from latte.config import Config, FileKey, Root, meant
from latte.models.configs import LatteConfig, nearest_multiple


class TrainConfig(Config):
    """Settings of a training run; the defaults are the published recipe (Ma et al. 2024, Latte, section 4)."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the run; its checkpoints lie under runs/<name>/")
    latents: str = Field(description="manifest of the encoded dataset (file or URI)")
    model: dict[str, Any] = Field(
        default_factory=lambda: {"preset": "Latte-S/2"},
        description="a preset (preset: Latte-XL/2) and/or keys of LatteConfig; sizes of the latents are filled in",
    )
    steps: int = Field(default=100_000, gt=0, description="optimizer updates in all")
    workers: int = Field(default=1, gt=0, description="processes that train together; started through msrun")
    batch_size: int = Field(default=8, gt=0, description="clips in the global batch of one update, over all workers")
    accumulation: int = Field(default=1, gt=0, description="parts that the batch is computed in, one after the other")
    frame_stride: int = Field(default=3, gt=0, description="distance between a clip's frames in the video")
    learning_rate: float = Field(default=1e-4, gt=0, description="peak learning rate of AdamW")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="after the warm-up")
    warmup_steps: int = Field(default=0, ge=0, description="updates of linear warm-up")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay of AdamW")
    ema_decay: float = Field(default=0.9999, ge=0, lt=1, description="decay of the moving average of weights")
    clip_grad_norm: float | None = Field(default=0.1, gt=0, description="largest gradient norm, or null for none")
    clip_start_step: int = Field(default=20_000, ge=0, description="gradients are clipped from this update on")
    noise_schedule: Literal["linear", "cosine"] = Field(default="linear", description="betas of the diffusion")
    seed: int = Field(default=0, ge=0, description="fresh weights, data order, noise and timesteps follow from it")
    init_from: Annotated[str | None, FileKey("manifest")] = Field(
        default=None, description="checkpoint manifest or weights file to start from"
    )
    log_every: int = Field(default=100, gt=0, description="updates between lines of the loss log")
    checkpoint_every: int = Field(default=5_000, gt=0, description="updates between checkpoints")
    keep_last: int = Field(default=3, gt=0, description="newest checkpoints that are kept")
    keep_every: int | None = Field(default=None, gt=0, description="checkpoints at multiples of this are kept for ever")
    precision: Literal["fp32", "fp16", "bf16"] = Field(
        default="fp32", description="of matrix products; fp16 scales the loss; bf16 needs Ascend"
    )
    shard_optimizer: bool = Field(
        default=False, description="each worker keeps its part of AdamW's moments and of the average: less memory"
    )
    recompute: bool = Field(default=False, description="compute activations again in the backward pass: less memory")
    preview_every: int = Field(default=0, ge=0, description="updates between sample previews, 0 for none")
    preview_clips: int = Field(default=4, gt=0, description="clips of a preview")
    preview_steps: int = Field(default=25, gt=0, le=1000, description="denoising steps of a preview (DDIM)")
    vae: str | None = Field(default=None, description="manifest of the autoencoder that decodes previews")
    jit_level: Literal["O0", "O1"] = Field(
        default="O0", description="of MindSpore's compiler, for a step's gradients on Ascend; O1 also fuses kernels"
    )
    profile_steps: str | None = Field(
        default=None, pattern=r"^[1-9]\d*:[1-9]\d*$", description="first:last step that MindSpore traces, 10:12"
    )
    max_device_memory_gb: float | None = Field(
        default=None, gt=0, description="memory that MindSpore may take of an Ascend device, or null for all"
    )
    hccl_connect_timeout_s: int | None = Field(
        default=None, ge=120, le=7200, description="how long workers wait for each other at the start; null: HCCL's 120"
    )
    hccl_exec_timeout_s: int | None = Field(
        default=None, gt=0, description="how long a worker waits for the others in a step; null: HCCL's 1836"
    )
    dry_run: bool = Field(
        default=False, description="train nothing: print what a step needs, planned for Ascend by MindSpore"
    )
    cache_dir: str | None = Field(default=None, description="folder for the local cache of latents")
    cache_gb: float = Field(
        default=32.0, ge=0, description="size of that cache; latents beyond it are read from the store each time"
    )

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        parts = self.accumulation * self.workers
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by workers {self.workers} x accumulation "
                f"{self.accumulation}; batch_size={nearest_multiple(self.batch_size, parts)} works"
            )
        if self.profile_steps is not None and not self.profiled[0] <= self.profiled[1] <= self.steps:
            raise ValueError(
                f"profile_steps {self.profile_steps}: expected first:last within the {self.steps} steps of the run"
            )
        unknown = sorted(set(self.model) - set(LatteConfig.model_fields) - {"preset"})
        if unknown:
            known = [f"model.{key}" for key in ("preset", *LatteConfig.model_fields)]
            raise ValueError(f"unknown key model.{unknown[0]}{meant(f'model.{unknown[0]}', known)}")
        return self

    @property
    def profiled(self) -> tuple[int, int]:
        """First and last step that are traced; (0, 0) for none."""
        if self.profile_steps is None:
            return 0, 0
        first, last = map(int, self.profile_steps.split(":"))
        return first, last


@dataclass(frozen=True)
class Start:
    """Weights that training starts from.

    Attributes:
        uri: the weights.
        sha256: what they must have.
        place: where they were found: the manifest, or the weights themselves.
        classes: names of the classes that they know, in the order of their rows; None where nobody says.
        has_null: whether the last row is that of no class.
    """

    uri: str
    sha256: str
    place: str
    classes: Sequence[str] | None = None
    has_null: bool = True
