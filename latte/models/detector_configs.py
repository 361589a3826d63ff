"""Sizes of the detectors of scores beside I3D, without MindSpore."""

from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from latte.config import Config


class Convolution(NamedTuple):
    """A convolution with batch normalisation and ReLU of Inception v3: channels, kernel (rows, columns), stride.

    `same`: zeros are added around, so that the size stays.
    """

    channels_in: int
    channels_out: int
    kernel: tuple[int, int]
    stride: int = 1
    same: bool = False


# (channels that come out, kernel, stride, same) of the layers before the mixed blocks; pooling lies between.
_STEM = {
    "Conv2d_1a_3x3": (32, 3, 2, False),
    "Conv2d_2a_3x3": (32, 3, 1, False),
    "Conv2d_2b_3x3": (64, 3, 1, True),
    "Conv2d_3b_1x1": (80, 1, 1, False),
    "Conv2d_4a_3x3": (192, 3, 1, False),
}
# Block: its form, and the channels of what differs within one: the pooled branch of A, the 7x7 branches of C.
INCEPTION_BLOCKS = {
    "Mixed_5b": ("A", 32),
    "Mixed_5c": ("A", 64),
    "Mixed_5d": ("A", 64),
    "Mixed_6a": ("B", 0),
    "Mixed_6b": ("C", 128),
    "Mixed_6c": ("C", 160),
    "Mixed_6d": ("C", 160),
    "Mixed_6e": ("C", 192),
    "Mixed_7a": ("D", 0),
    "Mixed_7b": ("E", 0),
    "Mixed_7c": ("E", 0),
}
_ROW, _COLUMN = (1, 7), (7, 1)


class InceptionConfig(Config):
    """Sizes of an Inception v3 (Szegedy et al. 2015); the defaults are those of the network that FID is made with."""

    num_classes: int = Field(default=1008, gt=0, description="class scores that come out; torchvision's has 1000")
    form: Literal["fid", "torchvision"] = Field(
        default="fid", description="fid: average pooling without its border, and a maximum in the last block"
    )
    width: float = Field(default=1.0, gt=0, le=1, description="share of the published channels in every layer")
    image_size: int = Field(default=299, ge=75, description="side of the frames that the weights were trained on")

    @property
    def is_published(self) -> bool:
        """Whether this is the network of FID."""
        return self == InceptionConfig()

    @property
    def channels(self) -> int:
        """Channels of the pooled features."""
        return self._scaled(320) + 4 * self._scaled(384) + self._scaled(192)

    @property
    def convolutions(self) -> dict[str, Convolution]:
        """Every convolution by its name."""
        found: dict[str, Convolution] = {}
        width = 3
        for name, (out, kernel, stride, same) in _STEM.items():
            found[name] = Convolution(width, self._scaled(out), (kernel, kernel), stride, same)
            width = found[name].channels_out
        for name, (form, channels) in INCEPTION_BLOCKS.items():
            block, width = self._block(form, channels, width)
            found |= {f"{name}.{branch}": convolution for branch, convolution in block.items()}
        return found

    def _block(self, form: str, channels: int, width: int) -> tuple[dict[str, Convolution], int]:
        """The convolutions of a block by the names of its branches, and the channels that come out of it."""
        own = self._scaled

        def chain(branch: str, *layers: tuple[int, tuple[int, int], int]) -> dict[str, Convolution]:
            made, before = {}, width
            for number, (out, kernel, stride) in enumerate(layers, 1):
                same = stride == 1 and kernel != (1, 1)
                made[f"{branch}_{number}"] = Convolution(before, own(out), kernel, stride, same)
                before = own(out)
            return made

        def single(branch: str, out: int, kernel: int = 1, stride: int = 1) -> dict[str, Convolution]:
            return {branch: Convolution(width, own(out), (kernel, kernel), stride)}

        one, three, five = (1, 1), (3, 3), (5, 5)
        if form == "A":
            block = {
                **single("branch1x1", 64),
                **chain("branch5x5", (48, one, 1), (64, five, 1)),
                **chain("branch3x3dbl", (64, one, 1), (96, three, 1), (96, three, 1)),
                **single("branch_pool", channels),
            }
            return block, own(64) + own(64) + own(96) + own(channels)
        if form == "B":
            block = {
                **single("branch3x3", 384, 3, 2),
                **chain("branch3x3dbl", (64, one, 1), (96, three, 1), (96, three, 2)),
            }
            return block, own(384) + own(96) + width
        if form == "C":
            narrow = channels
            block = {
                **single("branch1x1", 192),
                **chain("branch7x7", (narrow, one, 1), (narrow, _ROW, 1), (192, _COLUMN, 1)),
                **chain(
                    "branch7x7dbl",
                    (narrow, one, 1), (narrow, _COLUMN, 1), (narrow, _ROW, 1), (narrow, _COLUMN, 1), (192, _ROW, 1),
                ),
                **single("branch_pool", 192),
            }  # fmt: skip
            return block, 4 * own(192)
        if form == "D":
            block = {
                **chain("branch3x3", (192, one, 1), (320, three, 2)),
                **chain("branch7x7x3", (192, one, 1), (192, _ROW, 1), (192, _COLUMN, 1), (192, three, 2)),
            }
            return block, own(320) + own(192) + width
        # The last layer of two branches is two layers side by side, a row and a column.
        block = {**single("branch1x1", 320), **chain("branch3x3", (384, one, 1))}
        block |= {**chain("branch3x3dbl", (448, one, 1), (384, three, 1)), **single("branch_pool", 192)}
        for branch in ("branch3x3_2", "branch3x3dbl_3"):
            block[f"{branch}a"] = Convolution(own(384), own(384), (1, 3), same=True)
            block[f"{branch}b"] = Convolution(own(384), own(384), (3, 1), same=True)
        return block, own(320) + 4 * own(384) + own(192)

    def _scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width))


class VideoMAEConfig(Config):
    """Sizes of a VideoMAE V2 (Wang et al. 2023) finetuned on classes; the defaults are cd-fvd's ViT-giant."""

    num_classes: int = Field(default=174, gt=0, description="class scores that come out; of Something-Something V2")
    hidden_size: int = Field(default=1408, gt=0, description="channels of a token")
    intermediate_size: int = Field(default=6144, gt=0, description="channels inside the MLPs")
    num_hidden_layers: int = Field(default=40, gt=0, description="transformer blocks")
    num_attention_heads: int = Field(default=16, gt=0, description="heads of the attention")
    patch_size: int = Field(default=14, gt=0, description="side of a patch in pixels")
    tubelet_size: int = Field(default=2, gt=0, description="frames of a token")
    num_frames: int = Field(default=16, gt=0, description="frames of a clip")
    image_size: int = Field(default=224, gt=0, description="side of the frames that the weights were trained on")

    @model_validator(mode="after")
    def _fits(self) -> "VideoMAEConfig":
        for whole, part in (
            ("hidden_size", "num_attention_heads"), ("image_size", "patch_size"), ("num_frames", "tubelet_size"),
        ):  # fmt: skip
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"{whole} {getattr(self, whole)} cannot be split into {part} {getattr(self, part)}")
        return self

    @property
    def is_published(self) -> bool:
        """Whether this is the network of cd-fvd's scores."""
        return self == VideoMAEConfig()

    @property
    def num_tokens(self) -> int:
        """Tokens of a clip."""
        return (self.num_frames // self.tubelet_size) * (self.image_size // self.patch_size) ** 2
