"""Configs of text-to-video networks, without the networks: Latte-1's transformer and the encoder of T5 v1.1."""

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, model_validator

from latte.config import Config, ToldError, build, prefix_of
from latte.errors import UserError

TEXT_TOKENS = 120  # of a caption, the end included, as published
# Keys of a published config.json that say what these classes are anyway; values that make another network are refused.
_LATTE_FIXED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("LatteTransformer3DModel", "LatteT2V"),
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "attention_type": ("default",),
    "double_self_attention": (False,),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-6,),
    "norm_type": ("ada_norm_single",),
    "num_vector_embeds": (None,),
    "only_cross_attention": (False,),
    "upcast_attention": (False,),
    "use_linear_projection": (False,),
}
_LATTE_IGNORED = {"_diffusers_version", "_name_or_path", "dropout", "norm_num_groups", "num_embeds_ada_norm"}
_T5_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("t5",),
    "feed_forward_proj": ("gated-gelu",),
    "dense_act_fn": ("gelu_new",),
    "is_gated_act": (True,),
}


class LatteT2VConfig(Config):
    """Sizes of a text-to-video Latte, in the published config.json's names; the defaults are Latte-1's."""

    num_attention_heads: int = Field(default=16, gt=0, description="attention heads")
    attention_head_dim: int = Field(default=72, gt=0, description="channels of a head")
    in_channels: int = Field(default=4, gt=0, description="channels of the latents")
    out_channels: int = Field(default=8, gt=0, description="channels that come out: noise, and the variance's")
    num_layers: int = Field(default=28, gt=0, description="pairs of blocks, one over space and one over time")
    patch_size: int = Field(default=2, gt=0, description="height and width of a patch, in latents")
    sample_size: int = Field(default=64, gt=0, description="height and width of the latents")
    caption_channels: int = Field(default=4096, gt=0, description="channels of the text encoder's hidden states")
    video_length: int = Field(default=16, gt=0, description="frames of a clip")

    # What every kind that generates answers; see `latte.facts.LatteFacts.latte`.
    condition: ClassVar[Literal["text"]] = "text"
    text_encoder: ClassVar[str] = "t5"
    class_dropout_prob: ClassVar[float] = 0.1
    num_classes: ClassVar[int] = 0

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> "LatteT2VConfig":
        before = prefix_of(info)
        if self.sample_size % self.patch_size:
            fits = math.gcd(self.sample_size, self.patch_size)
            raise ToldError(
                f"{before}patch_size={self.patch_size}: does not divide sample_size {self.sample_size}; "
                f"{before}patch_size={fits} works"
            )
        if self.hidden_size % 4:
            raise ToldError(
                f"{before}attention_head_dim={self.attention_head_dim}: position features need num_attention_heads x "
                f"attention_head_dim divisible by 4; {before}attention_head_dim={-(-self.attention_head_dim // 4) * 4} "
                "works"
            )
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise ToldError(
                f"{before}out_channels={self.out_channels}: neither noise alone nor noise and variance; "
                f"{before}out_channels={2 * self.in_channels} works"
            )
        return self

    @classmethod
    def from_published(cls, values: dict[str, Any], source: str) -> "LatteT2VConfig":
        """Build from the content of a published config.json; `source` is named in errors.

        Raises:
            UserError: an unknown key, a bad value, or a key that asks for another network.
        """
        rest = _without_fixed(values, _LATTE_FIXED, _LATTE_IGNORED, source)
        cross = rest.pop("cross_attention_dim", None)
        made = build(cls, rest, source)
        if cross is not None and cross != made.hidden_size:
            raise UserError(f"{source}: cross_attention_dim: only {made.hidden_size} is supported (got {cross!r})")
        return made

    @property
    def hidden_size(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def input_size(self) -> int:
        """Height and width of the latents."""
        return self.sample_size

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return self.video_length

    @property
    def text_shape(self) -> tuple[int, int]:
        """Tokens and channels of a caption's embedding."""
        return TEXT_TOKENS, self.caption_channels


class T5Config(Config):
    """Sizes of the encoder of a T5 v1.1, in the published config.json's names; the defaults are XXL's."""

    vocab_size: int = Field(default=32128, gt=0, description="tokens that there are")
    d_model: int = Field(default=4096, gt=0, description="channels of a token")
    d_kv: int = Field(default=64, gt=0, description="channels of a head")
    d_ff: int = Field(default=10240, gt=0, description="channels inside the MLPs")
    num_layers: int = Field(default=24, gt=0, description="transformer blocks of the encoder")
    num_heads: int = Field(default=64, gt=0, description="heads of the attention")
    relative_attention_num_buckets: int = Field(default=32, ge=4, description="distances that are told apart")
    relative_attention_max_distance: int = Field(default=128, gt=1, description="distance from which on all are one")
    layer_norm_epsilon: float = Field(default=1e-6, gt=0, description="epsilon of the normalisation")

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> "T5Config":
        buckets, before = self.relative_attention_num_buckets, prefix_of(info)
        if buckets % 4:
            raise ToldError(
                f"{before}relative_attention_num_buckets={buckets}: both directions have as many, half of them exact; "
                f"{before}relative_attention_num_buckets={-(-buckets // 4) * 4} works"
            )
        if self.relative_attention_max_distance <= buckets // 4:
            raise ToldError(
                f"{before}relative_attention_max_distance={self.relative_attention_max_distance}: the buckets reach "
                f"further; {before}relative_attention_max_distance={4 * buckets} works"
            )
        return self

    @property
    def inner_size(self) -> int:
        """Channels of all heads."""
        return self.num_heads * self.d_kv


def t5_settings(values: dict[str, Any], source: str) -> dict[str, Any]:
    """The encoder's settings of a published config.json, most of whose keys are about training or generation.

    Raises:
        UserError: a key asks for another network, T5's first version for one.
    """
    _without_fixed({key: value for key, value in values.items() if key in _T5_FIXED}, _T5_FIXED, set(), source)
    return {key: values[key] for key in T5Config.model_fields if key in values}


def _without_fixed(
    values: dict[str, Any], fixed: dict[str, tuple[Any, ...]], ignored: set[str], source: str
) -> dict[str, Any]:
    rest = {}
    for key, value in values.items():
        if key in fixed:
            if value not in fixed[key]:
                known = " or ".join(map(repr, fixed[key]))
                raise UserError(f"{source}: {key}: only {known} is supported (got {value!r})")
        elif key not in ignored:
            rest[key] = value
    return rest
