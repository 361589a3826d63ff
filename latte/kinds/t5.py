"""The encoder of T5 v1.1 (Raffel et al. 2020, arXiv:1910.10683), as transformers' T5EncoderModel has it."""

from typing import Any

from latte.checkpoints.stored import Refusal
from latte.config import build
from latte.kinds.kind import ModelKind, Settings, Shapes, axis, count
from latte.models.t2v_configs import T5Config, t5_settings

_BLOCK = "encoder.block"
_BIAS = f"{_BLOCK}.0.layer.0.SelfAttention.relative_attention_bias.weight"
_HEAD_CHANNELS = 64  # of every published T5 v1.1
_FIRST_VERSION = f"{_BLOCK}.0.layer.1.DenseReluDense.wi.weight"


def _tell(found: Shapes, given: Settings) -> dict[str, Any]:
    if _FIRST_VERSION in found:
        raise Refusal("a T5 of the first version, whose MLPs have no gate; take T5 v1.1, for example t5-v1_1-xxl")
    return {
        "vocab_size": axis(found, "shared.weight", 2, 0),
        "d_model": axis(found, "shared.weight", 2, 1),
        "d_ff": axis(found, f"{_BLOCK}.0.layer.1.DenseReluDense.wi_0.weight", 2, 0),
        "num_layers": count(found, r"encoder\.block\.(\d+)\."),
        "num_heads": axis(found, _BIAS, 2, 1),
        "relative_attention_num_buckets": axis(found, _BIAS, 2, 0),
    }


def _build(settings: dict[str, Any], source: str) -> T5Config:
    return build(T5Config, {"d_kv": _HEAD_CHANNELS, **settings}, source)


def _rename(name: str) -> tuple[str, str]:
    if name.startswith("decoder.") or name == "lm_head.weight":
        return name, "not part of the encoder"
    if name == "encoder.embed_tokens.weight":
        return name, "shared.weight once more"
    return name, ""


def _settings_beside(values: dict[str, Any]) -> dict[str, Any]:
    return t5_settings(values, "the config.json beside it")


def shapes_of(config: T5Config) -> Shapes:
    """Tensors of the encoder of a T5 v1.1."""
    width, inner, hidden = config.d_model, config.inner_size, config.d_ff
    shapes: Shapes = {"shared.weight": (config.vocab_size, width)}
    for i in range(config.num_layers):
        attention, mlp = f"{_BLOCK}.{i}.layer.0", f"{_BLOCK}.{i}.layer.1"
        for part in ("q", "k", "v"):
            shapes[f"{attention}.SelfAttention.{part}.weight"] = (inner, width)
        shapes[f"{attention}.SelfAttention.o.weight"] = (width, inner)
        if i == 0:
            shapes[_BIAS] = (config.relative_attention_num_buckets, config.num_heads)
        shapes[f"{mlp}.DenseReluDense.wi_0.weight"] = shapes[f"{mlp}.DenseReluDense.wi_1.weight"] = (hidden, width)
        shapes[f"{mlp}.DenseReluDense.wo.weight"] = (width, hidden)
        shapes[f"{attention}.layer_norm.weight"] = shapes[f"{mlp}.layer_norm.weight"] = (width,)
    shapes["encoder.final_layer_norm.weight"] = (width,)
    return shapes


KIND = ModelKind(
    name="t5",
    config=T5Config,
    network="latte.models.t5:T5Encoder",
    marker="encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    tell=_tell,
    shapes=shapes_of,
    rename=_rename,
    build=_build,
    settings_beside=_settings_beside,
    folder="text_encoder",
)
