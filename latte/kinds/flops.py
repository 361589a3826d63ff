"""Operations of a network's matrix products, counted from its config alone: what a step costs on any device.

A multiply-add counts as two operations, as the data sheets of accelerators count. Norms, activations and the arithmetic
between products are left out: under 1 % of a Latte's operations, though not of its time.
"""

import math
import re

from latte.kinds import latte, vae
from latte.models.configs import AutoencoderKLConfig, LatteConfig

# A backward pass forms two products for each of the forward pass: the gradients of its inputs and of its weights.
_BACKWARD = 2


def latte_forward(config: LatteConfig, clips: int = 1) -> int:
    """Operations of one forward pass of a Latte (Ma et al. 2024, variant 1) over `clips` clips."""
    frames, patches, width = config.num_frames, config.num_patches, config.hidden_size
    tokens = frames * patches
    macs = 0
    for name, shape in latte.shapes_of(config).items():
        # The patches' projection is a convolution without overlap: a product of each patch with the weight.
        if len(shape) in (2, 4) and name.endswith(".weight") and not name.startswith("y_embedder"):
            of_a_token = name.startswith("x_embedder") or re.search(r"\.(qkv|proj|fc1|fc2|linear)\.weight$", name)
            macs += math.prod(shape) * (tokens if of_a_token else 1)
    # Queries by keys, weights by values; one half of the blocks looks at the patches of a frame, the other at frames.
    macs += config.depth * tokens * width * (patches + frames)
    return 2 * clips * macs


def training_step(config: LatteConfig, clips: int, recompute: bool = False) -> int:
    """Operations of one training step of one worker: forward and backward; with `recompute` the blocks forward again.

    Args:
        config: the Latte.
        clips: clips of this worker, over all micro-batches.
        recompute: as in training.
    """
    return latte_forward(config, clips) * (1 + _BACKWARD + (1 if recompute else 0))


def vae_encode(config: AutoencoderKLConfig, side: int, images: int = 1) -> int:
    """Operations of encoding square images of `side` pixels by an AutoencoderKL (Rombach et al. 2022)."""
    return 2 * images * _vae_macs(config, "encoder", side)


def vae_decode(config: AutoencoderKLConfig, side: int, images: int = 1) -> int:
    """Operations of decoding square images of `side` pixels by an AutoencoderKL."""
    return 2 * images * _vae_macs(config, "decoder", side)


def _vae_macs(config: AutoencoderKLConfig, half: str, side: int) -> int:
    levels = len(config.block_out_channels)
    finest, coarsest = side**2, (side // config.downsampling) ** 2
    own = {"encoder": "quant_conv.", "decoder": "post_quant_conv."}[half]
    macs = 2 * coarsest**2 * config.block_out_channels[-1]  # the attention of the middle: q k^T, and weights by v
    for name, shape in vae.shapes_of(config).items():
        if len(shape) < 2 or not name.startswith((f"{half}.", own)):
            continue
        places = coarsest
        if block := re.search(r"_blocks\.(\d+)\.", name):
            # A sampler's convolution works at the size that comes out.
            level = int(block[1]) + (1 if "samplers." in name else 0)
            places = (side >> (level if half == "encoder" else levels - 1 - level)) ** 2
        elif name.startswith(("encoder.conv_in.", "decoder.conv_out.")):
            places = finest
        macs += math.prod(shape) * places
    return macs
