"""One picture of a whole set: a few frames of each video, side by side."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

MAX_VIDEOS = 64
_FRAMES = 4
_STRIPS_PER_ROW = 4
_MAX_SIDE_PIXELS = 96
_GAP_PIXELS = 4
_FONT_PIXELS = 11
_TITLE_PIXELS = 15


def title(item: Mapping[str, Any]) -> str:
    """The line above a video of a set's items.json: its number, then its class by name and number, or its caption.

    Items of versions before have no name of their class.
    """
    label = item.get("label")
    of_class = "" if label is None else f"{item['class']} ({label})" if "class" in item else f"class {label}"
    return f"#{item['index']}  {item.get('caption') or of_class}".strip()


def draw(videos: Sequence[np.ndarray], titles: Sequence[str] = ()) -> bytes:
    """A PNG with a strip of four frames per video, four strips to a row; equal videos and titles make equal bytes.

    Args:
        videos: 1 to `MAX_VIDEOS` videos of one shape, uint8 RGB, (F, H, W, 3).
        titles: a line above each of them, cut where the strip ends; none at all for no lines.

    Raises:
        ValueError: no videos, too many, videos of different shapes, or not a title each.
    """
    from PIL import Image, ImageDraw, ImageFont

    shapes = {video.shape for video in videos}
    if len(shapes) != 1 or len(videos) > MAX_VIDEOS:
        raise ValueError(f"{len(videos)} videos of shapes {sorted(shapes)}: expected 1 to {MAX_VIDEOS} of one shape")
    if titles and len(titles) != len(videos):
        raise ValueError(f"{len(titles)} titles of {len(videos)} videos")
    num_frames, height, width = videos[0].shape[:3]
    taken = np.linspace(0, num_frames - 1, min(_FRAMES, num_frames)).round().astype(int)
    scale = min(1.0, _MAX_SIDE_PIXELS / max(height, width))
    cell = max(1, round(width * scale)), max(1, round(height * scale))
    above = _TITLE_PIXELS if titles else 0
    strip = len(taken) * cell[0] + _GAP_PIXELS, above + cell[1] + _GAP_PIXELS
    columns = min(_STRIPS_PER_ROW, len(videos))
    size = columns * strip[0] - _GAP_PIXELS, -(-len(videos) // columns) * strip[1] - _GAP_PIXELS
    sheet = Image.new("RGB", size, "white")
    font, pen = ImageFont.load_default(_FONT_PIXELS), ImageDraw.Draw(sheet)
    for number, video in enumerate(videos):
        row, column = divmod(number, columns)
        if titles:
            line = _cut(titles[number], lambda text: font.getlength(text) <= strip[0] - _GAP_PIXELS)
            pen.text((column * strip[0], row * strip[1]), line, "black", font)
        for place, index in enumerate(taken):
            frame = Image.fromarray(video[index])
            if frame.size != cell:
                frame = frame.resize(cell, Image.Resampling.BOX)
            sheet.paste(frame, (column * strip[0] + place * cell[0], row * strip[1] + above))
    written = io.BytesIO()
    sheet.save(written, "PNG", optimize=True)
    return written.getvalue()


def _cut(text: str, fits: Callable[[str], bool]) -> str:
    """As much of a line as fits."""
    if fits(text):
        return text
    kept = next((count for count in range(len(text) - 1, 0, -1) if fits(f"{text[:count]}…")), 0)
    return f"{text[:kept]}…" if kept else ""
