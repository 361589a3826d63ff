"""CPU or Ascend: the only place that asks. What a network or a step needs to know about the device is a call here.

The CPU path is what the tests run. The Ascend path uses documented MindSpore interfaces and is untested on hardware.
"""

import os
from collections.abc import Callable
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore._c_expression import disable_multi_thread

from latte import kernel_cache, rng
from latte.errors import UserError

_transposing_matmul = ops.BatchMatMul(transpose_b=True)
_batch_matmul = ops.BatchMatMul()
_softmax = ops.Softmax(axis=-1)
_divide = ops.RealDiv()

# Beyond this tanh is 1 in float32; factors of the highest power first.
_TANH_RANGE = 7.90531110763549805
_TANH_ODD = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_EVEN = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)

# The arithmetic between two products becomes one kernel. Of what else MindSpore would fuse, the compiler's exponential,
# logarithm, power and tanh are good to 1e-4 only, and some of its transposes are wrong.
_FUSED = ("Add", "Maximum", "Minimum", "Mul", "Neg", "RealDiv", "Reshape", "Rsqrt", "Sqrt", "Square", "Sub")

# Flash attention works on rows of 16 elements: heads of 72 channels (Latte-XL) are padded to 80.
_FLASH_HEAD_MULTIPLE = 16


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
    if kernel_cache.available():
        kernel_cache.prepare()
        ms.set_context(enable_graph_kernel=True, graph_kernel_flags=f"--enable_cluster_ops_only={','.join(_FUSED)}")


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
    """What gives every worker the tensor of worker `root`; usable inside `ms.jit`, after `join_workers`."""
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


def spares_products() -> bool:
    """Whether fewer multiplications are worth more passes over memory: on a CPU."""
    return target() == "CPU"


def compute_type(precision: str) -> ms.Type:
    """The type that matrix products take for "fp32", "fp16" or "bf16".

    Raises:
        UserError: this device does not have it.
    """
    if precision == "bf16" and target() == "CPU":
        raise UserError("precision=bf16: MindSpore's matrix products on a CPU do not take it; use fp32")
    return {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}[precision]


def attention(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, scale: float) -> ms.Tensor:
    """Softmax attention, softmax(q k^T * scale) v.

    Args:
        q: queries (B, H, L, D).
        k: keys (B, H, S, D).
        v: values (B, H, S, D).
        scale: factor on the products of queries and keys.

    Returns:
        (B, H, L, D) in the dtype of `q`.
    """
    if target() == "Ascend":
        return _flash_attention(q, k, v, scale)
    weights = _softmax(_transposing_matmul(q * scale, k))  # (B, H, L, S)
    return _batch_matmul(weights, v)  # (B, H, L, D)


def sigmoid(x: ms.Tensor) -> ms.Tensor:
    """1 / (1 + exp(-x)), within 3e-7.

    On a CPU written with arithmetic alone, which becomes part of a fused kernel: 0.5 + 0.5 tanh(x / 2), tanh as the
    quotient of odd and even polynomials of degrees 13 and 6 that Eigen and XLA use.
    """
    if target() == "Ascend":
        return ops.sigmoid(x)
    u = ops.minimum(ops.maximum(x * 0.5, -_TANH_RANGE), _TANH_RANGE)
    square = u * u
    odd, even = square * _TANH_ODD[0] + _TANH_ODD[1], square * _TANH_EVEN[0] + _TANH_EVEN[1]
    for factor in _TANH_ODD[2:]:
        odd = odd * square + factor
    for factor in _TANH_EVEN[2:]:
        even = even * square + factor
    return _divide(u * odd, even) * 0.5 + 0.5


def _flash_attention(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, scale: float) -> ms.Tensor:
    """The fused kernel of Ascend, which takes half precision; untested on hardware."""
    heads, size = q.shape[1], q.shape[3]
    padding = -size % _FLASH_HEAD_MULTIPLE
    parts = [
        ops.pad(part.astype(ms.bfloat16), (0, padding)) if padding else part.astype(ms.bfloat16) for part in (q, k, v)
    ]
    out = ops.flash_attention_score(parts[0], parts[1], parts[2], heads, scalar_value=scale, input_layout="BNSD")
    return out[..., :size].astype(q.dtype)  # (B, H, L, D)
