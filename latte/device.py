"""CPU or Ascend: the only place that asks. What a network or a step needs to know about the device is a call here.

The CPU path is what the tests run. The Ascend path uses documented MindSpore interfaces; it is compiled in MindSpore's
dry run (tests/ascend) and untested on hardware.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore._c_expression import disable_multi_thread

from latte import kernel_cache, rng
from latte.errors import UserError

# The arithmetic between two products becomes one kernel. Of what else MindSpore would fuse, the compiler's exponential,
# logarithm, power and tanh are good to 1e-4 only, and some of its transposes are wrong.
_FUSED = ("Add", "Maximum", "Minimum", "Mul", "Neg", "RealDiv", "Reshape", "Rsqrt", "Sqrt", "Square", "Sub")


@cache
def target() -> str:
    """The device of this process, "CPU" or "Ascend": the one the user set, or else the one MindSpore finds."""
    return str(ms.get_context("device_target"))


def setup(seed: int | None = None) -> None:
    """Make results repeatable and fit the threads to the device; calling it again changes nothing but the seed.

    Graphs come from `ms.jit` where speed counts; the rest runs operator by operator, so that an error has a traceback.

    Args:
        seed: fresh weights (see `stream`) and all that MindSpore draws follow from it; None keeps the present one.
    """
    _prepare()
    if seed is not None:
        ms.set_seed(seed)


@cache
def _prepare() -> None:
    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.set_deterministic(True)
    if target() == "CPU":
        _prepare_cpu()
    else:
        _prepare_ascend()


def _prepare_ascend() -> None:
    # MindSpore counts the turns of a loop as calls: handing out the 340 weights of Latte-XL/2 are more than its 1000.
    ms.set_recursion_limit(10_000)
    # fp32 means fp32: not the ten bits of HF32, nor float16 where CANN compiles a kernel itself.
    ms.device_context.ascend.op_precision.matmul_allow_hf32(False)
    ms.device_context.ascend.op_precision.conv_allow_hf32(False)
    ms.device_context.ascend.op_precision.precision_mode("must_keep_origin_dtype")


def _prepare_cpu() -> None:
    # One thread hands out the work, the kernels keep theirs. Measured on 2 shared cores, training a small Latte, 7 of 8
    # pairs of runs were faster so, by up to two times: the default's idle threads spin. Last bits depend on it.
    ms.runtime.dispatch_threads_num(1)
    # That thread computes, too: with as many others as there are cores products are cut into one part too many, and
    # wait for it. On 2 cores matrix products went from 160 to 190 GFLOP/s.
    ms.set_context(runtime_num_threads=max(len(os.sched_getaffinity(0)) - 1, 1))
    # MindSpore hands graphs to another thread and waits in a loop for what comes of it: a core lost, of two. Called
    # without one, a training step of the demo's size takes half the time (benchmarks/models.py).
    disable_multi_thread()
    kernel_cache.prepare()
    if kernel_cache.available():
        ms.set_context(enable_graph_kernel=True, graph_kernel_flags=f"--enable_cluster_ops_only={','.join(_FUSED)}")


@cache
def limit_memory(gigabytes: float) -> None:
    """Let MindSpore take no more than this of an Ascend device's memory; before anything is computed on it."""
    if target() == "Ascend":
        ms.runtime.set_memory(max_size=f"{gigabytes:g}GB")


def set_collective_timeouts(connect_s: int | None, exec_s: int | None) -> None:
    """Tell HCCL how long to wait, before `join_workers`; None leaves what the environment or HCCL itself says."""
    for name, seconds in (("HCCL_CONNECT_TIMEOUT", connect_s), ("HCCL_EXEC_TIMEOUT", exec_s)):
        if seconds is not None:
            os.environ[name] = str(seconds)


def stream(purpose: str, *index: int | str) -> np.random.Generator:
    """Random numbers for (the seed given to `setup`, purpose, index); the seed counts as 0 before one is given."""
    return rng.stream(ms.get_seed() or 0, purpose, *index)


def join_workers() -> tuple[int, int]:
    """Number of this process and how many train together; (0, 1) unless msrun started it.

    The first call joins the others: through MCCL on CPUs, HCCL on Ascend. In msrun's scheduler it returns at the end.
    """
    if "MS_ROLE" not in os.environ:
        return 0, 1
    _prepare()
    return _join()


@cache
def _join() -> tuple[int, int]:
    from mindspore.communication import get_group_size, get_rank, init

    init()
    return get_rank(), get_group_size()


def make_all_reduce() -> ops.AllReduce:
    """The operator that sums a tensor over all workers; usable inside `ms.jit`, after `join_workers`."""
    return ops.AllReduce()


def make_broadcast(root: int) -> Callable[[ms.Tensor], ms.Tensor]:
    """An operator that gives every worker the tensor of worker `root`; usable inside `ms.jit`, after `join_workers`."""
    broadcast = ops.Broadcast(root)

    def call(x: ms.Tensor) -> ms.Tensor:
        return broadcast((x,))[0]

    return call


def wait_for_workers() -> None:
    """Return when every worker has come here; at once in a process that is alone."""
    if "MS_ROLE" in os.environ:
        make_all_reduce()(ms.Tensor(np.zeros(1, np.float32))).asnumpy()


def share_cores(index: int, count: int) -> None:
    """Keep process `index` of `count` on this machine to its share of a CPU's cores; call it before `setup`."""
    cores = sorted(os.sched_getaffinity(0))
    if target() == "CPU" and count <= len(cores):
        os.sched_setaffinity(0, cores[index::count])


def memory_bytes() -> int | None:
    """Memory of the accelerator of this process, None on a CPU; untested on hardware."""
    if target() == "CPU":
        return None
    return int(ms.hal.get_device_properties(0).total_memory)


def make_profiler(folder: str) -> Any:
    """MindSpore's profiler, at work already; `stop()` ends it and writes its files under `folder`."""
    from mindspore.profiler import ProfilerActivity, profile, tensorboard_trace_handler

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.NPU] if target() == "Ascend" else [])
    return profile(activities=activities, on_trace_ready=tensorboard_trace_handler(folder))


def has_compute_weights() -> bool:
    """Whether a network's weights have the type that it computes in, apart from the trained float32 ones: on Ascend."""
    return target() == "Ascend"


def compute_type(precision: str) -> ms.Type:
    """The type that matrix products take for "fp32", "fp16" or "bf16".

    Raises:
        UserError: this device does not have it.
    """
    if precision == "bf16" and target() == "CPU":
        raise UserError("precision=bf16: MindSpore's matrix products on a CPU do not take it; use fp32")
    return {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}[precision]
