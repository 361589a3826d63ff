"""Kernels that a graph launches on Ascend and the memory that it holds, ours beside MindONE's, without an NPU.

    python benchmarks/ascend.py [--case forward-s,train-s,…] [--mindone PYTHON] [--json]

MindSpore's dry run for a 910B compiles each graph and counts (latte/planning/dry_run.py); nothing is computed, so there
are no times. Cases: forward and one training step of Latte-S/2 (2 clips) and Latte-XL/2 (5 clips of 16 frames, latents
of 32x32, bf16); `train-xl-128` is 1 clip of 128 frames with recompute. Ours is the whole step: hybrid loss, clipping,
AdamW, the moving average. MindONE's is its network in its own mixed precision ("O2", flash attention, linear patch
embedding) with a squared error and its own AdamW alone.

--mindone names the Python of an environment that has `mindone`, beside the same MindSpore:

    python -m venv peer
    peer/bin/pip install --no-deps mindone==0.5.0 mindcv ml_dtypes omegaconf antlr4-python3-runtime==4.9.3
    echo "import site; site.addsitedir('$PWD/.venv/lib/python3.11/site-packages')" \
        > peer/lib/python3.11/site-packages/latte.pth

A case takes minutes, most of it MindSpore's own compiling: those of XL/2 run where they are asked for.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

SMALL: dict[str, Any] = {"preset": "Latte-S/2", "clips": 2}
LARGE: dict[str, Any] = {"preset": "Latte-XL/2", "clips": 5}
CASES: dict[str, dict[str, Any]] = {
    "forward-s": SMALL,
    "train-s": SMALL,
    "forward-xl": LARGE,
    "train-xl": LARGE,
    "train-xl-128": {**LARGE, "clips": 1, "num_frames": 128, "recompute": True},
}
DEFAULT = ("forward-s", "train-s")


def main() -> None:
    """Count and print a table; with --json the last line is one JSON object."""
    parser = argparse.ArgumentParser(description="kernels and memory on Ascend, beside MindONE's")
    parser.add_argument("--case", default=",".join(DEFAULT), help="which, separated by commas")
    parser.add_argument("--mindone", help="Python of an environment with mindone; without it only ours is counted")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        _mindone(options.peer)
        return
    unknown = sorted(set(options.case.split(",")) - set(CASES))
    if unknown:
        parser.error(f"--case {unknown[0]}: know {', '.join(CASES)}")
    from latte.planning import dry_run

    if reason := dry_run.reason_against():
        parser.exit(1, f"no dry run here: {reason}\n")
    results = []
    for case in options.case.split(","):
        for side, python in (("ours", sys.executable), ("mindone", options.mindone)):
            if python is not None:
                results.append(_count(case, side, python))
                print(
                    "{case:<13} {side:<8} kernels {launched:>5}   aclnn {opapi:>5}   aclop {acl:>4}   "
                    "casts {casts:>4}   peak {peak_gb:6.2f} GB   compiled in {seconds:.0f} s".format(**results[-1]),
                    flush=True,
                )
    if options.json:
        print(json.dumps({"benchmark": "ascend", "peer": "MindONE 0.5.0", "cases": results}))


def _count(case: str, side: str, python: str) -> dict[str, Any]:
    from latte.planning import dry_run
    from tests.ascend import graphs

    if side == "ours":
        graph = "latte_forward" if case.startswith("forward") else "train_step"
        plan = graphs.count(graph, precision="bf16", **CASES[case])
    else:
        plan = dry_run.run([python, str(Path(__file__).resolve()), "--peer", case])
    return {
        "case": case,
        "side": side,
        "launched": plan.launched,
        "opapi": plan.number("opapi"),
        "acl": plan.number("acl"),
        "rt": plan.number("rt"),
        "casts": plan.casts,
        "peak_gb": plan.peak_bytes / 1e9,
        "seconds": plan.seconds,
    }


def _mindone(case: str) -> None:
    """One graph of MindONE's Latte, in the environment of a dry run."""
    import mindspore as ms
    import numpy as np
    from mindspore import nn, ops

    ms.set_device("Ascend")
    ms.set_context(mode=ms.GRAPH_MODE)
    began = time.perf_counter()
    from mindone.models import latte
    from mindone.utils.amp import auto_mixed_precision

    settings = CASES[case]
    build = {"Latte-S/2": latte.Latte_S_2, "Latte-XL/2": latte.Latte_XL_2}[settings["preset"]]
    frames = settings.get("num_frames", 16)
    net = build(
        input_size=32,
        num_frames=frames,
        condition=None,
        patch_embedder="linear",
        use_recompute=settings.get("recompute", False),
        block_kwargs={"enable_flash_attention": True},
    )
    net = auto_mixed_precision(net, "O2", ms.bfloat16)
    x = ms.Tensor(np.zeros((settings["clips"], frames, 4, 32, 32), np.float32))
    t = ms.Tensor(np.zeros(settings["clips"], np.int32))
    if case.startswith("forward"):
        net.set_train(False)
        net(x, t)
    else:
        from mindone.trainers.optim import create_optimizer

        class Loss(nn.Cell):
            def __init__(self, network: nn.Cell) -> None:
                super().__init__()
                self.network = network

            def construct(self, x: ms.Tensor, t: ms.Tensor) -> ms.Tensor:
                predicted, _ = ops.split(self.network(x, t).astype(ms.float32), 4, axis=2)
                return ((predicted - x) ** 2).mean()

        net.set_train(True)
        optimizer = create_optimizer(net.trainable_params(), name="adamw", lr=1e-4, weight_decay=0.0)
        step = nn.TrainOneStepCell(Loss(net), optimizer)
        step.set_train(True)
        step(x, t)
    ms.runtime.synchronize()
    planned = {"peak_bytes": ms.runtime.max_memory_allocated(), "seconds": time.perf_counter() - began}
    print(f"\nplan: {json.dumps(planned)}", flush=True)
    os._exit(0)  # the destructors of the stand-ins' objects would crash


if __name__ == "__main__":
    main()
