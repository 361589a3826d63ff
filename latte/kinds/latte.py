"""Latte (Ma et al. 2024, variant 1): the diffusion transformer."""

import math
from typing import Any

from latte.checkpoints.stored import Refusal
from latte.config import build
from latte.kinds.kind import ModelKind, Settings, Shapes, axis, count
from latte.models.configs import LATTE_SIZES, TEXT_SHAPE, LatteConfig, without_preset

_TIMESTEP_CHANNELS = 256
_FIXED = ("pos_embed", "temp_embed")


def _tell(found: Shapes, given: Settings) -> dict[str, Any]:
    hidden = axis(found, "x_embedder.proj.weight", 4, 0)
    channels, patch = (axis(found, "x_embedder.proj.weight", 4, index) for index in (1, 2))
    if patch < 1 or channels < 1:
        raise Refusal("tensor x_embedder.proj.weight has an empty axis")
    deduced: dict[str, Any] = {
        "hidden_size": hidden,
        "in_channels": channels,
        "patch_size": patch,
        "input_size": round(axis(found, "pos_embed", 3, 1) ** 0.5) * patch,
        "num_frames": axis(found, "temp_embed", 3, 1),
        "depth": count(found, r"blocks\.(\d+)\."),
        "mlp_ratio": axis(found, "blocks.0.mlp.fc1.weight", 2, 0) / max(hidden, 1),
        "learn_sigma": axis(found, "final_layer.linear.weight", 2, 0) == 2 * channels * patch * patch,
        "condition": "none",
    }
    if "y_embedder.embedding_table.weight" in found:
        rows = axis(found, "y_embedder.embedding_table.weight", 2, 0)
        has_null = given.get("class_dropout_prob", 0.1) != 0
        deduced |= {"condition": "class", "num_classes": rows - 1 if has_null else rows}
    elif "text_embedding_projection.1.weight" in found:
        deduced["condition"] = "text"
    return deduced


def _build(settings: dict[str, Any], source: str) -> LatteConfig:
    """Heads leave no trace in the shapes; the published sizes are told apart by width and depth."""
    if "num_heads" not in settings:
        size = (settings["hidden_size"], settings["depth"])
        heads = [each[2] for each in LATTE_SIZES.values() if each[:2] == size]
        if not heads:
            raise Refusal("not one of the published sizes: say how many heads it has with model.num_heads=N")
        settings["num_heads"] = heads[0]
    return build(LatteConfig, settings, source)


def shapes_of(config: LatteConfig) -> Shapes:
    """Tensors of Latte (Ma et al. 2024, variant 1), position embeddings included."""
    width, patch = config.hidden_size, config.patch_size
    inner = int(width * config.mlp_ratio)
    shapes: Shapes = {
        "pos_embed": (1, config.num_patches, width),
        "temp_embed": (1, config.num_frames, width),
        "x_embedder.proj.weight": (width, config.in_channels, patch, patch),
        "x_embedder.proj.bias": (width,),
    }
    if config.condition == "class":
        shapes["y_embedder.embedding_table.weight"] = (config.label_rows, width)

    def linear(name: str, width_in: int, width_out: int) -> None:
        shapes[f"{name}.weight"] = (width_out, width_in)
        shapes[f"{name}.bias"] = (width_out,)

    if config.condition == "text":
        linear("text_embedding_projection.1", math.prod(TEXT_SHAPE), width)
    linear("t_embedder.mlp.0", _TIMESTEP_CHANNELS, width)
    linear("t_embedder.mlp.2", width, width)
    for i in range(config.depth):
        linear(f"blocks.{i}.attn.qkv", width, 3 * width)
        linear(f"blocks.{i}.attn.proj", width, width)
        linear(f"blocks.{i}.mlp.fc1", width, inner)
        linear(f"blocks.{i}.mlp.fc2", inner, width)
        linear(f"blocks.{i}.adaLN_modulation.1", width, 6 * width)
    linear("final_layer.linear", width, patch * patch * config.out_channels)
    linear("final_layer.adaLN_modulation.1", width, 2 * width)
    return shapes


def num_parameters(config: LatteConfig, trained_only: bool = False) -> int:
    """Numbers in a checkpoint of this config; `trained_only` leaves out the fixed position features."""
    shapes = trained_shapes(config) if trained_only else shapes_of(config)
    return sum(map(math.prod, shapes.values()))


def trained_shapes(config: LatteConfig) -> Shapes:
    """Tensors of a Latte without the fixed position features."""
    return {name: shape for name, shape in shapes_of(config).items() if name not in _FIXED}


def _own_settings(settings: Settings) -> dict[str, Any]:
    """Of the training arguments in a published checkpoint, those that the tensors' shapes do not tell."""
    return {key: settings[key] for key in ("num_heads", "class_dropout_prob") if key in settings}


KIND = ModelKind(
    name="latte",
    config=LatteConfig,
    network="latte.models.latte:Latte",
    marker="x_embedder.proj.weight",
    tell=_tell,
    shapes=shapes_of,
    build=_build,
    expand=without_preset,
    own_settings=_own_settings,
    generates=True,
)
