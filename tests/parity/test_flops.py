"""Operations counted from a config are those that PyTorch's own counter sees in the published networks."""

from typing import Any

import numpy as np
import pytest

from latte.kinds import flops
from latte.models.configs import AutoencoderKLConfig, LatteConfig
from tests import peers

pytestmark = pytest.mark.peers
TWIN = {"input_size", "patch_size", "hidden_size", "depth", "num_heads", "num_frames"}
SMALL = AutoencoderKLConfig(block_out_channels=(8, 16, 24), layers_per_block=1, norm_num_groups=4, latent_channels=3)


def counted(call: Any) -> np.ndarray:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return np.array(counter.get_total_flops(), np.int64)


@pytest.mark.parametrize(("name", "config", "side"), [("small", SMALL, 32), ("sd", AutoencoderKLConfig(), 64)])
def test_of_the_autoencoder(name: str, config: AutoencoderKLConfig, side: int) -> None:
    def ask() -> dict[str, np.ndarray]:
        import torch
        from diffusers import AutoencoderKL

        values = {key: value for key, value in config.to_published().items() if not key.startswith("_")}
        with torch.device("meta"):
            published = AutoencoderKL(**values)
            images = torch.zeros(1, 3, side, side)
            latents = torch.zeros(1, config.latent_channels, side // config.downsampling, side // config.downsampling)
        return {
            "encode": counted(lambda: published.encode(images)),
            "decode": counted(lambda: published.decode(latents)),
        }

    theirs = peers.answer(f"flops-autoencoder-{name}", ask)
    assert flops.vae_encode(config, side) == theirs["encode"].values
    assert flops.vae_decode(config, side) == theirs["decode"].values


@pytest.mark.parametrize("preset", ["Latte-S/2", "Latte-XL/2"])
def test_of_latte(preset: str) -> None:
    config = LatteConfig.preset(preset)

    def ask() -> np.ndarray:
        import torch
        from torch_twin import LatteTwin

        with torch.device("meta"):
            net = LatteTwin(**config.model_dump(include=TWIN))
            inputs = torch.zeros(1, config.num_frames, 4, 32, 32), torch.zeros(1)
            return counted(lambda: net(*inputs))

    assert flops.latte_forward(config) == peers.one(f"flops-{preset.replace('/', '-').lower()}", ask).values
