"""The autoencoder of Stable Diffusion, as Diffusers' AutoencoderKL has it (Rombach et al. 2022)."""

import re
from typing import Any

from latte.checkpoints.stored import StoredTensor
from latte.kinds.kind import ModelKind, Settings, Shapes, axis, count
from latte.models.configs import AutoencoderKLConfig

# Diffusers before 0.18 named the autoencoder's attention so, some files with 1x1 convolutions as weights.
_OLD = re.compile(r"(.*\.mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.(weight|bias)")
_NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LINEAR = re.compile(r".*\.mid_block\.attentions\.0\.(to_q|to_k|to_v|to_out\.0)\.weight")


def _tell(found: Shapes, given: Settings) -> dict[str, Any]:
    blocks = count(found, r"encoder\.down_blocks\.(\d+)\.")
    widths = [axis(found, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 4, 0) for i in range(blocks)]
    return {
        "in_channels": axis(found, "encoder.conv_in.weight", 4, 1),
        "out_channels": axis(found, "decoder.conv_out.weight", 4, 0),
        "block_out_channels": widths,
        "layers_per_block": count(found, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": axis(found, "decoder.conv_in.weight", 4, 1),
    }


def _rename(name: str) -> tuple[str, str]:
    match = _OLD.fullmatch(name)
    return (f"{match[1]}.{_NEW[match[2]]}.{match[3]}" if match else name), ""


def _reshape(name: str, tensor: StoredTensor) -> StoredTensor:
    return tensor.squeezed(2) if len(tensor.shape) == 4 and _LINEAR.fullmatch(name) else tensor


def to_old_name(name: str) -> str:
    """The name that Diffusers before 0.18 gave a tensor of the autoencoder; the inverse of the renaming."""
    for old, new in _NEW.items():
        name = re.sub(rf"(\.mid_block\.attentions\.0)\.{re.escape(new)}\.", rf"\1.{old}.", name)
    return name


def shapes_of(config: AutoencoderKLConfig) -> Shapes:
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


KIND = ModelKind(
    name="vae",
    config=AutoencoderKLConfig,
    network="latte.models.autoencoder_kl:AutoencoderKL",
    marker="encoder.conv_in.weight",
    tell=_tell,
    shapes=shapes_of,
    rename=_rename,
    reshape=_reshape,
    build=AutoencoderKLConfig.from_published,
    settings_beside=dict,
    folder="vae",
)
