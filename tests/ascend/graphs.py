"""The graphs that a user can run, each a function that builds and calls what the product builds and calls.

python -m tests.ascend.graphs NAME '{"preset": …}'    # in the environment that tests/ascend/dry_run.py makes
"""

import json
import sys
import time
from typing import Any

import numpy as np

from tests.ascend import dry_run


def main() -> None:
    """Compile one graph and say what was planned."""
    import mindspore as ms

    from latte import device

    ms.set_device("Ascend")
    device.setup(seed=0)
    began = time.perf_counter()
    GRAPHS[sys.argv[1]](**json.loads(sys.argv[2]))
    dry_run.answer(time.perf_counter() - began)


def latte_forward(precision: str = "fp32", clips: int = 2, guided: bool = False, **model: Any) -> None:
    """One call of the network as sampling makes it."""
    import mindspore as ms

    from latte import device
    from latte.diffusion import _compiled
    from latte.models import layers
    from latte.models.latte import Latte

    net = Latte(_config(model))
    layers.set_compute_type(net, device.compute_type(precision))
    net.set_train(False)
    x, condition = _clips(net.config, clips)
    arguments = {"text" if net.config.condition == "text" else "y": ms.Tensor(condition)} if condition.ndim else {}
    if guided:
        arguments["cfg_scale"] = ms.Tensor(7.0, ms.float32)
    _compiled(net, guided, False)(ms.Tensor(x), ms.Tensor(np.zeros(clips, np.int32)), **arguments)


def train_step(
    precision: str = "fp32",
    clips: int = 2,
    accumulation: int = 1,
    recompute: bool = False,
    shard_optimizer: bool = False,
    weight_decay: float = 0.0,
    update: bool = True,
    **model: Any,
) -> None:
    """Loss, gradients, their exchange where there are others, clipping, AdamW, moving average."""
    import mindspore as ms

    from latte import device
    from latte.diffusion import Diffusion
    from latte.models import layers
    from latte.models.latte import Latte
    from latte.training import flat
    from latte.training.graph import make_accumulate

    rank, size = _join()
    net = Latte(_config(model))
    net.set_train(True)
    if recompute:
        for block in net.blocks:
            block.recompute()
    state = flat.make_state(net, rank, size if shard_optimizer else 1)
    layers.set_compute_type(net, device.compute_type(precision))
    x, condition = _clips(net.config, clips)
    arrays = (x, np.zeros(clips, np.int32), x, condition, np.float32(0), np.float32(1))
    accumulate = make_accumulate(net, Diffusion(), state, accumulation)
    for value in accumulate(*(ms.Tensor(array) for array in arrays)):
        value.asnumpy()
    if size > 1:
        flat.make_exchange(state, size)(np.zeros(4))
    if update:
        flat.make_update(state, weight_decay)(*flat.scalars(1, 1e-4, weight_decay, 0.9999, 0.1))
    if shard_optimizer:
        flat.make_gather(state)(state.ema)


def autoencoder(direction: str, images: int = 1, size: int = 256, **config: Any) -> None:
    """Encoding or decoding images of `size` pixels."""
    import mindspore as ms

    from latte.models.autoencoder_kl import AutoencoderKL
    from latte.models.configs import AutoencoderKLConfig

    net = AutoencoderKL(AutoencoderKLConfig(**config))
    if direction == "encode":
        mean, _ = net.encode(ms.Tensor(np.zeros((images, 3, size, size), np.float32)))
        mean.asnumpy()
        return
    side = size // net.config.downsampling
    net.decode(ms.Tensor(np.zeros((images, net.config.latent_channels, side, side), np.float32))).asnumpy()


def clip_text(texts: int = 2, **config: Any) -> None:
    """Embedding texts."""
    from latte.models.clip_text import ClipTextModel
    from latte.models.configs import ClipTextConfig

    net = ClipTextModel(ClipTextConfig(**config))
    net.encode(np.zeros((texts, net.config.max_position_embeddings), np.int32)).asnumpy()


def i3d(clips: int = 1, num_frames: int = 16, **config: Any) -> None:
    """Class scores of clips."""
    import mindspore as ms

    from latte.models.configs import I3DConfig
    from latte.models.i3d import I3D

    net = I3D(I3DConfig(**config))
    net.set_train(False)
    size = net.config.image_size
    net(ms.Tensor(np.zeros((clips, 3, num_frames, size, size), np.float32))).asnumpy()


def old_kernels() -> None:
    """What the operators of the networks keep away from: a kernel of kind aclop."""
    import mindspore as ms
    from mindspore import nn, ops

    class Halved(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.split = ops.Split(0, 2)

        @ms.jit
        def construct(self, x: ms.Tensor) -> ms.Tensor:
            return self.split(x)[0] * 2.0

    Halved()(ms.Tensor(np.zeros((4, 4), np.float32))).asnumpy()


def _join() -> tuple[int, int]:
    import os

    if "RANK_SIZE" not in os.environ:
        return 0, 1
    from mindspore.communication import get_group_size, get_rank, init

    init()
    return get_rank(), get_group_size()


def _config(model: dict[str, Any]) -> Any:
    from latte.models.configs import LatteConfig

    preset = model.pop("preset", None)
    return LatteConfig.preset(preset, **model) if preset else LatteConfig(**model)


def _clips(config: Any, clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents (N, F, C, H, W) and the condition that goes with them; a number where there is none."""
    from latte.models.configs import TEXT_SHAPE

    x = np.zeros((clips, config.num_frames, config.in_channels, config.input_size, config.input_size), np.float32)
    if config.condition == "class":
        return x, np.zeros(clips, np.int32)
    if config.condition == "text":
        return x, np.zeros((clips, *TEXT_SHAPE), np.float32)
    return x, np.zeros((), np.float32)


GRAPHS = {graph.__name__: graph for graph in (latte_forward, train_step, autoencoder, clip_text, i3d, old_kernels)}

if __name__ == "__main__":
    main()
