"""Training batches as a function of (seed, step) alone: whoever asks, and with how many workers, gets the same ones."""

import functools
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from latte import rng
from latte.data.latents import LatentClips
from latte.errors import UserError

# A queue this deep hides one slow read from object storage; more would only cost memory.
PREFETCH_BATCHES = 4


@dataclass(frozen=True)
class BatchPlan:
    """Settings that decide a run's batches; the same plan gives the same batches on any number of workers."""

    seed: int
    batch_size: int
    num_frames: int
    frame_stride: int
    num_timesteps: int
    scaling_factor: float
    num_classes: int
    class_dropout_prob: float
    text: bool = False


@dataclass(frozen=True)
class Batch:
    """One worker's part of the global batch of a step.

    Attributes:
        x0: latents, scaled to about unit variance, float32, (N, F, C, h, w).
        t: diffusion timesteps, int32, (N,).
        noise: standard normal, float32, (N, F, C, h, w).
        condition: what the network is told. Class labels, int32, (N,), `num_classes` where the label was dropped;
            or embeddings of captions, float32, (N, 77, 768), that of the empty text where the caption was dropped or
            there is none; or zeros, int32, (N,), that nobody reads.
        videos: ids of the videos, for error messages.
    """

    step: int
    x0: np.ndarray
    t: np.ndarray
    noise: np.ndarray
    condition: np.ndarray
    videos: list[str]


def usable_videos(clips: LatentClips, plan: BatchPlan) -> list[int]:
    """Indices of the videos long enough for one clip.

    Raises:
        UserError: no video is long enough, or labels are missing for a class-conditional model.
    """
    span_frames = (plan.num_frames - 1) * plan.frame_stride + 1
    usable = [i for i, video in enumerate(clips.videos) if video.num_frames >= span_frames]
    if not usable:
        raise UserError(
            f"latents: none of {len(clips.videos)} videos has the {span_frames} frames that "
            f"num_frames={plan.num_frames} at frame_stride={plan.frame_stride} needs"
        )
    if plan.num_classes:
        bad = [v.id for i in usable if (v := clips.videos[i]).label is None or not 0 <= v.label < plan.num_classes]
        if bad:
            raise UserError(
                f"latents: video {bad[0]} ({len(bad)} in all) has no label below num_classes={plan.num_classes}"
            )
    return usable


def make_batch(clips: LatentClips, usable: Sequence[int], plan: BatchPlan, step: int, items: range) -> Batch:
    """Items `items` of the global batch of `step` (0-based), each from its own random stream.

    Videos come in a fresh random order every epoch. The posterior N(mean, exp(logvar)) is drawn anew each time, as in
    the published training code, where the VAE encodes inside the loop.
    """
    parts = [_make_item(clips, usable, plan, step * plan.batch_size + item) for item in items]
    x0, t, noise, conditions, videos = zip(*parts, strict=True)
    return Batch(
        step=step,
        x0=np.stack(x0),  # (N, F, C, h, w)
        t=np.array(t, np.int32),
        noise=np.stack(noise),  # (N, F, C, h, w)
        condition=np.stack(conditions),  # (N,) or (N, 77, 768)
        videos=list(videos),
    )


def prefetched(
    clips: LatentClips, usable: Sequence[int], plan: BatchPlan, steps: range, items: Sequence[range]
) -> Iterator[list[Batch]]:
    """The batches of `steps` in order, read ahead by a thread; one list of micro-batches (`items`) a step."""
    ready: queue.Queue[list[Batch] | BaseException] = queue.Queue(PREFETCH_BATCHES)
    stop = threading.Event()

    def put(value: list[Batch] | BaseException) -> None:
        while not stop.is_set():
            try:
                ready.put(value, timeout=0.2)
                return
            except queue.Full:
                continue

    def read_ahead() -> None:
        try:
            for step in steps:
                if stop.is_set():
                    return
                put([make_batch(clips, usable, plan, step, part) for part in items])
        except BaseException as error:  # raised again where the batch is asked for
            put(error)

    thread = threading.Thread(target=read_ahead, name="read-batches", daemon=True)
    thread.start()
    try:
        for _ in steps:
            value = ready.get()
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stop.set()
        thread.join()


def _make_item(
    clips: LatentClips, usable: Sequence[int], plan: BatchPlan, position: int
) -> tuple[np.ndarray, int, np.ndarray, np.ndarray, str]:
    epoch, place = divmod(position, len(usable))
    index = usable[_epoch_order(plan.seed, epoch, len(usable))[place]]
    video = clips.videos[index]
    draw = rng.stream(plan.seed, "training item", position)
    span_frames = (plan.num_frames - 1) * plan.frame_stride + 1
    start = int(draw.integers(video.num_frames - span_frames + 1))
    t = int(draw.integers(plan.num_timesteps))
    dropped = draw.random() < plan.class_dropout_prob
    mirrored = video.mirrored is not None and draw.random() < 0.5
    mean, logvar = clips.clip(index, start, plan.frame_stride, plan.num_frames, mirrored)  # (F, C, h, w) each
    posterior = mean + np.exp(0.5 * logvar) * draw.standard_normal(mean.shape, np.float32)  # (F, C, h, w)
    noise = draw.standard_normal(mean.shape, np.float32)  # (F, C, h, w)
    condition = np.array(0, np.int32)
    if plan.num_classes:
        condition = np.array(plan.num_classes if dropped or video.label is None else video.label, np.int32)
    elif plan.text:
        condition = clips.null_text() if dropped or video.text is None else clips.text(index)  # (77, 768)
    return posterior * np.float32(plan.scaling_factor), t, noise, condition, video.id


# Consecutive batches touch two epochs at most.
@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return rng.stream(seed, "epoch order", epoch).permutation(count)
