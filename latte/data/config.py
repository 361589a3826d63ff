"""Settings of encoding a dataset."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from latte.config import Config, FileKey, Root
from latte.data.catalog import DatasetConfig
from latte.data.curation.config import CurateConfig

MAX_TASKS = 32


class EncodeConfig(Config):
    """Settings of encoding a dataset; the defaults are those of 256x256 training."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the dataset; its latents lie under datasets/<name>/")
    dataset: DatasetConfig = Field(description="which videos: videos, layout, csv, labels, split, limit, s3_digest")
    curate: CurateConfig | None = Field(
        default=None, description="what of the dataset is worth training on; without it, all is taken"
    )
    vae: str = Field(description="manifest of the autoencoder's weights (file or URI)")
    text_encoder: Annotated[str | None, FileKey("manifest")] = Field(
        default=None, description="manifest of CLIP's text weights (file or URI): captions are embedded too"
    )
    tokenizer: Annotated[str | None, FileKey("tokenizer")] = Field(
        default=None, description="CLIP's tokenizer.json (path or URI), for text_encoder"
    )
    image_size: int = Field(default=256, gt=0, le=8192, description="side of the frames after scaling and cropping")
    dtype: Literal["float16", "float32"] = Field(default="float16", description="how latents are stored")
    batch_size: int | None = Field(
        default=None,
        gt=0,
        le=4096,
        description="frames encoded at once; unset: as many pixels as 8 frames of 256x256, up to 32",
    )
    frame_stride: int = Field(
        default=1,
        gt=0,
        description="every so many frames one is encoded; all other frame counts and strides count these",
    )
    min_frames: int = Field(default=1, gt=0, description="videos with fewer encoded frames are left out, with a reason")
    max_frames: int | None = Field(default=None, gt=0, description="frames of each video that are encoded at most")
    mirrored: bool = Field(
        default=False, description="encode a mirrored copy of each video too; training draws either of them"
    )
    shard_mb: float = Field(default=256, gt=0, le=1e6, description="megabytes of latents in a shard, about")
    num_tasks: int = Field(default=8, gt=0, le=MAX_TASKS, description="tasks that encoding is fanned out over, at most")
    decode_workers: int = Field(default=2, gt=0, description="processes that decode, per task")
    decode_limit_s: float = Field(default=300, gt=0, description="seconds for decoding a video, besides 0.1 s a frame")
    decode_memory_gb: float = Field(
        default=4, ge=0.5, le=1e6, description="gigabytes of memory that a process may take to decode a video"
    )
    max_reject_share: float = Field(default=0.5, ge=0, le=1, description="larger shares of rejected videos are fatal")

    @model_validator(mode="after")
    def _fits(self) -> "EncodeConfig":
        if (self.text_encoder is None) != (self.tokenizer is None):
            raise ValueError("text_encoder and tokenizer go together; give both or neither")
        if self.max_frames is not None and self.max_frames < self.min_frames:
            raise ValueError(f"min_frames {self.min_frames} is more than max_frames {self.max_frames}")
        return self
