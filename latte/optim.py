"""AdamW, gradient clipping and the moving average of weights, as functions for one compiled update graph."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import nn, ops

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class OptimizerState:
    """Tensors that live beside the network's parameters, one of each per trainable parameter, same shape, float32.

    Attributes:
        params: the network's trainable parameters (updated in place).
        grads: gradients summed over the micro-batches of a step (the first one overwrites).
        exp_avg: first moment of AdamW.
        exp_avg_sq: second moment of AdamW.
        ema: exponential moving average of the parameters.
    """

    params: ms.ParameterTuple
    grads: ms.ParameterTuple
    exp_avg: ms.ParameterTuple
    exp_avg_sq: ms.ParameterTuple
    ema: ms.ParameterTuple

    def named(self) -> dict[str, ms.Parameter]:
        """The moments, as they are stored in a checkpoint: `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`."""
        return {p.name: p for p in (*self.exp_avg, *self.exp_avg_sq)}


def make_state(net: nn.Cell) -> OptimizerState:
    """Zero moments and gradients, and an average that starts at the weights, for the trainable parameters of `net`."""
    params = net.trainable_params()
    return OptimizerState(
        params=ms.ParameterTuple(params),
        grads=_twins(params, "grad", zero=True),
        exp_avg=_twins(params, "exp_avg", zero=True),
        exp_avg_sq=_twins(params, "exp_avg_sq", zero=True),
        ema=_twins(params, "ema", zero=False),
    )


def make_update(
    state: OptimizerState, weight_decay: float, all_reduce_mean: Callable[[ms.Tensor], ms.Tensor] | None = None
) -> Callable[..., ms.Tensor]:
    """The compiled end of a step: average gradients over workers, clip, AdamW, EMA.

    AdamW is that of torch.optim.AdamW (Loshchilov & Hutter 2019): decoupled decay, moments corrected for their start.
    The correction is folded into step size and epsilon (`scalars`), so that the fused Adam kernel serves.

    Returns:
        `update(step_size, epsilon, decay, ema_decay, max_norm) -> gradient norm before clipping`, all float32 scalars.
    """
    adam = ops.Adam()
    zero, beta1, beta2 = (ms.Tensor(value, ms.float32) for value in (0.0, BETA1, BETA2))
    params, sums, exp_avg, exp_avg_sq, ema = state.params, state.grads, state.exp_avg, state.exp_avg_sq, state.ema
    count = len(params)

    # Graphs of their own: inside one graph MindSpore may let an in-place operator overtake another's reading.
    @ms.jit
    def shrink(decay: ms.Tensor) -> None:
        for i in range(count):
            ops.assign(params[i], params[i] * decay)

    @ms.jit
    def descend(step_size: ms.Tensor, epsilon: ms.Tensor, max_norm: ms.Tensor) -> ms.Tensor:
        grads: tuple[ms.Tensor, ...] = ()
        squares = zero
        for i in range(count):
            grad = sums[i] if all_reduce_mean is None else all_reduce_mean(sums[i])
            grads += (grad,)
            squares = squares + (grad * grad).sum()
        norm = ops.sqrt(squares)
        # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6 as well.
        scale = ops.minimum(max_norm / (norm + 1e-6), zero + 1.0)
        for i in range(count):
            adam(params[i], exp_avg[i], exp_avg_sq[i], zero, zero, step_size, beta1, beta2, epsilon, grads[i] * scale)
        return norm

    @ms.jit
    def average(ema_decay: ms.Tensor) -> None:
        for i in range(count):
            ops.assign(ema[i], ema_decay * ema[i] + (1.0 - ema_decay) * params[i])

    def update(
        step_size: ms.Tensor, epsilon: ms.Tensor, decay: ms.Tensor, ema_decay: ms.Tensor, max_norm: ms.Tensor
    ) -> ms.Tensor:
        if weight_decay:
            shrink(decay)
        norm = descend(step_size, epsilon, max_norm)
        average(ema_decay)
        return norm

    return update


def scalars(
    step: int, learning_rate: float, weight_decay: float, ema_decay: float, max_norm: float | None
) -> tuple[ms.Tensor, ...]:
    """The arguments of `update` for the `step`-th update (1-based), computed in float64."""
    correction1, correction2 = 1 - BETA1**step, math.sqrt(1 - BETA2**step)
    values = (
        learning_rate * correction2 / correction1,
        EPSILON * correction2,
        1 - learning_rate * weight_decay,
        ema_decay,
        max_norm if max_norm is not None else np.finfo(np.float32).max,
    )
    return tuple(ms.Tensor(value, ms.float32) for value in values)


def learning_rate_at(step: int, peak: float, schedule: str, warmup_steps: int, total_steps: int) -> float:
    """Rate of the `step`-th update (1-based): linear warm-up to `peak`, then constant, linear or cosine to 0."""
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant":
        return peak
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * (1 - done) if schedule == "linear" else peak * 0.5 * (1 + math.cos(math.pi * done))


def _twins(params: list[ms.Parameter], prefix: str, zero: bool) -> ms.ParameterTuple:
    made = []
    for param in params:
        value = np.zeros(param.shape, np.float32) if zero else param.asnumpy().astype(np.float32)
        made.append(ms.Parameter(ms.Tensor(value), name=f"{prefix}.{param.name}", requires_grad=False))
    return ms.ParameterTuple(made)
