"""Gaussian diffusion: the noise schedule, the training loss and the samplers, as in the published Latte code."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from latte import finite, graph_cache
from latte.diffusion import sampling
from latte.diffusion.sampling import METHODS
from latte.diffusion.schedule import NOISE_SCHEDULES, make_schedule
from latte.diffusion.training import Losses
from latte.kinds.scheduler import PublishedScheduler

__all__ = ["METHODS", "NOISE_SCHEDULES", "Diffusion", "NotFiniteError"]


class NotFiniteError(ArithmeticError):
    """A sample became NaN or infinite.

    Attributes:
        samples: which of the batch.
        step: number of the denoising step, 0 first.
    """

    def __init__(self, samples: list[int], step: int) -> None:
        super().__init__(f"samples {samples} are not finite at denoising step {step}")
        self.samples, self.step = samples, step


@ms.jit_class
class Diffusion:
    """A diffusion process of 1000 steps, of which sampling visits some."""

    def __init__(
        self,
        num_sampling_steps: int | str | None = None,
        noise_schedule: str = "linear",
        published: PublishedScheduler | None = None,
    ) -> None:
        """Choose the steps.

        Args:
            num_sampling_steps: None for all 1000 (training), a count (50 or "50"), "ddimN" for a fixed integer stride,
                or "a,b,…" for a steps in the first section, b in the second, ….
            noise_schedule: "linear" or "cosine".
            published: scheduler that came with the weights; its noise counts, and which steps a plain count visits.

        Raises:
            ValueError: one of the two cannot be read.
        """
        self.schedule = make_schedule(noise_schedule, num_sampling_steps, published=published)
        self._losses = Losses(self.schedule)

    @property
    def timesteps(self) -> np.ndarray:
        """The visited steps (S,) int64, ascending, as the network is told them."""
        return self.schedule.timesteps

    def training_losses(
        self, model: Callable[..., ms.Tensor], x0: ms.Tensor, t: ms.Tensor, noise: ms.Tensor, **cond: Any
    ) -> dict[str, ms.Tensor]:
        """The losses per sample; differentiable, usable inside `ms.jit`.

        Args:
            model: network, called as model(x_t, steps, **cond).
            x0: clean latents (N, F, C, h, w).
            t: indices into `timesteps` (N,).
            noise: standard normal noise, like x0.
            cond: what else the model takes (y, text).

        Returns:
            "mse": squared error of the noise; "vb": the variational bound in bits per dimension, which teaches the
            variance (0 where the model learns none); "loss": their sum. Each (N,).
        """
        return self._losses(model, x0, t, noise, **cond)

    def sample(
        self,
        model: Callable[..., ms.Tensor],
        noise: np.ndarray | ms.Tensor,
        method: str = "ddim",
        step_noise: Callable[[int, tuple[int, ...]], np.ndarray] | None = None,
        on_step: Callable[[int], None] | None = None,
        **cond: Any,
    ) -> Any:
        """Draw samples: one call of the compiled network per step, the arithmetic between them in numpy.

        Args:
            model: a network, or any function of (x, t, **cond) on tensors; a network is compiled once per shape.
            noise: standard normal start (N, F, C, h, w).
            method: "ddpm", "ddim" (eta 0) or "dpm-solver++" (second order, multistep).
            step_noise: for ddpm; gives standard normal noise for the number of the step (0 first) and the shape.
            on_step: called with the number of each finished step, for a progress bar.
            cond: what else the model takes, for N samples: y (N,), text (N, 77, 768); for a `LatteT2V` text (N, 120, C)
                and text_mask (N, 120). For both also cfg_scale: guidance by that factor (1 is none); the batch is then
                doubled here, the second half with the null class or with `null_text`, the embedding of the empty text;
                `all_channels` guides the variance too.

        Returns:
            Samples (N, F, C, h, w), float32: an array for an array, a tensor for a tensor.

        Raises:
            ValueError: no such method, ddpm without `step_noise`, guidance without something to guide towards or
                without a null class, or a condition that is missing, not one per sample or not the network's.
            NotFiniteError: a sample became NaN or infinite; no further step is taken.
        """
        start = np.asarray(noise.asnumpy() if isinstance(noise, ms.Tensor) else noise, np.float32)
        predict = _predictor(model, len(start), cond)
        x = start
        with np.errstate(over="ignore", invalid="ignore"):  # said by an error, not by a warning
            for index, state in enumerate(sampling.run(self.schedule, predict, start, method, step_noise)):
                x = state
                if bad := finite.bad_rows(x):  # an array that is here anyway, small beside the network's work
                    raise NotFiniteError(bad, index)
                if on_step is not None:
                    on_step(index)
        return ms.Tensor(x) if isinstance(noise, ms.Tensor) else x


def _predictor(model: Callable[..., Any], count: int, cond: dict[str, Any]) -> sampling.Predict:
    """`model` and its condition as a function of numpy arrays."""
    given = {name: value for name, value in cond.items() if value is not None}
    copies = 1
    if isinstance(model, nn.Cell):
        scale, all_channels = given.pop("cfg_scale", 1.0), bool(given.pop("all_channels", False))
        _check_condition(model, count, given, scale)
        if scale != 1.0:
            copies = 2
            given = {**_with_null(model, count, given), "cfg_scale": np.float32(scale)}
        given.pop("null_text", None)
        call = _compiled(model, copies == 2, all_channels)
    else:
        call = model
    tensors = {name: _as_tensor(value) for name, value in given.items()}

    def predict(x: np.ndarray, step: int) -> np.ndarray:
        x = np.concatenate([x] * copies).astype(np.float32)  # (N or 2N, F, C, h, w)
        out = call(ms.Tensor(x), ms.Tensor(np.full(len(x), step, np.int32)), **tensors)
        return np.asarray(out.asnumpy() if isinstance(out, ms.Tensor) else out)[:count]

    return predict


def _check_condition(model: nn.Cell, count: int, given: dict[str, Any], scale: Any) -> None:
    """Refuse what the compiler would answer with pages: a condition that does not fit the network or the batch."""
    if not np.isfinite(scale):
        raise ValueError(f"cfg_scale {scale}: expected a number")
    config = getattr(model, "config", None)
    condition = getattr(config, "condition", None)
    if config is None or condition is None:
        return
    key = {"class": "y", "text": "text"}.get(condition)
    for other in ("y", "text"):
        if other in given and other != key:
            raise ValueError(f"the network's condition is {condition}: it has no use for {other}")
    if key is None:
        return
    if key not in given:
        raise ValueError(f"the network's condition is {condition}: {key} is needed")
    values = np.asarray(_as_array(given[key]), np.int32 if key == "y" else np.float32)
    one = () if key == "y" else config.text_shape
    if values.shape != (count, *one):
        what = f" {one}" if one else ""
        raise ValueError(f"{key} has shape {values.shape}, expected one{what} for each of the {count} samples")
    if key == "y" and not ((values >= 0) & (values < model.config.label_rows)).all():
        raise ValueError(f"y is {values.tolist()}, expected labels from 0 to {model.config.label_rows - 1}")
    if key == "y" and scale != 1.0 and model.config.label_rows == model.config.num_classes:
        raise ValueError(f"cfg_scale {scale}: the network has no null class, its class_dropout_prob is 0")
    given[key] = values
    if key == "text" and config.text_encoder == "t5":
        mask = np.asarray(_as_array(given.get("text_mask", np.zeros(0))), np.float32)
        if mask.shape != values.shape[:2]:
            raise ValueError(f"text_mask has shape {mask.shape}, expected one {values.shape[1:2]} for each text")
        given["text_mask"] = mask


def _with_null(model: nn.Cell, count: int, given: dict[str, Any]) -> dict[str, Any]:
    """The conditions of a guided batch: as given for the first half, null for the second."""
    doubled = {}
    if "y" in given:
        y = np.asarray(_as_array(given["y"]), np.int32)
        doubled["y"] = np.concatenate([y, np.full(count, model.config.num_classes, np.int32)])  # (2N,)
    if "text" in given:
        if "null_text" not in given:
            raise ValueError("cfg_scale with text needs null_text, the embedding of the empty text")
        text = np.asarray(_as_array(given["text"]), np.float32)
        null = np.asarray(_as_array(given["null_text"]), np.float32)
        if null.shape != model.config.text_shape:
            raise ValueError(f"null_text has shape {null.shape}, expected {model.config.text_shape}")
        doubled["text"] = np.concatenate([text, np.broadcast_to(null, text.shape)])  # (2N, S, C)
    if "text_mask" in given:  # the empty caption is cut where the other ends, as published
        doubled["text_mask"] = np.concatenate([given["text_mask"]] * 2)  # (2N, S)
    if not doubled:
        raise ValueError("cfg_scale needs a condition (y or text) to guide towards")
    return doubled


class _Prediction(nn.Cell):
    """The compiled calls of a network, without and with guidance."""

    def __init__(self, model: nn.Cell, all_channels: bool) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.all_channels = all_channels

    @ms.jit
    def plain(self, x: ms.Tensor, t: ms.Tensor, y: ms.Tensor | None, text: ms.Tensor | None) -> ms.Tensor:
        """As `Latte.construct`."""
        return self.model(x, t, y, text)

    @ms.jit
    def guided(
        self, x: ms.Tensor, t: ms.Tensor, y: ms.Tensor | None, text: ms.Tensor | None, cfg_scale: ms.Tensor
    ) -> ms.Tensor:
        """As `Latte.forward_with_cfg`."""
        return self.model.forward_with_cfg(x, t, y, text, cfg_scale, self.all_channels)

    @ms.jit
    def masked(self, x: ms.Tensor, t: ms.Tensor, text: ms.Tensor, text_mask: ms.Tensor) -> ms.Tensor:
        """As `LatteT2V.construct`."""
        return self.model(x, t, text, text_mask)

    @ms.jit
    def masked_guided(
        self, x: ms.Tensor, t: ms.Tensor, text: ms.Tensor, text_mask: ms.Tensor, cfg_scale: ms.Tensor
    ) -> ms.Tensor:
        """As `LatteT2V.forward_with_cfg`."""
        return self.model.forward_with_cfg(x, t, text, text_mask, cfg_scale, self.all_channels)


@lru_cache(maxsize=4)
def _compiled(model: nn.Cell, guided: bool, all_channels: bool) -> Callable[..., ms.Tensor]:
    """One graph per network and kind of call, kept, so that the next batch does not compile again."""
    prediction = _Prediction(model, all_channels)

    def call(
        x: ms.Tensor,
        t: ms.Tensor,
        y: ms.Tensor | None = None,
        text: ms.Tensor | None = None,
        text_mask: ms.Tensor | None = None,
        cfg_scale: ms.Tensor | None = None,
    ) -> ms.Tensor:
        if text_mask is not None and guided:
            return graph_cache.call(prediction.masked_guided, x, t, text, text_mask, cfg_scale)
        if text_mask is not None:
            return graph_cache.call(prediction.masked, x, t, text, text_mask)
        if guided:
            return graph_cache.call(prediction.guided, x, t, y, text, cfg_scale)
        return graph_cache.call(prediction.plain, x, t, y, text)

    return call


def _as_array(value: Any) -> Any:
    return value.asnumpy() if isinstance(value, ms.Tensor) else value


def _as_tensor(value: Any) -> Any:
    return ms.Tensor(value) if isinstance(value, (np.ndarray, np.generic)) else value
