"""The compiled front of a training step."""

from collections.abc import Callable

import mindspore as ms
from mindspore import nn, ops

from latte import operators
from latte.diffusion import Diffusion
from latte.models.latte import Latte
from latte.training import flat, optim


def make_accumulate(
    net: Latte,
    diffusion: Diffusion,
    state: optim.OptimizerState | flat.FlatState,
    accumulation: int,
    jit_level: str = "O0",
) -> Callable[..., tuple[ms.Tensor, ...]]:
    """The compiled front of a step: loss and gradients of one micro-batch, gradients added to `state.grads`.

    Args:
        net: the network.
        diffusion: gives the loss.
        state: where the gradients go.
        accumulation: micro-batches of a step.
        jit_level: of MindSpore's compiler.

    Returns:
        `accumulate(x0, t, noise, condition, keep, loss_scale) -> (loss, mse, vb)`; arguments as in
        `Batch`; `keep` is 0 in a step's first micro-batch, whose gradients overwrite those of the step
        before, and 1 after it; the gradients are those of the loss times `loss_scale`.
    """
    front = _Front(net, diffusion, state, accumulation)
    if isinstance(state, optim.OptimizerState):
        accumulate: Callable[..., tuple[ms.Tensor, ...]] = ms.jit(front.accumulate, jit_level=jit_level)
        return accumulate
    # A graph that writes makes a copy of every weight that it reads: what is kept is written by another one.
    store = flat.FlatGradientStore(state, accumulation)
    flat_gradients = ms.jit(front.flat_gradients, jit_level=jit_level)

    def accumulate_flat(*arguments: ms.Tensor) -> tuple[ms.Tensor, ...]:
        *losses, grads = flat_gradients(*arguments)
        store.keep(grads, arguments[4])
        return tuple(losses)

    return accumulate_flat


class _Front(nn.Cell):
    def __init__(
        self, net: Latte, diffusion: Diffusion, state: optim.OptimizerState | flat.FlatState, accumulation: int
    ) -> None:
        super().__init__(auto_prefix=False)
        self.net, self.diffusion, self.condition = net, diffusion, net.config.condition
        if isinstance(state, optim.OptimizerState):
            self.store = optim.GradientStore(state, accumulation)
        self.grad_of = ops.value_and_grad(self.loss_of, None, state.params, has_aux=True)

    def loss_of(
        self, x0: ms.Tensor, t: ms.Tensor, noise: ms.Tensor, condition: ms.Tensor, loss_scale: ms.Tensor
    ) -> tuple[ms.Tensor, ...]:
        """The scaled loss, and beside it the loss and its two parts."""
        if self.condition == "class":
            terms = self.diffusion.training_losses(self.net, x0, t, noise, y=condition)
        elif self.condition == "text":
            terms = self.diffusion.training_losses(self.net, x0, t, noise, text=condition)
        else:
            terms = self.diffusion.training_losses(self.net, x0, t, noise)
        loss = operators.mean(terms["loss"])
        return loss * loss_scale, loss, operators.mean(terms["mse"]), operators.mean(terms["vb"])

    def accumulate(
        self,
        x0: ms.Tensor,
        t: ms.Tensor,
        noise: ms.Tensor,
        condition: ms.Tensor,
        keep: ms.Tensor,
        loss_scale: ms.Tensor,
    ) -> tuple[ms.Tensor, ...]:
        """Loss and its parts; the gradients are added to those of the step. To be compiled."""
        (_, loss, mse, vb), grads = self.grad_of(x0, t, noise, condition, loss_scale)
        self.store(grads, keep)
        return loss, mse, vb

    def flat_gradients(
        self,
        x0: ms.Tensor,
        t: ms.Tensor,
        noise: ms.Tensor,
        condition: ms.Tensor,
        keep: ms.Tensor,
        loss_scale: ms.Tensor,
    ) -> tuple[ms.Tensor, ...]:
        """As `accumulate`, but the gradients come out end to end."""
        (_, loss, mse, vb), grads = self.grad_of(x0, t, noise, condition, loss_scale)
        return loss, mse, vb, ops.cat([grad.reshape(-1) for grad in grads])
