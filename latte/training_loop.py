"""The training loop: batches in, updates, checkpoints and the loss log out. Entered through `latte.steps.train`."""

import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
from mindspore import ops

from latte import batches, device, finite, manifest, memory, optim, signals, training_start
from latte.checkpoints import architectures, resume
from latte.diffusion import Diffusion
from latte.errors import LatteError, UserError
from latte.latents import LatentClips
from latte.models import layers
from latte.models.configs import LatteConfig
from latte.models.latte import Latte
from latte.previews import Previews
from latte.progress import progress
from latte.training_log import Clock, TrainingLog

if TYPE_CHECKING:
    from latte.steps.train import Start, TrainConfig


def train(
    config: "TrainConfig",
    latents: manifest.Manifest,
    uri: str,
    start: "Start | None",
    vae: manifest.Manifest | None = None,
) -> tuple[dict[str, Any], list[manifest.Shard], dict[str, Any]]:
    """Run to `config.steps` under `uri`; see `latte.steps.train.run`. Alone or as one of several workers.

    Returns:
        Last metrics, the kept checkpoints' model and EMA objects, and facts that whoever samples needs.
    """
    model_config = training_start.resolve_model(config.model, latents)
    device.setup(seed=config.seed)
    group = Group(*device.join_workers())
    compute_type = device.compute_type(config.precision)
    _check_memory(config, model_config, group)
    net = Latte(model_config)
    net.set_train(True)
    layers.set_compute_type(net, compute_type)
    if config.recompute:
        for block in net.blocks:
            block.recompute()
    reinitialised = training_start.load(net, start, model_config, latents.config["classes"]) if start else []
    if reinitialised and group.leads:
        print(f"train {config.name}: not taken from init_from, fresh: {'; '.join(reinitialised)}", file=sys.stderr)
    state = optim.make_state(net, group.rank, group.size if config.shard_optimizer else 1)
    facts = {
        "parameters": int(sum(param.size for param in state.params)),
        "model": model_config.model_dump(),
        "diffusion": {"noise_schedule": config.noise_schedule},
        "classes": latents.config["classes"],
        "text": latents.inputs["text"] if model_config.condition == "text" else None,
        "latent_size": latents.config["latent_size"],
        "scaling_factor": latents.config["scaling_factor"],
        "image_size": latents.config["image_size"],
        "vae": latents.inputs["vae"],
        "reinitialised": reinitialised,
    }
    with tempfile.TemporaryDirectory(prefix="latte-latents-") as cache:
        clips = LatentClips(latents, config.cache_dir or cache, round(config.cache_gb * 1e9))
        previews = None
        if config.preview_every and group.leads:
            previews = Previews(
                uri,
                model_config,
                vae,
                clips.scaling_factor,
                config.noise_schedule,
                config.preview_steps,
                config.seed,
                *training_start.preview_conditions(
                    model_config, latents.config["classes"], clips, config.preview_clips
                ),
            )
        metrics = _Loop(config, clips, model_config, net, state, uri, group, previews).run()
    shards = [c.shards[role] for c in resume.committed(uri) for role in ("model", "ema")]
    return metrics, shards, facts


@dataclass(frozen=True)
class Group:
    """The processes that train together, and this one's number among them; the first one writes."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints, logs and previews."""
        return self.rank == 0


def _check_memory(config: "TrainConfig", model: LatteConfig, group: Group) -> None:
    clips = config.batch_size // (config.accumulation * group.size)
    shapes = architectures.latte_shapes(model)
    parameters = sum(math.prod(shape) for name, shape in shapes.items() if name not in ("pos_embed", "temp_embed"))
    shards = group.size if config.shard_optimizer else 1
    need = memory.estimate(model, parameters, clips, group.size, config.recompute, shards)
    memory.check(need, int(os.environ.get("LATTE_WORKERS_PER_NODE", group.size)), device.memory_bytes())


class _Loop:
    """One run of the loop: what it works on, and the steps it takes."""

    def __init__(
        self,
        config: "TrainConfig",
        clips: LatentClips,
        model: LatteConfig,
        net: Latte,
        state: optim.OptimizerState,
        uri: str,
        group: Group,
        previews: Previews | None,
    ) -> None:
        self._config, self._clips, self._net, self._state = config, clips, net, state
        self._uri, self._group, self._previews = uri, group, previews
        self._plan = batches.BatchPlan(
            seed=config.seed,
            batch_size=config.batch_size,
            num_frames=model.num_frames,
            frame_stride=config.frame_stride,
            num_timesteps=1000,
            scaling_factor=clips.scaling_factor,
            num_classes=model.num_classes if model.condition == "class" else 0,
            class_dropout_prob=model.class_dropout_prob,
            text=model.condition == "text",
        )
        self._usable = batches.usable_videos(clips, self._plan)
        self._log = TrainingLog(uri)
        self._writer = resume.BackgroundWriter(uri, config.keep_last, config.keep_every)
        self._scale = optim.LossScale() if config.precision == "fp16" else optim.LossScale(value=1.0)
        diffusion = Diffusion(noise_schedule=config.noise_schedule)
        self._accumulate = make_accumulate(net, diffusion, state, config.accumulation)
        self._update = optim.make_update(state, config.weight_decay)
        self._gather = optim.make_gather(state)
        self._exchange = optim.make_exchange(state, group.size) if group.size > 1 else None
        part = config.batch_size // (config.accumulation * group.size)
        first = group.rank * config.accumulation
        self._items = [range(i * part, (i + 1) * part) for i in range(first, first + config.accumulation)]

    def run(self) -> dict[str, Any]:
        """Take the steps that are left; returns the last metrics."""
        config = self._config
        first = self._restore()
        if first > config.steps:
            raise UserError(f"steps={config.steps}, but the run {config.name} is at step {first} already; ask for more")
        metrics: dict[str, Any] = {**self._log.last, "step": first}  # the log may end before the step that was saved
        steps = range(first, config.steps)
        clock = Clock()
        if first and config.preview_every and first % config.preview_every == 0:
            self._preview(first)  # the run may have ended between this checkpoint and its preview
        bar = progress(total=config.steps, desc="train", unit="step", disable=not self._group.leads)
        came: list[int] = []  # signals that ask to save a checkpoint and leave
        with bar, signals.handled_by(lambda number, _: came.append(number)):
            bar.update(first)
            read = batches.prefetched(self._clips, self._usable, self._plan, steps, self._items)
            for step, parts in enumerate(clock.waiting(read), start=first + 1):
                metrics, asked = self._step(step, parts, bool(came))
                clock.step_done()
                if self._group.leads and (step % config.log_every == 0 or step in (1, config.steps)):
                    self._log.add(metrics, clock.rates())
                shown = f"loss={metrics['loss']:.4f}, grad={metrics['grad_norm']:.3f}, lr={metrics['lr']:.1e}"
                bar.set_postfix_str(shown, refresh=False)
                bar.update()
                if step % config.checkpoint_every == 0 or step == config.steps or asked:
                    self._save(step)
                if config.preview_every and step % config.preview_every == 0:
                    self._preview(step)
                self._writer.check()
                if asked:
                    self._finish_writing()
                    raise LatteError(f"asked to stop: saved step {step}; run the same command again to go on")
            self._finish_writing()
        return {**metrics, **clock.rates()}

    def _step(self, step: int, parts: list[batches.Batch], asked: bool) -> tuple[dict[str, Any], bool]:
        """One update; returns its metrics and whether some worker was asked to stop.

        Raises:
            LatteError: the loss or the gradient is NaN or infinite; nothing was updated.
        """
        config, scale = self._config, self._scale.value
        losses = np.mean([self._forward_backward(batch, i > 0) for i, batch in enumerate(parts)], axis=0)
        if self._exchange is not None:
            # Whether to stop travels with the gradients: all workers leave after the same step.
            averages = self._exchange(np.array([*losses, float(asked)]))
            losses, asked = averages[:3], bool(averages[3] > 0)
        rate = optim.learning_rate_at(step, config.learning_rate, config.lr_schedule, config.warmup_steps, config.steps)
        limit = config.clip_grad_norm if step >= config.clip_start_step else None
        applied = step - self._scale.skipped
        values = optim.scalars(applied, rate, config.weight_decay, config.ema_decay, limit)
        norm = self._update(*values, loss_scale=scale)
        finite = bool(np.isfinite(norm))
        if config.precision == "fp16":
            self._scale.note(finite)
            finite |= scale > 1  # only the scale was too large: this step is left out
        if not (finite and np.isfinite(losses).all()):
            raise self._diverged(step)
        loss, mse, vb = (float(value) for value in losses)
        metrics = {"step": step, "loss": loss, "mse": mse, "vb": vb, "grad_norm": float(norm), "lr": rate}
        if config.precision == "fp16":
            metrics["loss_scale"] = scale
        return metrics, asked

    def _forward_backward(self, batch: batches.Batch, keep: bool) -> list[float]:
        arrays = (batch.x0, batch.t, batch.noise, batch.condition, np.float32(keep), np.float32(self._scale.value))
        return [float(value) for value in self._accumulate(*(ms.Tensor(array) for array in arrays))]

    def _save(self, step: int) -> None:
        """Start publishing a checkpoint.

        Raises:
            LatteError: the update that was just made left NaN or infinity in it; nothing is published.
        """
        if not (self._group.leads or self._state.sharded):
            return
        parts = self._copies()
        if not self._group.leads:
            return
        if any(finite.blemish(tensor) for tensors in parts.values() for tensor in tensors.values()):
            raise self._diverged(step, "a weight or a moment")
        self._log.publish()
        loop = {"log_lines": len(self._log.lines)}
        if self._config.precision == "fp16":
            loop |= asdict(self._scale)
        self._writer.submit(step, parts, loop)

    def _copies(self) -> dict[str, dict[str, np.ndarray]]:
        """Copies of all tensors that a checkpoint holds; the EMA is a whole model, fixed tensors included."""
        model = {param.name: param.asnumpy().copy() for param in self._net.get_parameters()}
        moments = {
            f"{name}.{param}": tensor
            for name in ("exp_avg", "exp_avg_sq")
            for param, tensor in self._gather(getattr(self._state, name)).items()
        }
        return {"model": model, "ema": {**model, **self._gather(self._state.ema)}, "optimizer": moments}

    def _preview(self, step: int) -> None:
        if self._previews is not None or self._state.sharded:
            average = self._gather(self._state.ema)
            if self._previews is not None:
                self._previews.publish(step, average)

    def _finish_writing(self) -> None:
        """Wait for the last checkpoint; the other workers wait for the first, because msrun ends all with one."""
        self._writer.wait()
        if self._exchange is not None:
            self._exchange(np.zeros(4))

    def _restore(self) -> int:
        """Bring everything back to the newest committed checkpoint, or publish the start as step 0; returns the step.

        Workers follow the first one: they may see the store at different moments.
        """
        found = resume.committed(self._uri)
        newest = found[-1].step if found else -1
        if self._exchange is not None:
            said = np.array([newest + 1.0 if self._group.leads else 0.0])
            newest = round(float(self._exchange(said)[0]) * self._group.size) - 1
            found = found if self._group.leads else resume.committed(self._uri)
        if newest < 0:
            if self._group.leads:
                model = {param.name: param.asnumpy() for param in self._net.get_parameters()}
                resume.publish(self._uri, 0, {"model": model, "ema": model}, {"log_lines": 0})
            return 0
        checkpoint = next(checkpoint for checkpoint in found if checkpoint.step == newest)
        own = {param.name: param for param in self._net.get_parameters()}
        roles: list[tuple[str, dict[str, ms.Parameter]]] = [("model", own), ("ema", self._state.averages())]
        if newest:
            roles.append(("optimizer", self._state.moments()))
        for role, params in roles:
            tensors = resume.load_part(checkpoint, role)
            for name, param in params.items():
                ops.assign(param, ms.Tensor(tensors[name]))
        if "value" in checkpoint.state:
            self._scale = optim.LossScale(**{key: checkpoint.state[key] for key in asdict(self._scale)})
        if self._group.leads:
            self._log.restore(checkpoint.state["log_lines"])
        return newest

    def _diverged(self, step: int, what: str = "loss or gradient") -> LatteError:
        self._writer.wait()
        found = resume.committed(self._uri)
        good = found[-1].uri if found else "none"
        everyone = range(self._config.batch_size)
        names = batches.make_batch(self._clips, self._usable, self._plan, step - 1, everyone).videos
        videos = ", ".join(dict.fromkeys(names))
        remedy = "; too much for fp16: use precision=bf16 or fp32" if self._config.precision == "fp16" else ""
        return LatteError(
            f"{what} is NaN or infinite at step {step}; videos {videos}; last good checkpoint {good}{remedy}"
        )


def make_accumulate(
    net: Latte, diffusion: Diffusion, state: optim.OptimizerState, accumulation: int
) -> Callable[..., tuple[ms.Tensor, ...]]:
    """The compiled front of a step: loss and gradients of one micro-batch, gradients added to `state.grads`.

    Returns:
        `accumulate(x0, t, noise, condition, keep, loss_scale) -> (loss, mse, vb)`; arguments as in
        `latte.batches.Batch`; `keep` is 0 in a step's first micro-batch, whose gradients overwrite those of the step
        before, and 1 after it; the gradients are those of the loss times `loss_scale`.
    """
    kind = net.config.condition
    sums = state.grads
    count = len(sums)

    def loss_of(
        x0: ms.Tensor, t: ms.Tensor, noise: ms.Tensor, condition: ms.Tensor, loss_scale: ms.Tensor
    ) -> tuple[ms.Tensor, ...]:
        if kind == "class":
            terms = diffusion.training_losses(net, x0, t, noise, y=condition)
        elif kind == "text":
            terms = diffusion.training_losses(net, x0, t, noise, text=condition)
        else:
            terms = diffusion.training_losses(net, x0, t, noise)
        loss = terms["loss"].mean()
        return loss * loss_scale, loss, terms["mse"].mean(), terms["vb"].mean()

    grad_of = ops.value_and_grad(loss_of, None, state.params, has_aux=True)

    @ms.jit
    def accumulate(
        x0: ms.Tensor, t: ms.Tensor, noise: ms.Tensor, condition: ms.Tensor, keep: ms.Tensor, loss_scale: ms.Tensor
    ) -> tuple[ms.Tensor, ...]:
        (_, loss, mse, vb), grads = grad_of(x0, t, noise, condition, loss_scale)
        for i in range(count):
            if accumulation == 1:
                ops.assign(sums[i], grads[i])
            else:
                ops.assign(sums[i], sums[i] * keep + grads[i] * (1.0 / accumulation))
        return loss, mse, vb

    return accumulate
