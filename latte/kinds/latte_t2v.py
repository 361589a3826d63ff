"""Latte-1 (`LatteT2V`, Ma et al. 2024), the text-to-video transformer, as diffusers' LatteTransformer3DModel has it."""

import math
from typing import Any

from latte.checkpoints.stored import Refusal
from latte.kinds.kind import ModelKind, Settings, Shapes, axis, count
from latte.models.t2v_configs import LatteT2VConfig

_STEP_FEATURES = 256
_MLP_RATIO = 4
_PATCHES = "pos_embed.proj.weight"
# Tensors of published files that no forward pass reads.
_REST = {
    "caption_projection.y_embedding": "the caption dropped in training; the empty one takes its place",
    "pos_embed.pos_embed": "fixed positions, computed here",
    "temp_pos_embed": "fixed positions, computed here",
}


def _tell(found: Shapes, given: Settings) -> dict[str, Any]:
    channels, patch = (axis(found, _PATCHES, 4, index) for index in (1, 2))
    if patch < 1 or channels < 1:
        raise Refusal(f"tensor {_PATCHES} has an empty axis")
    return {
        "in_channels": channels,
        "patch_size": patch,
        "out_channels": axis(found, "proj_out.weight", 2, 0) // patch**2,
        "num_layers": count(found, r"transformer_blocks\.(\d+)\."),
        "caption_channels": axis(found, "caption_projection.linear_1.weight", 2, 1),
        **_heads(axis(found, _PATCHES, 4, 0), given),
    }


def _heads(width: int, given: Settings) -> dict[str, int]:
    """Heads leave no trace in the shapes; those of the published width are known, others have to be said."""
    known = LatteT2VConfig()
    heads = given.get("num_attention_heads")
    size = given.get("attention_head_dim")
    if heads is None and size is None and width == known.hidden_size:
        heads = known.num_attention_heads
    if heads is None and isinstance(size, int) and size > 0:
        heads = width // size
    if not isinstance(heads, int) or heads < 1:
        raise Refusal(
            "not of the published width: say how many heads it has with model.num_attention_heads=N, or put the "
            "published config.json beside it"
        )
    if width % heads:
        raise Refusal(f"its tensors have {width} channels, which {heads} heads do not divide")
    return {"num_attention_heads": heads, "attention_head_dim": width // heads}


def _rename(name: str) -> tuple[str, str]:
    return name, _REST.get(name, "")


def shapes_of(config: LatteT2VConfig) -> Shapes:
    """Tensors of the text-to-video Latte; positions are computed."""
    width, patch = config.hidden_size, config.patch_size
    shapes: Shapes = {
        _PATCHES: (width, config.in_channels, patch, patch),
        "pos_embed.proj.bias": (width,),
        "scale_shift_table": (2, width),
    }

    def linear(name: str, width_in: int, width_out: int) -> None:
        shapes[f"{name}.weight"] = (width_out, width_in)
        shapes[f"{name}.bias"] = (width_out,)

    for blocks, attentions in (("transformer_blocks", (1, 2)), ("temporal_transformer_blocks", (1,))):
        for i in range(config.num_layers):
            block = f"{blocks}.{i}"
            shapes[f"{block}.scale_shift_table"] = (6, width)
            for number in attentions:
                for part in ("to_q", "to_k", "to_v", "to_out.0"):
                    linear(f"{block}.attn{number}.{part}", width, width)
            linear(f"{block}.ff.net.0.proj", width, _MLP_RATIO * width)
            linear(f"{block}.ff.net.2", _MLP_RATIO * width, width)
    linear("proj_out", width, patch * patch * config.out_channels)
    linear("adaln_single.emb.timestep_embedder.linear_1", _STEP_FEATURES, width)
    linear("adaln_single.emb.timestep_embedder.linear_2", width, width)
    linear("adaln_single.linear", width, 6 * width)
    linear("caption_projection.linear_1", config.caption_channels, width)
    linear("caption_projection.linear_2", width, width)
    return shapes


def num_parameters(config: LatteT2VConfig) -> int:
    """Numbers in a checkpoint of this config."""
    return sum(math.prod(shape) for shape in shapes_of(config).values())


KIND = ModelKind(
    name="latte_t2v",
    config=LatteT2VConfig,
    network="latte.models.latte_t2v:LatteT2V",
    marker="temporal_transformer_blocks.0.attn1.to_q.weight",
    tell=_tell,
    shapes=shapes_of,
    rename=_rename,
    build=LatteT2VConfig.from_published,
    settings_beside=dict,
    folder="transformer",
    generates=True,
)
