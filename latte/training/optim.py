"""AdamW, gradient clipping and the moving average of weights, as functions for one compiled update graph."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte import device

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
BUCKET_BYTES = 256 << 20
_SCALE_DOUBLES_AFTER = 2000


@dataclass(frozen=True)
class OptimizerState:
    """Tensors that live beside the network's parameters, same shape, float32.

    Attributes:
        params: the network's trainable parameters (updated in place).
        grads: for each of them, gradients summed over the micro-batches of a step (the first one overwrites).
        exp_avg: first moment of AdamW, for each of `own`.
        exp_avg_sq: second moment of AdamW, for each of `own`.
        ema: exponential moving average of the parameters, for each of `own`.
        owner: which worker updates each parameter; 0 for all of them where the state is not sharded.
        own: which of `params` this worker updates.
    """

    params: ms.ParameterTuple
    grads: ms.ParameterTuple
    exp_avg: ms.ParameterTuple
    exp_avg_sq: ms.ParameterTuple
    ema: ms.ParameterTuple
    owner: tuple[int, ...]
    own: tuple[int, ...]

    @property
    def sharded(self) -> bool:
        """Whether other workers keep a part of the moments and of the average."""
        return len(self.own) < len(self.params)

    def moments(self) -> dict[str, ms.Parameter]:
        """This worker's moments, named as in a checkpoint: `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`."""
        return {p.name: p for p in (*self.exp_avg, *self.exp_avg_sq)}

    def averages(self) -> dict[str, ms.Parameter]:
        """This worker's part of the average, by the names of the parameters."""
        return {self.params[i].name: average for i, average in zip(self.own, self.ema, strict=True)}

    def restore(self, role: str, tensors: Mapping[str, np.ndarray]) -> None:
        """Take a checkpoint's "ema" or "optimizer"; its "model" is the network's own."""
        mine = {"ema": self.averages, "optimizer": self.moments}
        for name, param in (mine[role]() if role in mine else {}).items():
            ops.assign(param, ms.Tensor(tensors[name]))


def make_state(net: nn.Cell, rank: int = 0, shards: int = 1) -> OptimizerState:
    """Zero moments and gradients, and an average that starts at the weights, for the trainable parameters of `net`.

    Args:
        net: the network.
        rank: number of this worker.
        shards: how many workers share the moments and the average; with more than one this worker keeps its part
            (stage 1 of ZeRO, Rajbhandari et al. 2020, by whole tensors).
    """
    params = net.trainable_params()
    owner = owners([param.size for param in params], shards)
    own = tuple(i for i, worker in enumerate(owner) if worker == rank or shards == 1)
    mine = [params[i] for i in own]
    return OptimizerState(
        params=ms.ParameterTuple(params),
        grads=_twins(params, "grad", zero=True),
        exp_avg=_twins(mine, "exp_avg", zero=True),
        exp_avg_sq=_twins(mine, "exp_avg_sq", zero=True),
        ema=_twins(mine, "ema", zero=False),
        owner=owner,
        own=own,
    )


def owners(sizes: Sequence[int], workers: int) -> tuple[int, ...]:
    """The worker that updates each tensor: the largest tensors first, each to the worker that has least so far."""
    loads, owner = [0] * workers, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owner[i] = loads.index(min(loads))
        loads[owner[i]] += sizes[i]
    return tuple(owner)


def make_update(state: OptimizerState, weight_decay: float) -> Callable[..., float]:
    """The compiled end of a step: clip, AdamW, EMA.

    AdamW is that of torch.optim.AdamW (Loshchilov & Hutter 2019): decoupled decay, moments corrected for their start.
    The correction is folded into step size and epsilon (`scalars`), so that the fused Adam kernel serves.

    Returns:
        `update(step_size, epsilon, decay, ema_decay, max_norm, loss_scale=1.0) -> gradient norm before clipping`, all
        float32 scalars. The gradients are those of the loss times `loss_scale`. Where the norm is NaN or infinite,
        nothing is updated. Where the state is sharded, each worker updates its own parameters and hands them round.
    """
    graphs = _Update(state)
    hand_round = make_hand_round(state.params, state) if state.sharded else None

    def update(
        step_size: ms.Tensor,
        epsilon: ms.Tensor,
        decay: ms.Tensor,
        ema_decay: ms.Tensor,
        max_norm: ms.Tensor,
        loss_scale: float = 1.0,
    ) -> float:
        norm = float(graphs.measure()) / loss_scale
        if not math.isfinite(norm):
            for grad in state.grads:  # infinity times a factor of 0 would be NaN in the next step's sums
                ops.assign(grad, ops.zeros_like(grad))
            return norm
        if weight_decay:
            graphs.shrink(decay)
        # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6 as well.
        clip = min(float(max_norm) / (norm + 1e-6), 1.0)
        graphs.descend(step_size, epsilon, ms.Tensor(clip / loss_scale, ms.float32))
        graphs.average(ema_decay)
        if hand_round is not None:
            hand_round()
        return norm

    return update


class _Update(nn.Cell):
    """The parts of an update, graphs of their own: in one MindSpore may let an in-place operator overtake a reading.

    Each returns a tensor: MindSpore cannot write down a graph that returns nothing.
    """

    def __init__(self, state: OptimizerState) -> None:
        super().__init__(auto_prefix=False)
        self.sums = state.grads
        self.params = ms.ParameterTuple([state.params[i] for i in state.own])
        self.grads = ms.ParameterTuple([state.grads[i] for i in state.own])
        self.exp_avg, self.exp_avg_sq, self.ema = state.exp_avg, state.exp_avg_sq, state.ema
        self.adam, self.dot = ops.Adam(), ops.MatMul(transpose_b=True)
        self.zero, self.beta1, self.beta2 = (ms.Tensor(value, ms.float32) for value in (0.0, BETA1, BETA2))

    @ms.jit
    def measure(self) -> ms.Tensor:
        """The norm of all gradients."""
        squares = self.zero
        for i in range(len(self.sums)):
            row = self.sums[i].reshape(1, -1)
            squares = squares + self.dot(row, row).reshape(())  # several times faster on a CPU than ReduceSum
        return ops.sqrt(squares)

    @ms.jit
    def shrink(self, decay: ms.Tensor) -> ms.Tensor:
        """Decoupled weight decay."""
        for i in range(len(self.params)):
            ops.assign(self.params[i], self.params[i] * decay)
        return decay

    @ms.jit
    def descend(self, step_size: ms.Tensor, epsilon: ms.Tensor, scale: ms.Tensor) -> ms.Tensor:
        """Adam on the gradients times `scale`."""
        for i in range(len(self.params)):
            self.adam(
                self.params[i], self.exp_avg[i], self.exp_avg_sq[i], self.zero, self.zero, step_size, self.beta1,
                self.beta2, epsilon, self.grads[i] * scale,
            )  # fmt: skip
        return scale

    @ms.jit
    def average(self, ema_decay: ms.Tensor) -> ms.Tensor:
        """The moving average of the weights."""
        for i in range(len(self.params)):
            ops.assign(self.ema[i], ema_decay * self.ema[i] + (1.0 - ema_decay) * self.params[i])
        return ema_decay


class GradientStore(nn.Cell):
    """Gradients of a micro-batch into `state.grads`: the first one overwrites, later ones are added."""

    def __init__(self, state: OptimizerState, accumulation: int) -> None:
        super().__init__(auto_prefix=False)
        self.sums, self.accumulation = state.grads, accumulation

    def construct(self, grads: tuple[ms.Tensor, ...], keep: ms.Tensor) -> ms.Tensor:
        """Take gradients in the order of `state.params`; `keep` is 0 in a step's first micro-batch, else 1."""
        for i in range(len(self.sums)):
            if self.accumulation == 1:
                ops.assign(self.sums[i], grads[i])
            else:
                ops.assign(self.sums[i], self.sums[i] * keep + grads[i] * (1.0 / self.accumulation))
        return keep


def make_hand_round(tensors: ms.ParameterTuple, state: OptimizerState) -> Callable[[], None]:
    """The compiled exchange after a sharded update: what each worker has of its own `tensors` replaces all copies.

    Args:
        tensors: one for each of `state.params`, of its shape.
        state: says who owns which.
    """
    sizes = [param.size for param in state.params]
    messages = []
    for root in sorted(set(state.owner)):
        broadcast = device.make_broadcast(root)
        theirs = [i for i, worker in enumerate(state.owner) if worker == root]
        messages += [(broadcast, bucket) for bucket in _buckets(theirs, sizes)]

    @ms.jit
    def hand_round() -> None:
        for broadcast, bucket in messages:
            flat = broadcast(ops.cat([tensors[i].reshape(-1) for i in bucket]))
            at = 0
            for i in bucket:
                ops.assign(tensors[i], flat[at : at + tensors[i].size].reshape(tensors[i].shape))
                at += tensors[i].size

    return hand_round


def make_gather(state: OptimizerState) -> Callable[[ms.ParameterTuple], dict[str, np.ndarray]]:
    """Copies of the moments or of the average, whole, wherever the workers keep them.

    Returns:
        `gather(own) -> copies`, by the names of the parameters; `own` is one of this worker's `exp_avg`, `exp_avg_sq`
        and `ema`. Where the state is sharded all workers must call it together, between two steps: what is gathered
        passes through `state.grads`.
    """
    names = [param.name for param in state.params]
    hand_round = make_hand_round(state.grads, state) if state.sharded else None

    def gather(own: ms.ParameterTuple) -> dict[str, np.ndarray]:
        whole = own
        if hand_round is not None:
            for i, tensor in zip(state.own, own, strict=True):
                ops.assign(state.grads[i], tensor)
            hand_round()
            whole = state.grads
        return {name: tensor.asnumpy().copy() for name, tensor in zip(names, whole, strict=True)}

    return gather


def make_exchange(state: OptimizerState, workers: int) -> Callable[[np.ndarray], np.ndarray]:
    """The compiled exchange between workers: gradients, and a few numbers beside them, become their averages.

    Returns:
        `exchange(numbers) -> averages of numbers`, float32 vectors; `state.grads` are averaged in place. All travels in
        messages of at most `BUCKET_BYTES`, one where the network is small.
    """
    total = device.make_all_reduce()
    sums, share = state.grads, 1.0 / workers
    buckets = _buckets(range(len(sums)), [grad.size for grad in sums])

    @ms.jit
    def exchange(numbers: ms.Tensor) -> ms.Tensor:
        averages = numbers
        for n, bucket in enumerate(buckets):
            parts = [sums[i].reshape(-1) for i in bucket]
            if n == 0:
                parts = [numbers, *parts]
            flat = total(ops.cat(parts)) * share
            at = 0
            if n == 0:
                averages = flat[: numbers.shape[0]]
                at = numbers.shape[0]
            for i in bucket:
                ops.assign(sums[i], flat[at : at + sums[i].size].reshape(sums[i].shape))
                at += sums[i].size
        return averages

    return lambda numbers: exchange(ms.Tensor(numbers.astype(np.float32))).asnumpy()


@dataclass
class LossScale:
    """Dynamic loss scale of float16 training (Micikevicius et al. 2018): halved on overflow, doubled after calm.

    Attributes:
        value: factor on the loss; 1 where nothing is scaled.
        good_steps: updates since the last change.
        skipped: steps without an update so far.
    """

    value: float = 65536.0
    good_steps: int = 0
    skipped: int = 0

    def note(self, finite: bool) -> None:
        """Adapt after a step whose gradient norm was finite or was not."""
        if not finite:
            self.value, self.good_steps, self.skipped = max(1.0, self.value / 2), 0, self.skipped + 1
            return
        self.good_steps += 1
        if self.good_steps == _SCALE_DOUBLES_AFTER:
            self.value, self.good_steps = min(2.0**24, self.value * 2), 0


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


def _buckets(indices: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Tensors that travel in one message of at most `BUCKET_BYTES`, in their order."""
    buckets: list[list[int]] = []
    filled = BUCKET_BYTES
    for i in indices:
        if filled + 4 * sizes[i] > BUCKET_BYTES:
            buckets.append([])
            filled = 0
        buckets[-1].append(i)
        filled += 4 * sizes[i]
    return buckets


def _twins(params: list[ms.Parameter], prefix: str, zero: bool) -> ms.ParameterTuple:
    made = []
    for param in params:
        value = np.zeros(param.shape, np.float32) if zero else param.asnumpy().astype(np.float32)
        made.append(ms.Parameter(ms.Tensor(value), name=f"{prefix}.{param.name}", requires_grad=False))
    return ms.ParameterTuple(made)
