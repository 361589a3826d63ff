"""Settings of a set of videos."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, ValidationInfo, field_validator, model_validator

from latte import spacing
from latte.config import Config, FileKey, Root, ToldError, prefix_of

DATASET = "dataset"

# Of the sample step: what it takes to show texts.
TEXT_KEYS = ("captions", "text_encoder", "tokenizer")


def _checked(labels: Any) -> Any:
    """Before pydantic looks: it would take true for class 1, and name the parts of the union in what it says."""
    for label in labels if isinstance(labels, list) else []:
        if isinstance(label, bool):
            raise ValueError("a class is a name or a number; put a name that YAML reads as true or false in quotes")
        if not isinstance(label, (int, str)) and not (isinstance(label, float) and label.is_integer()):
            raise ValueError("a class is a name or a number")
    if not isinstance(labels, (list, type(None))) and labels != DATASET:
        raise ValueError(f"expected a list of classes, or {DATASET}")
    if labels == []:
        raise ValueError("no classes in the list; leave labels out for all of them")
    return labels


# Classes by name or number, or drawn by their shares of a dataset, or all of the model's.
Labels = Annotated[list[int | str] | Literal["dataset"] | None, pydantic.BeforeValidator(_checked)]

MAX_TASKS = 32


class SampleConfig(Config):
    """A set of videos to generate, and its weights; generated in batches of one shape."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the video set; it goes to videos/<name>/")
    checkpoint: str = Field(
        description="manifest (file or URI) of a training run's checkpoints, or of converted Latte weights"
    )
    vae: str = Field(description="manifest of the autoencoder's weights (file or URI)")
    step: int | None = Field(default=None, ge=0, description="training step; null: the newest, 0: before training")
    weights: Literal["ema", "model"] = Field(default="ema", description="moving average of the weights, or the last")
    num_videos: int = Field(default=16, gt=0, description="videos of the set; may be raised later")
    num_frames: int | None = Field(
        default=None, gt=0, description="frames of a video; null: the model's. 1 makes images, of a text-to-video model"
    )
    seed: int = Field(default=0, ge=0, description="all noise follows from it")
    method: Literal["ddpm", "ddim", "dpm-solver++"] = Field(default="ddim", description="sampler")
    num_sampling_steps: int | str = Field(default=250, description='steps: a count, "ddimN" or sections "a,b,…"')
    cfg_scale: float = Field(default=1.0, ge=0, description="classifier-free guidance; 1 is none (published: 7)")
    cfg_channels: Literal["noise", "all"] = Field(
        default="noise", description="what is guided: the noise (published), or the learned variance too"
    )
    precision: Literal["fp32", "fp16", "bf16"] = Field(
        default="fp32", description="of the Latte's matrix products; bf16 needs Ascend"
    )
    labels: Labels = Field(
        default=None,
        description="classes (index or name) that the videos take in turn; null: all of them; "
        '"dataset": drawn as often as each class is in `latents`',
    )
    latents: Annotated[str | None, FileKey("manifest")] = Field(
        default=None, description="manifest of an encoded dataset, for labels=dataset"
    )
    captions: Annotated[str | None, FileKey("file")] = Field(
        default=None,
        description="texts that the videos take in turn: a text file, one a line, or a CSV file's column caption",
    )
    text_encoder: Annotated[str | None, FileKey("manifest")] = Field(
        default=None, description="manifest of CLIP's or T5's weights, whichever the model takes, for captions"
    )
    tokenizer: Annotated[str | None, FileKey("tokenizer")] = Field(
        default=None, description="its tokenizer.json, or T5's spiece.model (path or URI), for captions"
    )
    batch_size: int = Field(default=8, gt=0, description="videos generated together")
    decode_frames: int = Field(default=16, gt=0, description="frames decoded together; bounds the memory")
    fps: float = Field(default=8.0, gt=0, description="frames per second of the files")
    num_tasks: int = Field(default=8, gt=0, le=MAX_TASKS, description="most tasks that the set is shared out to")
    adapt: bool = Field(
        default=False, description="leave out guidance that a model without a condition cannot use; pipelines do"
    )

    @field_validator("num_sampling_steps")
    @classmethod
    def _can_be_taken(cls, steps: int | str) -> int | str:
        spacing.check(steps)
        return steps

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> "SampleConfig":
        before = prefix_of(info)
        if (self.labels == DATASET) != (self.latents is not None):
            raise ToldError(
                f"{before}labels={DATASET} and {before}latents (the manifest of that dataset) go "
                "together; give both or neither"
            )
        missing = [key for key in TEXT_KEYS if getattr(self, key) is None]
        if 0 < len(missing) < len(TEXT_KEYS):
            keys = ", ".join(f"{before}{key}" for key in TEXT_KEYS)
            raise ToldError(f"{keys} go together; {before}{missing[0]} is not given")
        return self
