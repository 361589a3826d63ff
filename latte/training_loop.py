"""The training loop: batches in, updates, checkpoints and the loss log out. Entered through `latte.steps.train`."""

import signal
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte import batches, checkpoints, device, manifest, optim
from latte.checkpoints import resume
from latte.config import build
from latte.diffusion import Diffusion
from latte.errors import LatteError, UserError
from latte.latents import LatentClips
from latte.models.latte import Latte, LatteConfig
from latte.progress import progress
from latte.training_log import TrainingLog

if TYPE_CHECKING:
    from latte.steps.train import TrainConfig

# What a preset decides; the rest follows from the latents or from the user.
_SIZE_KEYS = {"hidden_size", "depth", "num_heads", "patch_size"}
# Tensors whose shape follows from the classes, the frames or the latents' size, not from the architecture.
_MAY_DIFFER = ("y_embedder.", "text_embedding_projection.", "temp_embed", "pos_embed")


def train(
    config: "TrainConfig", latents: manifest.Manifest, uri: str, start: str | None
) -> tuple[dict[str, Any], list[manifest.Shard], dict[str, Any]]:
    """Run to `config.steps` under `uri`; see `latte.steps.train.run`.

    Returns:
        Last metrics, the kept checkpoints' model and EMA objects, and facts that whoever samples needs.
    """
    model_config = resolve_model(config.model, latents)
    device.setup(seed=config.seed)
    net = Latte(model_config)
    net.set_train(True)
    reinitialised = _load_start(net, start) if start else []
    state = optim.make_state(net)
    facts = {
        "parameters": int(sum(param.size for param in state.params)),
        "model": model_config.model_dump(),
        "diffusion": {"noise_schedule": config.noise_schedule},
        "classes": latents.config["classes"],
        "latent_size": latents.config["latent_size"],
        "scaling_factor": latents.config["scaling_factor"],
        "image_size": latents.config["image_size"],
        "vae": latents.inputs["vae"],
        "reinitialised": reinitialised,
    }
    with tempfile.TemporaryDirectory(prefix="latte-latents-") as cache:
        clips = LatentClips(latents, config.cache_dir or cache)
        metrics = _loop(config, clips, model_config, net, state, uri)
    shards = [c.shards[role] for c in resume.committed(uri) for role in ("model", "ema")]
    return metrics, shards, facts


def resolve_model(given: dict[str, Any], latents: manifest.Manifest) -> LatteConfig:
    """The network's config: what the user set, sizes and classes from the latents where nothing is set.

    Raises:
        UserError: a key is unknown or bad, or contradicts the latents.
    """
    classes = latents.config["classes"]
    from_latents = {
        "input_size": latents.config["latent_size"],
        "in_channels": latents.config["latent_channels"],
        "condition": "class" if classes else "none",
        "num_classes": len(classes),
    }
    values = {**from_latents, **given}
    preset = values.pop("preset", None)
    sizes = LatteConfig.preset(preset).model_dump(include=_SIZE_KEYS) if preset else {}
    model = build(LatteConfig, {**sizes, **values}, "model")
    for key in ("input_size", "in_channels"):
        if getattr(model, key) != from_latents[key]:
            raise UserError(
                f"model.{key}={getattr(model, key)}, but the latents of {latents.name} have {key}={from_latents[key]}"
            )
    if model.condition == "class" and model.num_classes < len(classes):
        raise UserError(f"model.num_classes={model.num_classes}, but the latents have {len(classes)} classes")
    if model.condition == "text":
        raise UserError("model.condition=text: the latents carry no text embeddings; use none or class")
    return model


def _load_start(net: nn.Cell, start: str) -> list[str]:
    """Load weights of the same architecture; return the names of what was left at its fresh value.

    Raises:
        UserError: a tensor is of another architecture. Only what follows from the number of classes, the number of
            frames and the latents' size may differ or be missing.
    """
    given = checkpoints.read(start)
    own = {param.name: param for param in net.get_parameters()}
    unknown = sorted(set(given) - set(own))
    if unknown:
        raise UserError(f"init_from {start}: tensor {unknown[0]} ({len(unknown)} in all) is not in this model")
    fresh = []
    for name, param in own.items():
        if name in given and given[name].shape == tuple(param.shape):
            param.set_data(ms.Tensor(np.array(given[name], np.float32)))
        elif name.startswith(_MAY_DIFFER):
            fresh.append(name)
        else:
            found = f"has shape {given[name].shape}" if name in given else "is missing"
            raise UserError(f"init_from {start}: tensor {name} {found}, this model has {tuple(param.shape)}")
    return fresh


def _loop(
    config: "TrainConfig",
    clips: LatentClips,
    model_config: LatteConfig,
    net: Latte,
    state: optim.OptimizerState,
    uri: str,
) -> dict[str, Any]:
    plan = batches.BatchPlan(
        seed=config.seed,
        batch_size=config.batch_size,
        num_frames=model_config.num_frames,
        frame_stride=config.frame_stride,
        num_timesteps=1000,
        scaling_factor=clips.scaling_factor,
        num_classes=model_config.num_classes if model_config.condition == "class" else 0,
        class_dropout_prob=model_config.class_dropout_prob,
    )
    usable = batches.usable_videos(clips, plan)
    log = TrainingLog(uri)
    first = _restore(uri, net, state, log)
    if first is None:
        first = 0
        resume.publish(uri, 0, _copies(net, state, roles=("model", "ema")), {"log_lines": 0})
    if first > config.steps:
        raise UserError(f"steps={config.steps}, but the run {config.name} is at step {first} already; ask for more")

    accumulate = make_accumulate(net, Diffusion(noise_schedule=config.noise_schedule), state, config.accumulation)
    update = optim.make_update(state, config.weight_decay)
    part = config.batch_size // config.accumulation
    items = [range(i * part, (i + 1) * part) for i in range(config.accumulation)]
    writer = resume.BackgroundWriter(uri, config.keep_last, config.keep_every)
    bar = progress(total=config.steps, desc="train", unit="step")
    bar.update(first)
    metrics: dict[str, Any] = dict(log.last)
    started = time.monotonic()
    with _PoliteStop() as stop:
        for step, parts in enumerate(
            batches.prefetched(clips, usable, plan, range(first, config.steps), items), start=first + 1
        ):
            losses = np.mean([_numbers(accumulate(*_tensors(batch, i > 0))) for i, batch in enumerate(parts)], axis=0)
            rate = optim.learning_rate_at(
                step, config.learning_rate, config.lr_schedule, config.warmup_steps, config.steps
            )
            limit = config.clip_grad_norm if step >= config.clip_start_step else None
            norm = update(*optim.scalars(step, rate, config.weight_decay, config.ema_decay, limit))
            # A broken update is never saved: the loop ends before the next checkpoint.
            if not np.isfinite([*losses, float(norm)]).all():
                raise _diverged(step, parts, uri)
            loss, mse, vb = (float(value) for value in losses)
            metrics = {"step": step, "loss": loss, "mse": mse, "vb": vb, "grad_norm": float(norm), "lr": rate}
            if step % config.log_every == 0 or step in (1, config.steps):
                log.add(metrics, steps_per_s=bar.format_dict["rate"] or 0.0)
            bar.set_postfix(loss=f"{loss:.4f}", grad=f"{metrics['grad_norm']:.3f}", lr=f"{rate:.1e}", refresh=False)
            bar.update()
            if step % config.checkpoint_every == 0 or step == config.steps or stop.asked:
                log.publish()
                writer.submit(step, _copies(net, state), {"log_lines": len(log.lines)})
            if stop.asked:
                writer.wait()
                raise LatteError(f"asked to stop: saved step {step}; run the same command again to go on")
        writer.wait()
    bar.close()
    if config.steps > first:
        metrics["steps_per_s"] = round((config.steps - first) / (time.monotonic() - started), 3)
    return metrics


def make_accumulate(
    net: Latte, diffusion: Diffusion, state: optim.OptimizerState, accumulation: int
) -> Callable[..., tuple[ms.Tensor, ...]]:
    """The compiled front of a step: loss and gradients of one micro-batch, gradients added to `state.grads`.

    Returns:
        `accumulate(x0, t, noise, y, keep) -> (loss, mse, vb)`; arguments as in `latte.batches.Batch`; `keep` is
        0 in a step's first micro-batch, whose gradients overwrite those of the step before, and 1 after it.
    """
    conditional = net.config.condition == "class"
    sums = state.grads
    count = len(sums)

    def loss_of(x0: ms.Tensor, t: ms.Tensor, noise: ms.Tensor, y: ms.Tensor) -> tuple[ms.Tensor, ...]:
        if conditional:
            terms = diffusion.training_losses(net, x0, t, noise, y=y)
        else:
            terms = diffusion.training_losses(net, x0, t, noise)
        return terms["loss"].mean(), terms["mse"].mean(), terms["vb"].mean()

    grad_of = ops.value_and_grad(loss_of, None, state.params, has_aux=True)

    @ms.jit
    def accumulate(
        x0: ms.Tensor, t: ms.Tensor, noise: ms.Tensor, y: ms.Tensor, keep: ms.Tensor
    ) -> tuple[ms.Tensor, ...]:
        (loss, mse, vb), grads = grad_of(x0, t, noise, y)
        for i in range(count):
            ops.assign(sums[i], sums[i] * keep + grads[i] * (1.0 / accumulation))
        return loss, mse, vb

    return accumulate


class _PoliteStop:
    """While it lasts, SIGTERM and Ctrl-C ask the loop to save a checkpoint and leave instead of ending it at once."""

    asked = False

    def __enter__(self) -> "_PoliteStop":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self.asked = True


def _restore(uri: str, net: Latte, state: optim.OptimizerState, log: TrainingLog) -> int | None:
    """Bring everything back to the newest committed checkpoint; its step, or None where there is none."""
    found = resume.committed(uri)
    if not found:
        return None
    newest = found[-1]
    own = {param.name: param for param in net.get_parameters()}
    parts: list[tuple[str, dict[str, ms.Parameter]]] = [
        ("model", own),
        ("ema", {p.name: e for p, e in zip(state.params, state.ema, strict=True)}),
    ]
    if newest.step:
        parts.append(("optimizer", state.named()))
    for role, params in parts:
        tensors = resume.load_part(newest, role)
        for name, param in params.items():
            param.set_data(ms.Tensor(tensors[name]))
    log.restore(newest.state["log_lines"])
    return newest.step


def _copies(
    net: Latte, state: optim.OptimizerState, roles: tuple[str, ...] = ("model", "ema", "optimizer")
) -> dict[str, dict[str, np.ndarray]]:
    """Copies of all tensors that a checkpoint holds; the EMA is a whole model, fixed tensors included."""
    model = {param.name: param.asnumpy().copy() for param in net.get_parameters()}
    averages = {p.name: e.asnumpy().copy() for p, e in zip(state.params, state.ema, strict=True)}
    made: dict[str, Callable[[], dict[str, np.ndarray]]] = {
        "model": lambda: model,
        "ema": lambda: {**model, **averages},
        "optimizer": lambda: {name: param.asnumpy().copy() for name, param in state.named().items()},
    }
    return {role: made[role]() for role in roles}


def _tensors(batch: batches.Batch, keep: bool) -> tuple[ms.Tensor, ...]:
    arrays = (batch.x0, batch.t, batch.noise, batch.y, np.float32(keep))
    return tuple(ms.Tensor(array) for array in arrays)


def _numbers(values: tuple[ms.Tensor, ...]) -> list[float]:
    return [float(value) for value in values]


def _diverged(step: int, parts: list[batches.Batch], uri: str) -> LatteError:
    found = resume.committed(uri)
    good = found[-1].uri if found else "none"
    videos = ", ".join(dict.fromkeys(video for batch in parts for video in batch.videos))
    return LatteError(
        f"loss or gradient is NaN or infinite at step {step}; videos {videos}; last good checkpoint {good}"
    )
