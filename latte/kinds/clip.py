"""The text encoder of CLIP (Radford et al. 2021), without the projection to the joint space."""

from typing import Any

from latte.config import build
from latte.kinds.kind import ModelKind, Settings, Shapes, axis, count
from latte.models.configs import ClipTextConfig

# Parts of a whole CLIP that its text encoder does without.
_REST = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")
_HEAD_CHANNELS = 64  # of every published CLIP


def _tell(found: Shapes, given: Settings) -> dict[str, Any]:
    return {
        "vocab_size": axis(found, "text_model.embeddings.token_embedding.weight", 2, 0),
        "hidden_size": axis(found, "text_model.embeddings.token_embedding.weight", 2, 1),
        "max_position_embeddings": axis(found, "text_model.embeddings.position_embedding.weight", 2, 0),
        "num_hidden_layers": count(found, r"text_model\.encoder\.layers\.(\d+)\."),
        "intermediate_size": axis(found, "text_model.encoder.layers.0.mlp.fc1.weight", 2, 0),
    }


def _build(settings: dict[str, Any], source: str) -> ClipTextConfig:
    """Heads leave no trace in the shapes."""
    heads = settings["hidden_size"] // _HEAD_CHANNELS
    return build(ClipTextConfig, {"num_attention_heads": heads, **settings}, source)


def _rename(name: str) -> tuple[str, str]:
    if name.startswith(_REST):
        return name, "not part of the text encoder"
    if name.endswith("embeddings.position_ids"):
        return name, "0, 1, 2, …"
    # transformers 5 dropped the prefix from the text encoder's own names.
    return name if name.startswith("text_model.") else f"text_model.{name}", ""


def _settings_beside(values: dict[str, Any]) -> dict[str, Any]:
    """A whole CLIP keeps the text encoder's settings in a section; most are about training or generation."""
    values = values["text_config"] if isinstance(values.get("text_config"), dict) else values
    return {key: values[key] for key in ClipTextConfig.model_fields if key in values}


def shapes_of(config: ClipTextConfig) -> Shapes:
    """Tensors of a CLIP text encoder (Radford et al. 2021), without the projection to the joint space."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes: Shapes = {
        "text_model.embeddings.token_embedding.weight": (config.vocab_size, width),
        "text_model.embeddings.position_embedding.weight": (config.max_position_embeddings, width),
    }
    for i in range(config.num_hidden_layers):
        layer = f"text_model.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{layer}.self_attn.{part}.weight"] = (width, width)
            shapes[f"{layer}.self_attn.{part}.bias"] = (width,)
        for part, rows, columns in (("fc1", inner, width), ("fc2", width, inner)):
            shapes[f"{layer}.mlp.{part}.weight"] = (rows, columns)
            shapes[f"{layer}.mlp.{part}.bias"] = (rows,)
        for part in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}.{part}.weight"] = shapes[f"{layer}.{part}.bias"] = (width,)
    shapes["text_model.final_layer_norm.weight"] = shapes["text_model.final_layer_norm.bias"] = (width,)
    return shapes


KIND = ModelKind(
    name="clip",
    config=ClipTextConfig,
    network="latte.models.clip_text:ClipTextModel",
    marker="text_model.embeddings.token_embedding.weight",
    tell=_tell,
    shapes=shapes_of,
    rename=_rename,
    build=_build,
    settings_beside=_settings_beside,
)
