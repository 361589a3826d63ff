"""The training loop: batches in, updates, checkpoints and the loss log out. Entered through `latte.steps.train`."""

import contextlib
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any

import mindspore as ms
import numpy as np

from latte import device, finite, operators, owners, signals, storage
from latte.data.latents import LatentClips
from latte.diffusion import Diffusion
from latte.errors import LatteError, StoppedByUserError, StorageError, UserError
from latte.facts import DiffusionFacts, LatentsFacts, RunFacts
from latte.models import layers
from latte.models.configs import LatteConfig
from latte.models.latte import Latte
from latte.progress import progress
from latte.storage import manifest, publishing
from latte.terminal import shown
from latte.training import batches, flat, memory, optim, resume, starting
from latte.training import lease as leases
from latte.training.config import Start, TrainConfig
from latte.training.graph import make_accumulate
from latte.training.lease import Lease, LeaseLostError
from latte.training.log import Clock, TrainingLog
from latte.training.previews import Previews
from latte.training.profiling import Trace


@dataclass(frozen=True)
class Trained:
    """A run that has come to its end, its last checkpoint committed and read back.

    Attributes:
        metrics: the last ones.
        shards: the kept checkpoints' model and EMA objects.
        facts: what whoever samples needs.
        num_parameters: numbers in the network.
        lease: held by the worker that leads.
    """

    metrics: dict[str, Any]
    shards: list[manifest.Shard]
    facts: RunFacts
    num_parameters: int
    lease: Lease | None


def train(
    config: TrainConfig,
    latents: manifest.Manifest,
    uri: str,
    start: Start | None,
    vae: manifest.Manifest | None = None,
) -> Trained:
    """Run to `config.steps` under `uri`; see `latte.steps.train.run`. Alone or as one of several workers."""
    model_config = starting.resolve_model(config.model, latents)
    of_latents = LatentsFacts.of(latents)
    starting.prepare_device(config)
    group = Group(*device.join_workers())
    compute_type = device.compute_type(config.precision)
    memory.check_start(config, model_config, group.size)
    net = Latte(model_config)
    net.set_train(True)
    if config.recompute:
        for block in net.blocks:
            block.recompute()
    reinitialised = starting.load(net, start, model_config, of_latents.classes) if start else []
    if reinitialised and group.leads:
        fresh = f"train {config.name}: not taken from init_from, fresh: {'; '.join(reinitialised)}"
        print(shown(fresh), file=sys.stderr)
    updates: Any = flat if device.has_compute_weights() else optim
    state = updates.make_state(net, group.rank, group.size if config.shard_optimizer else 1)
    layers.set_compute_type(net, compute_type)
    with owners.Folder("latents") as cache:
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
                *starting.preview_conditions(model_config, of_latents.classes, clips, config.preview_clips),
            )
        loop = _Loop(config, clips, model_config, net, state, uri, group, previews)
        at = max((checkpoint.step for checkpoint in resume.committed(uri)), default=0)
        if at > config.steps:
            raise UserError(f"steps={config.steps}, but the run {config.name} is at step {at} already; ask for more")
        # Only now: what cannot start must not end another that is at work.
        lease = leases.take(config.name, uri) if group.leads else None
        try:
            metrics = loop.run(lease)
        except LatteError:
            if lease is not None:
                # What failed may have, because somebody else goes on with the run: that is the reason to tell.
                with contextlib.suppress(StorageError):
                    lease.check()
            raise
    facts = RunFacts(
        model=model_config.model_dump(),
        diffusion=DiffusionFacts(noise_schedule=config.noise_schedule),
        classes=of_latents.classes,
        text=latents.inputs["text"] if model_config.condition == "text" else None,
        latent_size=of_latents.latent_size,
        scaling_factor=of_latents.scaling_factor,
        image_size=of_latents.image_size,
        vae=latents.inputs["vae"],
        reinitialised=reinitialised,
        log_sha256=loop.log_sha256,
    )
    if loop.notes:
        facts = facts.model_copy(update={"notes": loop.notes})
    shards = [c.shards[role] for c in resume.committed(uri) for role in ("model", "ema")]
    return Trained(metrics, shards, facts, int(sum(param.size for param in state.params)), lease)


@dataclass(frozen=True)
class Group:
    """The processes that train together, and this one's number among them; the first one writes."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints, logs and previews."""
        return self.rank == 0


class _Loop:
    """One run of the loop: what it works on, and the steps it takes."""

    def __init__(
        self,
        config: TrainConfig,
        clips: LatentClips,
        model: LatteConfig,
        net: Latte,
        state: optim.OptimizerState | flat.FlatState,
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
        self._lease: Lease | None = None
        self._writer: resume.BackgroundWriter | None = None
        self.notes: list[str] = []  # what a person should know of the run
        self._scale = optim.LossScale() if config.precision == "fp16" else optim.LossScale(value=1.0)
        diffusion = Diffusion(noise_schedule=config.noise_schedule)
        self._accumulate = make_accumulate(net, diffusion, state, config.accumulation, config.jit_level)
        updates: Any = flat if isinstance(state, flat.FlatState) else optim
        self._scalars = updates.scalars
        self._update = updates.make_update(state, config.weight_decay)
        self._gather = updates.make_gather(state)
        self._exchange = updates.make_exchange(state, group.size) if group.size > 1 else None
        part = config.batch_size // (config.accumulation * group.size)
        first = group.rank * config.accumulation
        self._items = [range(i * part, (i + 1) * part) for i in range(first, first + config.accumulation)]

    @property
    def log_sha256(self) -> str:
        """SHA-256 of the loss log as it is published."""
        return storage.sha256_bytes(self._log.content)

    def run(self, lease: Lease | None) -> dict[str, Any]:
        """Take the steps that are left; returns the last metrics.

        Args:
            lease: of the worker that leads, which alone writes.

        Raises:
            LeaseLostError: somebody else has taken the run over.
            StorageError: the last checkpoint does not lie in the store as it was written.
            LatteError: asked to stop, numbers that are not finite, or no step that made an update.
        """
        config = self._config
        if lease is not None:
            self._lease = lease
            self._writer = resume.BackgroundWriter(lease, config.keep_last, config.keep_every)
            publishing.clear_unfinished(storage.join(self._uri, "checkpoints"), all_of_them=True)
        with contextlib.ExitStack() as watching:
            return self._run(watching.enter_context(lease.watched()) if lease is not None else [])

    def _run(self, lost: list[LeaseLostError]) -> dict[str, Any]:
        config = self._config
        first = self._restore()
        metrics: dict[str, Any] = {**self._log.last, "step": first}  # the log may end before the step that was saved
        steps = range(first, config.steps)
        clock = Clock()
        trace = Trace(*config.profiled if self._group.leads else (0, 0), self._uri)
        if first and config.preview_every and first % config.preview_every == 0:
            self._preview(first)  # the run may have ended between this checkpoint and its preview
        bar = progress(total=config.steps, desc="train", unit="step", disable=not self._group.leads)
        came: list[int] = []  # signals that ask to save a checkpoint and leave
        with bar, signals.handled_by(lambda number, _: came.append(number)):
            bar.update(first)
            read = batches.prefetched(self._clips, self._usable, self._plan, steps, self._items)
            for step, parts in enumerate(clock.waiting(read), start=first + 1):
                with trace.of(step):
                    metrics, asked = self._step(step, parts, bool(came))
                clock.step_done()
                if self._group.leads and (step % config.log_every == 0 or step in (1, config.steps)):
                    self._log.add(metrics, clock.rates())
                shown = f"loss={metrics['loss']:.4f}, grad={metrics['grad_norm']:.3f}, lr={metrics['lr']:.1e}"
                bar.set_postfix_str(shown, refresh=False)
                bar.update()
                if lost:
                    raise lost[0]
                if step == config.steps:
                    self._check_updates(step)
                if step % config.checkpoint_every == 0 or step == config.steps or asked:
                    self._save(step)
                if config.preview_every and step % config.preview_every == 0:
                    self._preview(step)
                if self._writer is not None:
                    self._writer.check()
                if asked:
                    self._finish_writing()
                    kind = StoppedByUserError if signal.SIGINT in came else LatteError
                    raise kind(f"asked to stop: saved step {step}; run the same command again to go on")
            self._check_updates(config.steps)
            self._finish_writing(config.steps)
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
        values = self._scalars(applied, rate, config.weight_decay, config.ema_decay, limit)
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
        if self._lease is None or self._writer is None:  # not the worker that writes
            return
        if any(finite.blemish(tensor) for tensors in parts.values() for tensor in tensors.values()):
            raise self._diverged(step, "a weight or a moment")
        self._log.publish(self._lease.put)
        self._log.publish_events()
        self._writer.submit(step, parts, self._log.content, self._loop_state())

    def _loop_state(self) -> dict[str, Any]:
        state = {"log_lines": len(self._log.lines)}
        return state | (asdict(self._scale) if self._config.precision == "fp16" else {})

    def _check_updates(self, step: int) -> None:
        """A run that has left out every step has trained nothing.

        Raises:
            LatteError: so it is.
        """
        if self._config.precision == "fp16" and self._scale.skipped >= step:
            raise LatteError(
                f"run {self._config.name}: none of its {step} steps made an update, each one's gradients were beyond "
                "float16 (precision=fp16): use bf16 or fp32"
            )

    def _copies(self) -> dict[str, dict[str, np.ndarray]]:
        """Copies of all tensors that a checkpoint holds; the EMA is a whole model, fixed tensors included."""
        model = flat.weights(self._net, self._state, self._gather)
        moments = {
            f"{name}.{param}": tensor
            for name in ("exp_avg", "exp_avg_sq")
            for param, tensor in self._gather(getattr(self._state, name)).items()
        }
        return {"model": model, "ema": {**model, **self._gather(self._state.ema)}, "optimizer": moments}

    def _preview(self, step: int) -> None:
        if self._previews is not None or self._state.sharded:
            average = self._gather(self._state.ema)
            if self._previews is not None and self._lease is not None:
                self._previews.publish(step, average, self._lease.put)

    def _finish_writing(self, last: int | None = None) -> None:
        """Wait for the last checkpoint, and read that of step `last` back if it is the run's.

        The other workers wait for the first, because msrun ends all with one.
        """
        if self._writer is not None and self._lease is not None:
            self._writer.wait()
            if last is not None:
                self._log.publish(self._lease.put)
                resume.read_back(self._uri, last)
        if self._exchange is not None:
            self._exchange(np.zeros(4))

    def _restore(self) -> int:
        """Bring everything back to the newest sound checkpoint, or publish the start as step 0; returns the step.

        Workers follow the first one: they may see the store at different moments. A checkpoint that is damaged is told
        and passed over, and made again on the way; where all are, training begins again.
        """
        found = resume.committed(self._uri)
        sound = (checkpoint.step for checkpoint in reversed(found) if resume.is_sound(checkpoint))
        newest = next(sound, -1) if self._group.leads else -1
        if self._exchange is not None:
            step = np.array([newest + 1.0 if self._group.leads else 0.0])
            newest = round(float(self._exchange(step)[0]) * self._group.size) - 1
            found = found if self._group.leads else resume.committed(self._uri)
        if newest < 0:
            model = flat.weights(self._net, self._state, self._gather)
            if self._lease is not None:
                resume.publish(self._lease, 0, {"model": model, "ema": model}, b"", {"log_lines": 0})
            return 0
        checkpoint = next(checkpoint for checkpoint in found if checkpoint.step == newest)
        for role in ("model", "ema", *(["optimizer"] if newest else [])):
            tensors = resume.load_part(checkpoint, role)
            if role == "model":
                for param in self._net.get_parameters():
                    operators.assign(param, ms.Tensor(tensors[param.name]))
            self._state.restore(role, tensors)
        if "value" in checkpoint.state:
            self._scale = optim.LossScale(**{key: checkpoint.state[key] for key in asdict(self._scale)})
        if self._group.leads:
            wrong = self._log.restore(resume.read_log(checkpoint), checkpoint.state["log_lines"])
            self.notes += [wrong] if wrong else []
            for note in self.notes:
                print(f"train {self._config.name}: {note}", file=sys.stderr)
        return newest

    def _diverged(self, step: int, what: str = "loss or gradient") -> LatteError:
        if self._writer is not None:
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
