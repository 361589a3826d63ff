"""One picture of a whole set: a few frames of each video, side by side."""

import io
from collections.abc import Sequence

import numpy as np

MAX_VIDEOS = 64
_FRAMES = 4
_STRIPS_PER_ROW = 4
_MAX_SIDE_PIXELS = 96
_GAP_PIXELS = 4


def draw(videos: Sequence[np.ndarray]) -> bytes:
    """A PNG with a strip of four frames per video, four strips to a row; equal videos make equal bytes.

    Args:
        videos: 1 to `MAX_VIDEOS` videos of one shape, uint8 RGB, (F, H, W, 3).

    Raises:
        ValueError: no videos, too many, or videos of different shapes.
    """
    from PIL import Image

    shapes = {video.shape for video in videos}
    if len(shapes) != 1 or len(videos) > MAX_VIDEOS:
        raise ValueError(f"{len(videos)} videos of shapes {sorted(shapes)}: expected 1 to {MAX_VIDEOS} of one shape")
    num_frames, height, width = videos[0].shape[:3]
    taken = np.linspace(0, num_frames - 1, min(_FRAMES, num_frames)).round().astype(int)
    scale = min(1.0, _MAX_SIDE_PIXELS / max(height, width))
    cell = max(1, round(width * scale)), max(1, round(height * scale))
    strip = len(taken) * cell[0] + _GAP_PIXELS, cell[1] + _GAP_PIXELS
    columns = min(_STRIPS_PER_ROW, len(videos))
    size = columns * strip[0] - _GAP_PIXELS, -(-len(videos) // columns) * strip[1] - _GAP_PIXELS
    sheet = Image.new("RGB", size, "white")
    for number, video in enumerate(videos):
        row, column = divmod(number, columns)
        for place, index in enumerate(taken):
            frame = Image.fromarray(video[index])
            if frame.size != cell:
                frame = frame.resize(cell, Image.Resampling.BOX)
            sheet.paste(frame, (column * strip[0] + place * cell[0], row * strip[1]))
    written = io.BytesIO()
    sheet.save(written, "PNG", optimize=True)
    return written.getvalue()
