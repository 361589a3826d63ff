"""The optimizer's state on Ascend: every tensor of a kind end to end in one, so that an update is a few kernels.

The network's weights have the type that it computes in; what is trained are float32 weights (`weights`), from which
the network's are copied after every update. The interface is that of `latte.training.optim`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte import device, operators
from latte.training import optim


@dataclass(frozen=True)
class FlatState:
    """Float32 tensors beside the network's, each flat: of size P for all trained numbers, S for those of this worker.

    Attributes:
        params: the network's trainable parameters, in the type that it computes in.
        names: of the parameters, in the order in which they lie in the flat tensors: worker by worker.
        places: for each of `names` its first element and its shape.
        parts: for each worker the first element of its part and how many there are.
        rank: which of the parts is this worker's.
        grads: (P,), gradients summed over the micro-batches of a step.
        weights: (S,), what AdamW updates.
        exp_avg: (S,), first moment of AdamW.
        exp_avg_sq: (S,), second moment of AdamW.
        ema: (S,), exponential moving average of the weights.
    """

    params: ms.ParameterTuple
    names: tuple[str, ...]
    places: Mapping[str, tuple[int, tuple[int, ...]]]
    parts: tuple[tuple[int, int], ...]
    rank: int
    grads: ms.Parameter
    weights: ms.Parameter
    exp_avg: ms.Parameter
    exp_avg_sq: ms.Parameter
    ema: ms.Parameter

    @property
    def sharded(self) -> bool:
        """Whether other workers keep a part of the moments and of the average."""
        return len(self.parts) > 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of each tensor, in the order of `names`."""
        return tuple(math.prod(self.places[name][1]) for name in self.names)

    def restore(self, role: str, tensors: Mapping[str, np.ndarray]) -> None:
        """Take a checkpoint's "model", "ema" or "optimizer"; `tensors` by the names that they have there."""
        kinds = {"model": (("weights", ""),), "ema": (("ema", ""),)}.get(
            role, (("exp_avg", "exp_avg."), ("exp_avg_sq", "exp_avg_sq."))
        )
        first, size = self.parts[self.rank]
        own = [name for name in self.names if first <= self.places[name][0] < first + size]
        for kind, prefix in kinds:
            flat = np.concatenate([np.asarray(tensors[prefix + name], np.float32).reshape(-1) for name in own])
            operators.assign(getattr(self, kind), ms.Tensor(flat))


def make_state(net: nn.Cell, rank: int = 0, shards: int = 1) -> FlatState:
    """Zero moments and gradients, and an average that starts at the weights, for the trainable parameters of `net`.

    Args:
        net: the network, its weights in float32 still.
        rank: number of this worker.
        shards: how many workers share the state (stage 1 of ZeRO, by whole tensors); see `optim.make_state`.
    """
    params = net.trainable_params()
    owner = optim.owners([param.size for param in params], shards)
    order = sorted(range(len(params)), key=lambda i: owner[i])
    places, at = {}, 0
    for i in order:
        places[params[i].name] = (at, tuple(params[i].shape))
        at += params[i].size
    parts: list[tuple[int, int]] = []
    for worker in range(shards):
        mine = [i for i in order if owner[i] == worker]
        first = sum(size for _, size in parts)
        parts.append((first, sum(params[i].size for i in mine)))
    mine = [i for i in order if owner[i] == rank or shards == 1]
    weights = ms.Parameter(
        ms.Tensor.from_numpy(np.concatenate([params[i].asnumpy().reshape(-1) for i in mine])),
        name="flat.weights",
        requires_grad=False,
    )

    def on_device(name: str, value: ms.Tensor) -> ms.Parameter:
        """A parameter that has what the device has computed; MindSpore gives it a copy in the host's memory first."""
        param = ms.Parameter(value, name=f"flat.{name}", requires_grad=False)
        param.assign_value(value)
        return param

    average = on_device("ema", weights * 1.0)  # first: the weights leave the host's memory with it
    return FlatState(
        params=ms.ParameterTuple([params[i] for i in order]),
        names=tuple(params[i].name for i in order),
        places=places,
        parts=tuple(parts),
        rank=rank if shards > 1 else 0,
        grads=on_device("grads", ops.zeros(at, ms.float32)),
        weights=weights,
        exp_avg=on_device("exp_avg", ops.zeros(weights.size, ms.float32)),
        exp_avg_sq=on_device("exp_avg_sq", ops.zeros(weights.size, ms.float32)),
        ema=average,
    )


def scalars(
    step: int, learning_rate: float, weight_decay: float, ema_decay: float, max_norm: float | None
) -> tuple[Any, ...]:
    """The arguments of `update` for the `step`-th update (1-based)."""
    return step, learning_rate, weight_decay, ema_decay, math.inf if max_norm is None else max_norm


def make_update(state: FlatState, _weight_decay: float = 0.0) -> Callable[..., float]:
    """The compiled end of a step: clip, AdamW, EMA, and the network's weights from the updated ones.

    Returns:
        `update(*scalars, loss_scale=1.0) -> gradient norm before clipping`; see `optim.make_update`.
    """
    graphs, hand_out = _Update(state), _Whole(state)

    def update(
        step: int, learning_rate: float, decay: float, ema_decay: float, max_norm: float, loss_scale: float = 1.0
    ) -> float:
        norm = float(graphs.measure().asnumpy()) / loss_scale
        if not math.isfinite(norm):
            operators.assign(state.grads, ms.Tensor(np.zeros(state.grads.shape, np.float32)))  # NaN stays in sums
            return norm
        # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6 as well.
        clip = min(max_norm / (norm + 1e-6), 1.0) / loss_scale
        numbers = operators.adamw_numbers(step, learning_rate, decay)
        graphs.descend(*numbers, ms.Tensor(clip, ms.float32))
        graphs.average(ms.Tensor(1 - ema_decay, ms.float32))
        hand_out.into_params()
        return norm

    return update


class _Update(nn.Cell):
    """The parts of an update, graphs of their own; see `optim`."""

    def __init__(self, state: FlatState) -> None:
        super().__init__(auto_prefix=False)
        self.grads, self.weights, self.ema = state.grads, state.weights, state.ema
        self.exp_avg, self.exp_avg_sq = state.exp_avg, state.exp_avg_sq
        self.first, self.size = state.parts[state.rank]
        self.adamw = operators.AdamW()

    @ms.jit
    def measure(self) -> ms.Tensor:
        """The norm of all gradients."""
        return operators.norm(self.grads)

    @ms.jit
    def descend(self, step: ms.Tensor, rate: Any, decay: Any, scale: ms.Tensor) -> ms.Tensor:
        """AdamW on this worker's gradients times `scale`."""
        grads = operators.piece(self.grads, self.first, self.size) * scale
        self.adamw(self.weights, self.exp_avg, self.exp_avg_sq, grads, step, rate, decay)
        return scale

    @ms.jit
    def average(self, share: ms.Tensor) -> ms.Tensor:
        """The moving average of the weights, of which `share` is new."""
        operators.assign(self.ema, operators.between(self.ema, self.weights, share))
        return share


class _Whole(nn.Cell):
    """A flat tensor of this worker's numbers to those of all, and the network's weights from it."""

    def __init__(self, state: FlatState) -> None:
        super().__init__(auto_prefix=False)
        self.weights, self.grads, self.params = state.weights, state.grads, state.params
        self.sizes, self.shapes = state.sizes, tuple(state.places[name][1] for name in state.names)
        self.messages: list[tuple[Any, bool, int, int]] = []
        if state.sharded:
            for root, (begin, size) in enumerate(state.parts):
                broadcast, mine = device.make_broadcast(root), root == state.rank
                for at in range(0, size, optim.BUCKET_BYTES // 4):
                    count = min(optim.BUCKET_BYTES // 4, size - at)
                    self.messages.append((broadcast, mine, at if mine else begin + at, count))

    def whole(self, own: ms.Tensor) -> ms.Tensor:
        """(S,) -> (P,); what others send passes through tensors of the gradients' shape."""
        if not self.messages:
            return own
        parts = []
        for broadcast, mine, at, count in self.messages:
            parts.append(broadcast(operators.piece(own if mine else self.grads, at, count)))
        return ops.cat(parts)

    @ms.jit
    def gathered(self, own: ms.Tensor) -> ms.Tensor:
        """`whole`, compiled."""
        return self.whole(own) * 1.0

    @ms.jit
    def into_params(self) -> ms.Tensor:
        """Copy the trained weights into the network's, in the type of these."""
        pieces = operators.pieces(self.whole(self.weights), self.sizes)
        for i in range(len(self.params)):
            operators.assign(self.params[i], pieces[i].reshape(self.shapes[i]))
        return self.params[0]


class FlatGradientStore(nn.Cell):
    """Gradients of a micro-batch into `state.grads`: the first one overwrites, later ones are added."""

    def __init__(self, state: FlatState, accumulation: int) -> None:
        super().__init__(auto_prefix=False)
        self.sums, self.accumulation = state.grads, accumulation

    @ms.jit
    def keep(self, grads: ms.Tensor, keep: ms.Tensor) -> ms.Tensor:
        """Take gradients (P,) in the type of the weights; `keep` is 0 in a step's first micro-batch, else 1."""
        if self.accumulation > 1:
            grads = self.sums * keep + grads.astype(ms.float32) * (1.0 / self.accumulation)
        operators.assign(self.sums, grads)
        return keep


def make_gather(state: FlatState) -> Callable[[ms.Parameter], dict[str, np.ndarray]]:
    """Copies of a flat tensor, whole, by the names of the parameters; see `optim.make_gather`."""
    whole = _Whole(state)

    def gather(own: ms.Parameter) -> dict[str, np.ndarray]:
        flat = (whole.gathered(own) if state.sharded else own).asnumpy()
        ends = {name: (first, first + math.prod(shape)) for name, (first, shape) in state.places.items()}
        return {name: flat[slice(*ends[name])].reshape(state.places[name][1]).copy() for name in state.names}

    return gather


def weights(
    net: nn.Cell, state: "optim.OptimizerState | FlatState", gather: Callable[..., dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Copies of a network's tensors, the trained ones in float32; all workers together where they share the state."""
    trained = gather(state.weights) if isinstance(state, FlatState) else {}
    fixed = {param.name: param.asnumpy().copy() for param in net.get_parameters() if param.name not in trained}
    return fixed | trained


def make_exchange(state: FlatState, workers: int) -> Callable[[np.ndarray], np.ndarray]:
    """The compiled exchange between workers; see `optim.make_exchange`."""
    graph = _Exchange(state, workers)
    return lambda numbers: graph.exchange(ms.Tensor(numbers.astype(np.float32))).asnumpy()


class _Exchange(nn.Cell):
    def __init__(self, state: FlatState, workers: int) -> None:
        super().__init__(auto_prefix=False)
        self.grads, self.share, self.total = state.grads, 1.0 / workers, device.make_all_reduce()
        step = optim.BUCKET_BYTES // 4
        self.pieces = [(at, min(step, state.grads.size - at)) for at in range(0, state.grads.size, step)]

    @ms.jit
    def exchange(self, numbers: ms.Tensor) -> ms.Tensor:
        """Average the gradients in place and a few numbers (K,), which travel in a message of their own."""
        parts = []
        for at, count in self.pieces:
            parts.append(self.total(operators.piece(self.grads, at, count)))
        whole = ops.cat(parts) if len(parts) > 1 else parts[0]
        operators.assign(self.grads, whole * self.share)
        return self.total(numbers) * self.share
