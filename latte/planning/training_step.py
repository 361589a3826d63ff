"""One step of a worker's training, compiled by MindSpore on zeros: the process of a plan.

python -m latte.planning.training_step '{"model": {…}, "clips": 5, …}'    # in the environment of a dry run
"""

import json
import os
import sys
import time
from typing import Any

import mindspore as ms
import numpy as np

from latte import device
from latte.diffusion import Diffusion
from latte.models import layers
from latte.models.configs import TEXT_SHAPE, LatteConfig
from latte.models.latte import Latte
from latte.planning import dry_run
from latte.training import flat
from latte.training.graph import make_accumulate


def main() -> None:
    """Compile the step that the command line names and say what was planned."""
    settings = json.loads(sys.argv[1])
    ms.set_device("Ascend")
    device.setup(seed=0)
    began = time.perf_counter()
    compile_step(LatteConfig(**settings.pop("model")), **settings)
    dry_run.answer(time.perf_counter() - began)


def compile_step(
    model: LatteConfig,
    clips: int = 2,
    precision: str = "fp32",
    accumulation: int = 1,
    recompute: bool = False,
    shard_optimizer: bool = False,
    weight_decay: float = 0.0,
    noise_schedule: str = "linear",
    jit_level: str = "O0",
) -> None:
    """Loss, gradients, their exchange where there are others, clipping, AdamW, moving average.

    Args:
        model: the network.
        clips: of one part of the step.
        precision: as in training, and so all that follows.
        accumulation: parts of a step.
        recompute: activations are computed again in the backward pass.
        shard_optimizer: workers share the optimizer's state.
        weight_decay: of AdamW.
        noise_schedule: of the diffusion.
        jit_level: of MindSpore's compiler.
    """
    rank, size = _join()
    net = Latte(model)
    net.set_train(True)
    if recompute:
        for block in net.blocks:
            block.recompute()
    state = flat.make_state(net, rank, size if shard_optimizer else 1)
    layers.set_compute_type(net, device.compute_type(precision))
    x0 = np.zeros((clips, model.num_frames, model.in_channels, model.input_size, model.input_size), np.float32)
    condition: dict[str, Any] = {
        "class": np.zeros(clips, np.int32), "text": np.zeros((clips, *TEXT_SHAPE), np.float32), "none": np.float32(0),
    }  # fmt: skip
    arrays = (x0, np.zeros(clips, np.int32), x0, condition[model.condition], np.float32(0), np.float32(1))
    accumulate = make_accumulate(net, Diffusion(noise_schedule=noise_schedule), state, accumulation, jit_level)
    for value in accumulate(*(ms.Tensor(array) for array in arrays)):
        value.asnumpy()
    if size > 1:
        flat.make_exchange(state, size)(np.zeros(4))
    flat.make_update(state, weight_decay)(*flat.scalars(1, 1e-4, weight_decay, 0.9999, 0.1))
    if state.sharded:
        flat.make_gather(state)(state.ema)


def _join() -> tuple[int, int]:
    """Number of this process and how many there are, as `dry_run.run` says."""
    if "RANK_SIZE" not in os.environ:
        return 0, 1
    from mindspore.communication import get_group_size, get_rank, init

    init()
    return get_rank(), get_group_size()


if __name__ == "__main__":
    main()
