"""Names and shapes of every tensor of the published architectures, and the settings that a file's shapes tell.

Nothing here builds a network: Latte-XL/2 would take 2.7 GB.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from latte.checkpoints.stored import Refusal, show
from latte.config import build
from latte.models.configs import LATTE_SIZES, AutoencoderKLConfig, ClipTextConfig, I3DConfig, LatteConfig, concatenated

Shapes = dict[str, tuple[int, ...]]

# SHA-256 of VideoGPT's i3d_pretrained_400.pt. Other ports have the same names and shapes but normalise with another
# epsilon, which no tensor tells.
PUBLISHED_I3D = ("55095f049e706479d48e221adcdb145b2b9dc930ba28b081ed72367ffaa32343",)
_TEXT_CHANNELS = 77 * 768  # tokens and channels of CLIP's text embedding
_TIMESTEP_CHANNELS = 256
_FIXED = ("pos_embed", "temp_embed")


def describe(kind: str, found: Shapes, given: Mapping[str, Any], source: str) -> tuple[dict[str, Any], Shapes]:
    """Settings of the network that a file is of, and the shapes that its tensors must then have.

    Args:
        kind: "latte", "vae", "i3d" or "clip".
        found: shapes of the file's tensors by the network's names.
        given: settings that are known otherwise; they must not contradict what the shapes tell.
        source: the file, for errors.

    Raises:
        UserError: a given setting is unknown or does not fit.
        Refusal: a tensor that tells a setting is missing or has another number of axes.
    """
    if kind == "latte":
        return _describe_latte(found, given, source)
    if kind == "vae":
        told = _tell_vae(found)
        _check_agreement(told, given)
        vae = AutoencoderKLConfig.from_published({**told, **given}, source)
        return vae.model_dump(mode="json", exclude_none=True), vae_shapes(vae)
    if kind == "clip":
        told = _tell_clip(found)
        heads = told["hidden_size"] // 64  # a guess: every published CLIP has heads of 64 channels
        _check_agreement(told, given)
        clip = build(ClipTextConfig, {"num_attention_heads": heads, **told, **given}, source)
        return clip.model_dump(mode="json"), clip_shapes(clip)
    told = _tell_i3d(found)
    _check_agreement(told, given)
    i3d = build(I3DConfig, {**told, **given}, source)
    return i3d.model_dump(mode="json"), i3d_shapes(i3d)


def _axis(found: Shapes, name: str, axes: int, axis: int) -> int:
    if name not in found:
        raise Refusal(f"tensor {name} is missing")
    if len(found[name]) != axes:
        raise Refusal(f"tensor {name} has shape {found[name]}, expected {axes} axes")
    return found[name][axis]


def _check_agreement(told: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse settings that the tensors' shapes contradict, before a table of names is made from them."""
    for key, value in given.items():
        value = list(value) if isinstance(value, tuple) else value
        if key in told and told[key] != value:
            raise Refusal(f"its tensors say {key} {told[key]}, the settings say {show(value)}")


def _count(found: Shapes, pattern: str) -> int:
    """How many different numbers stand in the names that match."""
    return len({match[1] for match in (re.match(pattern, name) for name in found) if match})


def _describe_latte(found: Shapes, given: Mapping[str, Any], source: str) -> tuple[dict[str, Any], Shapes]:
    hidden = _axis(found, "x_embedder.proj.weight", 4, 0)
    channels, patch = (_axis(found, "x_embedder.proj.weight", 4, axis) for axis in (1, 2))
    if patch < 1 or channels < 1:
        raise Refusal("tensor x_embedder.proj.weight has an empty axis")
    told: dict[str, Any] = {
        "hidden_size": hidden,
        "in_channels": channels,
        "patch_size": patch,
        "input_size": round(_axis(found, "pos_embed", 3, 1) ** 0.5) * patch,
        "num_frames": _axis(found, "temp_embed", 3, 1),
        "depth": _count(found, r"blocks\.(\d+)\."),
        "mlp_ratio": _axis(found, "blocks.0.mlp.fc1.weight", 2, 0) / max(hidden, 1),
        "learn_sigma": _axis(found, "final_layer.linear.weight", 2, 0) == 2 * channels * patch * patch,
        "condition": "none",
    }
    if "y_embedder.embedding_table.weight" in found:
        rows = _axis(found, "y_embedder.embedding_table.weight", 2, 0)
        has_null = given.get("class_dropout_prob", 0.1) != 0
        told |= {"condition": "class", "num_classes": rows - 1 if has_null else rows}
    elif "text_embedding_projection.1.weight" in found:
        told["condition"] = "text"
    given = without_preset(given)
    _check_agreement(told, given)
    settings = {**told, **given}
    # Heads leave no trace in the shapes; the published sizes are told apart by width and depth.
    heads = [size[2] for size in LATTE_SIZES.values() if size[:2] == (hidden, told["depth"])]
    if "num_heads" not in settings:
        if not heads:
            raise Refusal("not one of the published sizes: say how many heads it has with model.num_heads=N")
        settings["num_heads"] = heads[0]
    config = build(LatteConfig, settings, source)
    return config.model_dump(mode="json"), latte_shapes(config)


def without_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """Latte's settings with the sizes of `preset` in its place; what is given besides wins over them.

    Raises:
        UserError: no such preset.
    """
    rest = dict(given)
    return {**LatteConfig.preset(str(rest.pop("preset"))).sizes, **rest} if "preset" in rest else rest


def latte_shapes(config: LatteConfig) -> Shapes:
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
        linear("text_embedding_projection.1", _TEXT_CHANNELS, width)
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


def num_latte_parameters(config: LatteConfig, trained_only: bool = False) -> int:
    """Numbers in a checkpoint of this config; `trained_only` leaves out the fixed position features."""
    shapes = latte_shapes(config)
    return sum(math.prod(shape) for name, shape in shapes.items() if not (trained_only and name in _FIXED))


def latte_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the training arguments in a published checkpoint, those that the tensors' shapes do not tell."""
    return {key: settings[key] for key in ("num_heads", "class_dropout_prob") if key in settings}


def _tell_vae(found: Shapes) -> dict[str, Any]:
    blocks = _count(found, r"encoder\.down_blocks\.(\d+)\.")
    widths = [_axis(found, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 4, 0) for i in range(blocks)]
    return {
        "in_channels": _axis(found, "encoder.conv_in.weight", 4, 1),
        "out_channels": _axis(found, "decoder.conv_out.weight", 4, 0),
        "block_out_channels": widths,
        "layers_per_block": _count(found, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": _axis(found, "decoder.conv_in.weight", 4, 1),
    }


def _tell_clip(found: Shapes) -> dict[str, Any]:
    return {
        "vocab_size": _axis(found, "text_model.embeddings.token_embedding.weight", 2, 0),
        "hidden_size": _axis(found, "text_model.embeddings.token_embedding.weight", 2, 1),
        "max_position_embeddings": _axis(found, "text_model.embeddings.position_embedding.weight", 2, 0),
        "num_hidden_layers": _count(found, r"text_model\.encoder\.layers\.(\d+)\."),
        "intermediate_size": _axis(found, "text_model.encoder.layers.0.mlp.fc1.weight", 2, 0),
    }


def _tell_i3d(found: Shapes) -> dict[str, Any]:
    return {
        "num_classes": _axis(found, "logits.conv3d.weight", 5, 0),
        "width": _axis(found, "Conv3d_1a_7x7.conv3d.weight", 5, 0) / I3DConfig().stem_channels[0],
    }


def vae_shapes(config: AutoencoderKLConfig) -> Shapes:
    """Tensors of diffusers' AutoencoderKL (Rombach et al. 2022)."""
    shapes: Shapes = {}
    widths, latent = config.block_out_channels, config.latent_channels

    def conv(name: str, width_in: int, width_out: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (width_out, width_in, kernel, kernel)
        shapes[f"{name}.bias"] = (width_out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def resnet(name: str, width_in: int, width_out: int) -> None:
        norm(f"{name}.norm1", width_in)
        conv(f"{name}.conv1", width_in, width_out, 3)
        norm(f"{name}.norm2", width_out)
        conv(f"{name}.conv2", width_out, width_out, 3)
        if width_in != width_out:
            conv(f"{name}.conv_shortcut", width_in, width_out, 1)

    def middle(name: str) -> None:
        attention = f"{name}.mid_block.attentions.0"
        norm(f"{attention}.group_norm", widths[-1])
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes[f"{attention}.{part}.weight"] = (widths[-1], widths[-1])
            shapes[f"{attention}.{part}.bias"] = (widths[-1],)
        for i in range(2):
            resnet(f"{name}.mid_block.resnets.{i}", widths[-1], widths[-1])

    def blocks(name: str, order: tuple[int, ...], resnets: int, sampler: str) -> None:
        width = order[0]
        for i, width_out in enumerate(order):
            for j in range(resnets):
                resnet(f"{name}.{i}.resnets.{j}", width, width_out)
                width = width_out
            if i < len(order) - 1:
                conv(f"{name}.{i}.{sampler}.0.conv", width, width, 3)

    conv("encoder.conv_in", config.in_channels, widths[0], 3)
    blocks("encoder.down_blocks", widths, config.layers_per_block, "downsamplers")
    middle("encoder")
    norm("encoder.conv_norm_out", widths[-1])
    conv("encoder.conv_out", widths[-1], 2 * latent, 3)
    conv("decoder.conv_in", latent, widths[-1], 3)
    middle("decoder")
    blocks("decoder.up_blocks", widths[::-1], config.layers_per_block + 1, "upsamplers")
    norm("decoder.conv_norm_out", widths[0])
    conv("decoder.conv_out", widths[0], config.out_channels, 3)
    conv("quant_conv", 2 * latent, 2 * latent, 1)
    conv("post_quant_conv", latent, latent, 1)
    return shapes


def clip_shapes(config: ClipTextConfig) -> Shapes:
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


def i3d_shapes(config: I3DConfig | None = None) -> Shapes:
    """Tensors of Inception I3D, as the PyTorch port that FVD scorers use names them; the published one by default."""
    config = config or I3DConfig()
    shapes: Shapes = {}

    def unit(name: str, width_in: int, width_out: int, kernel: int) -> None:
        shapes[f"{name}.conv3d.weight"] = (width_out, width_in, kernel, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (width_out,)

    first, width = config.stem_channels
    unit("Conv3d_1a_7x7", 3, first, 7)
    unit("Conv3d_2b_1x1", first, first, 1)
    unit("Conv3d_2c_3x3", first, width, 3)
    for mixed, channels in config.mixed_channels.items():
        b0, b1a, b1b, b2a, b2b, b3b = channels
        unit(f"{mixed}.b0", width, b0, 1)
        unit(f"{mixed}.b1a", width, b1a, 1)
        unit(f"{mixed}.b1b", b1a, b1b, 3)
        unit(f"{mixed}.b2a", width, b2a, 1)
        unit(f"{mixed}.b2b", b2a, b2b, 3)
        unit(f"{mixed}.b3b", width, b3b, 1)
        width = concatenated(channels)
    shapes["logits.conv3d.weight"] = (config.num_classes, width, 1, 1, 1)
    shapes["logits.conv3d.bias"] = (config.num_classes,)
    return shapes


def random_i3d(seed: int) -> dict[str, np.ndarray]:
    """Seeded random weights in I3D's published layout, float32: a detector where no Kinetics weights are at hand."""
    rng = np.random.RandomState(seed)
    weights = {}
    for name, shape in sorted(i3d_shapes().items()):
        if name.endswith("running_var"):
            values = 0.5 + rng.random_sample(shape)
        elif name.endswith("bn.weight"):
            values = 0.8 + 0.4 * rng.random_sample(shape)
        elif len(shape) > 1:
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            values = rng.standard_normal(shape) * 0.1
        weights[name] = values.astype(np.float32)
    return weights
