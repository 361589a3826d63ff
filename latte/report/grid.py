"""The moving grid of a report: which clips stand side by side, loaded and packed as strips of frames."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latte import finite, storage
from latte.data.latents import EncodedVideo, LatentClips
from latte.errors import UserError
from latte.facts import RunFacts, RunMetrics
from latte.report import plots
from latte.storage import manifest
from latte.video import clip_files

# Base64 adds a third: with this much the page stays below 8 MB.
MAX_PICTURE_BYTES = 5_200_000
# Quality of the WebP coder and longest side of a frame in pixels, as good as the page's size allows. No cell of the
# page is wider than 192 CSS pixels.
_CODINGS = ((92, 192), (80, 192), (70, 128), (60, 96), (45, 64))
# Columns of the row that shows a model in training.
MAX_PREVIEW_STEPS = 5
# A part of a clip at a time: a decoder's inner arrays are far larger than its picture.
_DECODE_AT_MOST_FRAMES = 8


@dataclass(frozen=True)
class RealClip:
    """A clip of the dataset that the report shows.

    Attributes:
        index: of the video in the latents.
        label: its class, or None without classes.
        start: first frame.
    """

    index: int
    label: int | None
    start: int = 0


@dataclass(frozen=True)
class GeneratedClip:
    """A clip of a set of generated videos that the report shows."""

    index: int
    label: int | None
    uri: str
    sha256: str


@dataclass(frozen=True)
class Strip:
    """A clip as one picture, frames below each other, as a data URI."""

    uri: str
    frames: int
    aspect: str


def pick_real(
    entries: Sequence[EncodedVideo], num_frames: int, stride: int, per_class: int, max_rows: int
) -> list[RealClip]:
    """Clips spread evenly over each class's videos, classes in order, at most `max_rows` in all.

    Raises:
        UserError: no video is long enough for a clip.
    """
    span_frames = (num_frames - 1) * stride + 1
    by_label: dict[int | None, list[int]] = {}
    for index, entry in enumerate(entries):
        if entry.num_frames >= span_frames:
            by_label.setdefault(entry.label, []).append(index)
    if not by_label:
        raise UserError(f"latents: no video has the {span_frames} frames of one clip")
    labels = sorted(by_label, key=lambda label: -1 if label is None else label)
    rows = per_class if len(labels) * per_class <= max_rows else max(1, max_rows // len(labels))
    picked = []
    for label in labels[:max_rows]:
        videos = by_label[label]
        count = min(rows, len(videos))
        for index in (videos[len(videos) * (2 * k + 1) // (2 * count)] for k in range(count)):
            picked.append(RealClip(index, label, (entries[index].num_frames - span_frames) // 2))
    return picked


def pick_generated(items: Sequence[dict[str, Any]], rows: Sequence[RealClip]) -> list[GeneratedClip | None]:
    """For every row the next of a set's items with the row's label, or None when the set has no more of them."""
    waiting: dict[int | None, list[GeneratedClip]] = {}
    for item in items:
        waiting.setdefault(item["label"], []).append(_generated(item))
    picked: list[GeneratedClip | None] = []
    for row in rows:
        # A set without classes has one list, whatever the data's labels are.
        queue = waiting.get(row.label) or waiting.get(None) or []
        picked.append(queue.pop(0) if queue else None)
    return picked


def load_generated(clips: Sequence[GeneratedClip | None]) -> list[np.ndarray | None]:
    """The frames of lossless clips, checked against their SHA-256, uint8, (F, H, W, 3) each."""
    return [None if clip is None else _read_generated(clip) for clip in clips]


def make_decoder(vae: manifest.Manifest, num_frames: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function from the latents of one clip, (F, C, h, w), not scaled, to frames, uint8, (F, H, W, 3).

    The function raises UserError where a decoded frame is not finite.
    """
    import mindspore as ms

    from latte import device, networks

    device.setup()
    net = networks.converted("vae", vae)
    # A divisor of the clip's length, so that the decoder is compiled for one shape only.
    part = max(count for count in range(1, _DECODE_AT_MOST_FRAMES + 1) if num_frames % count == 0)

    def decode(latents: np.ndarray) -> np.ndarray:
        pixels = np.concatenate(
            [net.decode(ms.Tensor(latents[i : i + part])).asnumpy() for i in range(0, num_frames, part)]
        )  # (F, 3, H, W), about [-1, 1]
        try:
            return finite.pixels(pixels)
        except ArithmeticError as error:
            raise UserError(f"vae {vae.file}: {error}") from None

    return decode


def reconstruct(
    clips: LatentClips,
    rows: Sequence[RealClip],
    decode: Callable[[np.ndarray], np.ndarray],
    num_frames: int,
    stride: int,
) -> list[np.ndarray]:
    """The frames of `rows`, decoded from the means of their latents, uint8, (F, H, W, 3) each."""
    return [decode(clips.clip(row.index, row.start, stride, num_frames)[0]) for row in rows]


def load_previews(
    checkpoint: manifest.Manifest, decode: Callable[[np.ndarray], np.ndarray]
) -> list[tuple[int, list[str], list[np.ndarray]]]:
    """Previews of a run in training: step, what each clip is to show, and the clips, uint8, (F, H, W, 3) each.

    At most `MAX_PREVIEW_STEPS` steps, evenly spread, the newest among them.
    """
    previews_uri = RunMetrics.of(checkpoint).previews_uri
    if previews_uri is None:
        return []
    from latte.training import previews

    found = previews.listed(previews_uri)
    steps = sorted(found)
    count = min(len(steps), MAX_PREVIEW_STEPS)
    chosen = [steps[len(steps) * (k + 1) // count - 1] for k in range(count)]
    shown = []
    for step in chosen:
        latents, titles = previews.read(found[step])  # (N, F, C, h, w)
        unscaled = latents / np.float32(RunFacts.of(checkpoint).scaling_factor)
        shown.append((step, titles, [decode(clip) for clip in unscaled]))
    return shown


def pack(columns: Sequence[Sequence[np.ndarray | None]]) -> list[list[Strip | None]]:
    """Columns of clips as strips, coded as finely as the size of a page allows.

    Raises:
        UserError: there are too many clips for one page even at the coarsest coding.
    """
    for quality, size in _CODINGS:
        coded = [
            [None if clip is None else plots.filmstrip(clip, quality, size) for clip in column] for column in columns
        ]
        total_bytes = sum(len(data) for column in coded for data in column if data)
        if total_bytes <= MAX_PICTURE_BYTES:
            return [
                [_strip(clip, data) for clip, data in zip(column, row, strict=True)]
                for column, row in zip(columns, coded, strict=True)
            ]
    raise UserError(f"max_rows: the clips take {total_bytes} bytes of {MAX_PICTURE_BYTES}; show fewer rows")


def _generated(item: dict[str, Any]) -> GeneratedClip:
    return GeneratedClip(item["index"], item["label"], item["video"], item["sha256"])


def _read_generated(clip: GeneratedClip) -> np.ndarray:
    with storage.as_local_file(clip.uri, clip.sha256) as path:
        return clip_files.read_lossless(path)


def _strip(clip: np.ndarray | None, data: bytes | None) -> Strip | None:
    if clip is None or data is None:
        return None
    return Strip(plots.data_uri(data, "image/webp"), len(clip), f"{clip.shape[2]} / {clip.shape[1]}")
