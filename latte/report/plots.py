"""Pictures for a page that must stand alone: a curve as inline SVG, a clip as a strip of frames, bytes as data URIs."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape

import numpy as np

# A curve is drawn for one width on the page, since the text of an SVG shrinks with it.
_MARGIN_LEFT, _MARGIN_RIGHT, _MARGIN_TOP, _MARGIN_BOTTOM = 58, 14, 14, 46
_LOG_SCALE_FROM_RATIO = 8.0
_WEBP_MAX_SIDE = 16383


def line_chart(
    x: Sequence[float],
    y: Sequence[float],
    title: str,
    x_label: str,
    y_label: str,
    width: int = 720,
    height: int = 320,
) -> str:
    """A curve with its raw points faint and their moving average strong, as inline SVG.

    Colours are CSS classes (`axis`, `grid`, `raw`, `smooth`, `tick`), so the page decides on light and dark. The y axis
    is logarithmic where the values span more than a factor of eight.

    Args:
        x: positions, rising.
        y: finite values, as many as positions.
        title: what is shown, for screen readers and as a tooltip.
        x_label: name of the x axis.
        y_label: name of the y axis.
        width: of the drawing, in CSS pixels.
        height: of the drawing, in CSS pixels.

    Raises:
        ValueError: no point, or a different number of positions and values.
    """
    if not x or len(x) != len(y):
        raise ValueError(f"a curve needs as many positions as values, got {len(x)} and {len(y)}")
    logarithmic = min(y) > 0 and max(y) / min(y) > _LOG_SCALE_FROM_RATIO
    left, right, top, bottom = _MARGIN_LEFT, width - _MARGIN_RIGHT, _MARGIN_TOP, height - _MARGIN_BOTTOM
    x_ticks = nice_ticks(min(x), max(x), 4 if width < 500 else 8)
    y_ticks = log_ticks(min(y), max(y)) if logarithmic else nice_ticks(min(0.0, *y), max(y), 5)
    x_low, x_high = min(x_ticks[0], min(x)), max(x)
    y_low, y_high = min(y_ticks[0], min(y)), max(y_ticks[-1], max(y))

    def place_x(value: float) -> float:
        return left + (value - x_low) / ((x_high - x_low) or 1.0) * (right - left)

    def place_y(value: float) -> float:
        low, high, at = (math.log(v) if logarithmic else v for v in (y_low, y_high, value))
        return bottom - (at - low) / ((high - low) or 1.0) * (bottom - top)

    def polyline(kind: str, values: Sequence[float]) -> str:
        points = " ".join(f"{place_x(a):.1f},{place_y(b):.1f}" for a, b in zip(x, values, strict=True))
        return f'<polyline class="{kind}" points="{points}"/>'

    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for tick in y_ticks:
        at = place_y(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in (t for t in x_ticks if t <= x_high):
        at = place_x(tick)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{tick:,g}</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    parts.append(
        f'<text class="label" x="{middle_x:.0f}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    scale = " (log scale)" if logarithmic else ""
    parts.append(
        f'<text class="label" transform="translate(14 {middle_y:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label + scale)}</text>"
    )
    parts.append(polyline("raw", y))
    parts.append(polyline("smooth", moving_average(y)))
    parts.append(f'<circle class="last" cx="{place_x(x[-1]):.1f}" cy="{place_y(moving_average(y)[-1]):.1f}" r="4"/>')
    return "".join([*parts, "</svg>"])


def trend_chart(
    values: Sequence[float | None],
    marks: Sequence[bool],
    labels: Sequence[str],
    title: str,
    width: int = 280,
    height: int = 170,
) -> str:
    """One value a night as inline SVG: points joined by a line, filled or hollow, the newest with its number.

    Args:
        values: finite, oldest first; None where a night has none.
        marks: whether a point is filled.
        labels: of the points, for a tooltip each; the first and the last stand under the axis.
        title: what is shown, for screen readers.
        width: of the drawing, in CSS pixels.
        height: of the drawing, in CSS pixels.

    Raises:
        ValueError: no value.
    """
    known = [value for value in values if value is not None]
    if not known:
        raise ValueError("a trend needs a value")
    ticks = nice_ticks(min(known), max(known), 3)
    left, right, top, bottom = 46, width - 14, 16, height - 28
    low, high = ticks[0], ticks[-1]

    def place(index: int, value: float) -> tuple[float, float]:
        across = left + 8 + (right - left - 16) * index / ((len(values) - 1) or 1)
        return across, bottom - (value - low) / ((high - low) or 1.0) * (bottom - top)

    parts = [f'<svg class="chart trend" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for tick in ticks:
        at = place(0, tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 7}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    points = [(index, *place(index, value), value) for index, value in enumerate(values) if value is not None]
    parts.append(f'<polyline class="smooth" points="{" ".join(f"{x:.1f},{y:.1f}" for _, x, y, _ in points)}"/>')
    for index, x, y, value in points:
        kind = "filled" if marks[index] else "hollow"
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{escape(labels[index])}: {value:.4g}'
            "</title></circle>"
        )
    parts.append(f'<text class="tick" x="{left}" y="{height - 8}">{escape(labels[0])}</text>')
    parts.append(f'<text class="tick" x="{right}" y="{height - 8}" text-anchor="end">{escape(labels[-1])}</text>')
    return "".join([*parts, "</svg>"])


def moving_average(values: Sequence[float]) -> list[float]:
    """Centred mean over about a tenth of the values; at the ends over what there is."""
    reach = max(1, len(values) // 20)
    return [float(np.mean(values[max(0, i - reach) : i + reach + 1])) for i in range(len(values))]


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high], about `count` of them."""
    # Values that differ by rounding alone count as equal: their ticks would read the same.
    span = high - low if high - low > 1e-9 * abs(high) else abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten times 1, 2 and 5 that enclose [low, high], both above zero."""
    # One power more on either side, since a logarithm just beside a whole number rounds to it.
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    ticks = [float(f"{factor * 10.0**power:.12g}") for power in powers for factor in (1, 2, 5)]
    first = max(i for i, tick in enumerate(ticks) if tick <= low)
    last = min(i for i, tick in enumerate(ticks) if tick >= high)
    return ticks[first : last + 1]


def filmstrip(frames: np.ndarray, quality: int, max_size: int) -> bytes:
    """All frames of a clip below each other in one WebP picture.

    A page that moves the strip behind a window shows a film, keeps all films of the page in step, and can hold them:
    an animated picture can do neither.

    Args:
        frames: uint8, (F, H, W, 3).
        quality: of the WebP coder, 1 to 100.
        max_size: a longer side of a frame is scaled down to this many pixels.
    """
    from PIL import Image

    count, height, width, _ = frames.shape
    scale = min(1.0, max_size / max(height, width), _WEBP_MAX_SIDE / (count * height))
    size = max(1, int(width * scale)), max(1, int(height * scale))
    strip = Image.new("RGB", (size[0], size[1] * count))
    for index, frame in enumerate(frames):
        picture = Image.fromarray(frame)
        strip.paste(picture if scale == 1.0 else picture.resize(size, Image.Resampling.LANCZOS), (0, index * size[1]))
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a `data:` URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
