"""Configs that the networks are built from, without the networks: reading one must not cost the import of MindSpore."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import Field, ValidationInfo, model_validator

from latte.config import Config, ToldError, build, prefix_of
from latte.errors import UserError

# name: (hidden_size, depth, num_heads)
TEXT_SHAPE = (77, 768)  # tokens and channels of a text, as Latte takes them: those of CLIP ViT-L/14
LATTE_SIZES = {"XL": (1152, 28, 16), "L": (1024, 24, 16), "B": (768, 12, 12), "S": (384, 12, 6)}
_PATCHES = (2, 4, 8)
PRESETS = tuple(f"Latte-{size}/{patch}" for size in LATTE_SIZES for patch in _PATCHES)
# Keys of a published config.json that say what this class is anyway, or how the file came about. Values that would
# make another network are refused.
_FIXED_KEYS: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
_IGNORED_KEYS = {"_diffusers_version", "_name_or_path", "_commit_hash", "force_upcast", "_use_default_values"}
_BLOCK_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}

# Inception I3D (Carreira & Zisserman 2017). name: channels of the convolutions b0 | b1a, b1b | b2a, b2b | b3b
_I3D_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def nearest_multiple(value: int, unit: int) -> int:
    """The multiple of `unit` that is nearest to `value`, and at least one `unit`."""
    return max(1, round(value / unit)) * unit


class LatteConfig(Config):
    """Sizes and kind of a Latte; names and defaults are those of the published code."""

    input_size: int = Field(default=32, gt=0, description="height and width of the latents")
    patch_size: int = Field(default=2, gt=0, description="height and width of a patch, in latents")
    in_channels: int = Field(default=4, gt=0, description="channels of the latents")
    hidden_size: int = Field(default=1152, gt=0, description="channels of a token")
    depth: int = Field(default=28, gt=0, description="blocks in all; every second one attends over time")
    num_heads: int = Field(default=16, gt=0, description="attention heads")
    mlp_ratio: float = Field(default=4.0, gt=0, description="hidden channels of the MLP over hidden_size")
    num_frames: int = Field(default=16, gt=0, description="frames of a clip")
    num_classes: int = Field(default=1000, ge=0, description="classes; the label num_classes means none of them")
    class_dropout_prob: float = Field(
        default=0.1, ge=0, le=1, description="share of labels or captions dropped in training"
    )
    learn_sigma: bool = Field(default=True, description="predict the variance too: twice the channels come out")
    condition: Literal["none", "class", "text"] = Field(default="none", description="what the video is to show")

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> "LatteConfig":
        before = prefix_of(info)

        def refuse(key: str, why: str, works: str) -> NoReturn:
            raise ToldError(f"{before}{key}={getattr(self, key)}: {why}; {before}{works} works")

        width = math.lcm(self.num_heads, 4)
        if self.input_size % self.patch_size:
            fits = math.gcd(self.input_size, self.patch_size)
            refuse("patch_size", f"does not divide input_size {self.input_size}", f"patch_size={fits}")
        if self.hidden_size % width:
            why = f"not divisible by num_heads {self.num_heads} and by 4, which position features need"
            refuse("hidden_size", why, f"hidden_size={nearest_multiple(self.hidden_size, width)}")
        if int(self.hidden_size * self.mlp_ratio) < 1:
            refuse("mlp_ratio", f"leaves hidden_size {self.hidden_size} no channel in the MLP", "mlp_ratio=4")
        if self.depth % 2:
            refuse("depth", "odd, but blocks come in pairs, space and time", f"depth={self.depth + 1}")
        if self.condition == "class" and self.num_classes < 1:
            refuse("num_classes", "leaves nothing to condition on", "condition=none")
        return self

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "LatteConfig":
        """One of the 12 published sizes, for example "Latte-XL/2"; `overrides` replace single keys.

        Raises:
            UserError: no such preset.
            pydantic.ValidationError: an override is unknown or does not fit.
        """
        if name not in PRESETS:
            raise UserError(f"preset {name!r} is unknown; known: {', '.join(PRESETS)}")
        size, patch = name.removeprefix("Latte-").split("/")
        hidden_size, depth, num_heads = LATTE_SIZES[size]
        values = {"hidden_size": hidden_size, "depth": depth, "num_heads": num_heads, "patch_size": int(patch)}
        return cls(**{**values, **overrides})

    @classmethod
    def of_settings(cls, given: Mapping[str, Any], known: Mapping[str, Any], prefix: str) -> "LatteConfig":
        """Settings' Latte: `known` of the data, the sizes of a `preset` over it, and single keys over both.

        Args:
            given: a preset and/or keys of this class.
            known: keys that follow from the data; without `input_size` one is taken that fits.
            prefix: of the keys in errors.

        Raises:
            UserError: an unknown preset, or a key that is unknown, bad or does not fit.
        """
        values = {**known, **without_preset(given)}
        if "input_size" not in values and isinstance(values.get("patch_size"), int):
            values["input_size"] = max(1, values["patch_size"]) * cls.model_fields["input_size"].default
        return build(cls, values, prefix=prefix)

    @property
    def text_encoder(self) -> str:
        """Kind of the text encoder whose embeddings condition text takes."""
        return "clip"

    @property
    def text_shape(self) -> tuple[int, int]:
        """Tokens and channels of a text's embedding."""
        return TEXT_SHAPE

    @property
    def sizes(self) -> dict[str, int]:
        """The keys that a preset decides."""
        return self.model_dump(include={"hidden_size", "depth", "num_heads", "patch_size"})

    @property
    def out_channels(self) -> int:
        """Channels that come out: noise, and the variance's interpolation where it is learned."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def label_rows(self) -> int:
        """Rows of the label table: the null label has one only where labels are dropped, as published."""
        return self.num_classes + (1 if self.class_dropout_prob > 0 else 0)

    @property
    def num_patches(self) -> int:
        """Patches of one frame."""
        return (self.input_size // self.patch_size) ** 2


def without_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """Latte's settings with the sizes of `preset` in its place; what is given besides wins over them.

    Raises:
        UserError: no such preset.
    """
    rest = dict(given)
    preset = rest.pop("preset", None)
    return {**LatteConfig.preset(str(preset)).sizes, **rest} if preset else rest


class AutoencoderKLConfig(Config):
    """Sizes of an autoencoder, in the names of the published config.json; the defaults are sd-vae-ft-mse's."""

    in_channels: int = Field(default=3, gt=0, description="channels of the images that go in")
    out_channels: int = Field(default=3, gt=0, description="channels of the images that come out")
    block_out_channels: tuple[int, ...] = Field(
        default=(128, 256, 512, 512), min_length=1, description="channels at each resolution, the finest first"
    )
    layers_per_block: int = Field(default=2, gt=0, description="residual blocks per resolution (decoder: one more)")
    latent_channels: int = Field(default=4, gt=0, description="channels of the latents")
    norm_num_groups: int = Field(default=32, gt=0, description="groups of the group normalisation")
    scaling_factor: float = Field(default=0.18215, gt=0, description="latents are multiplied by it before diffusion")
    sample_size: int | None = Field(default=None, gt=0, description="side in pixels that the weights were trained on")

    @model_validator(mode="after")
    def _fits(self) -> "AutoencoderKLConfig":
        for channels in self.block_out_channels:
            if channels <= 0 or channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels {channels} cannot be split into norm_num_groups {self.norm_num_groups}"
                )
        return self

    @property
    def downsampling(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, path: str | Path) -> "AutoencoderKLConfig":
        """Read a published config.json.

        Raises:
            UserError: no such file, not JSON, an unknown key, or a key that asks for another network.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {getattr(error, 'strerror', None) or 'not JSON'}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path}: expected a JSON object, found a {type(values).__name__}")
        return cls.from_published(values, str(path))

    @classmethod
    def from_published(cls, values: dict[str, Any], source: str) -> "AutoencoderKLConfig":
        """Build from the content of a published config.json; `source` is named in errors.

        Raises:
            UserError: an unknown key, a bad value, or a key that asks for another network.
        """
        rest = {}
        for key, value in values.items():
            if key in _FIXED_KEYS:
                if value != _FIXED_KEYS[key]:
                    raise UserError(f"{source}: {key}: only {_FIXED_KEYS[key]!r} is supported (got {value!r})")
            elif key in _BLOCK_TYPES:
                if not isinstance(value, list) or not value or any(name != _BLOCK_TYPES[key] for name in value):
                    raise UserError(f"{source}: {key}: only {_BLOCK_TYPES[key]} is supported (got {value!r})")
            elif key not in _IGNORED_KEYS:
                rest[key] = value
        sample_size = rest.get("sample_size")
        if isinstance(sample_size, list) and sample_size and all(isinstance(side, int) for side in sample_size):
            rest["sample_size"] = max(sample_size)
        return build(cls, rest, source)

    def to_published(self) -> dict[str, Any]:
        """The content of a config.json that `diffusers` reads too."""
        blocks = {key: [name] * len(self.block_out_channels) for key, name in _BLOCK_TYPES.items()}
        own = {key: value for key, value in self.model_dump(mode="json").items() if value is not None}
        return {"_class_name": "AutoencoderKL", "act_fn": "silu", **blocks, **own}


class ClipTextConfig(Config):
    """Sizes of a CLIP text encoder, in the published config.json's names; the defaults are ViT-L/14's."""

    vocab_size: int = Field(default=49408, gt=0, description="tokens that there are")
    hidden_size: int = Field(default=768, gt=0, description="channels of a token")
    intermediate_size: int = Field(default=3072, gt=0, description="channels inside the MLPs")
    num_hidden_layers: int = Field(default=12, gt=0, description="transformer blocks")
    num_attention_heads: int = Field(default=12, gt=0, description="heads of the attention")
    max_position_embeddings: int = Field(default=77, gt=1, description="tokens of a text, start and end included")
    hidden_act: Literal["quick_gelu"] = Field(default="quick_gelu", description="x * sigmoid(1.702 x)")
    layer_norm_eps: float = Field(default=1e-5, gt=0, description="epsilon of the layer normalisation")

    @model_validator(mode="after")
    def _fits(self) -> "ClipTextConfig":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} cannot be split into num_attention_heads {self.num_attention_heads}"
            )
        return self


_I3D_EPSILON = 1e-5


class I3DConfig(Config):
    """Sizes of an Inception I3D; the defaults are the published ones, which alone make an FVD."""

    num_classes: int = Field(default=400, gt=0, description="class scores that come out")
    width: float = Field(default=1.0, gt=0, le=1, description="share of the published channels in every layer")
    image_size: int = Field(default=224, ge=32, description="side of the frames that the weights were trained on")

    batch_norm_epsilon: float | None = Field(
        default=None, gt=0, lt=1, description="what batch normalisation adds to the variance; null: 1e-5"
    )

    @property
    def is_published(self) -> bool:
        """Whether this is the network of the published scores, but for its epsilon, which is the weights'."""
        return self.model_copy(update={"batch_norm_epsilon": None}) == I3DConfig()

    @property
    def epsilon(self) -> float:
        """Addend of batch normalisation to the variance."""
        return _I3D_EPSILON if self.batch_norm_epsilon is None else self.batch_norm_epsilon

    @property
    def stem_channels(self) -> tuple[int, int]:
        """Channels of the first two layers, and of the third."""
        return self._scaled(64), self._scaled(192)

    @property
    def mixed_channels(self) -> dict[str, tuple[int, ...]]:
        """Channels of each mixed layer's convolutions, in the order b0, b1a, b1b, b2a, b2b, b3b."""
        return {name: tuple(map(self._scaled, channels)) for name, channels in _I3D_MIXED.items()}

    def _scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width))


def concatenated(channels: tuple[int, ...]) -> int:
    """Channels that come out of a mixed layer of I3D: those of its four branches' ends."""
    b0, _, b1b, _, b2b, b3b = channels
    return b0 + b1b + b2b + b3b
