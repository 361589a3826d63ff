"""Numbers about one video that the rules of curation ask for, measured on small frames as they are decoded.

PySceneDetect finds cuts and makes the perceptual hashes, OpenCV measures sharpness and motion. What depends on nothing
but the video's content and `Measure` is the same on any machine of a kind; OpenCV runs in one thread for that.
"""

import dataclasses
import importlib.metadata
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from latte.video.decoders import Chunk
from latte.video.views import Box

# Raised whenever the numbers of a given video change.
MEASURE_VERSION = 1
LIBRARIES = ("scenedetect-headless", "opencv-python-headless", "av", "pillow", "numpy")
HASHES = 4
HASH_BITS = 64
_HASH_SIDE, _HASH_FACTOR = 8, 4  # as imagehash's phash has them
# ffmpeg's blackdetect: pixels below a tenth of the range, in 98 % of the frame.
_BLACK_LEVEL, _BLACK_SHARE = 25.5, 0.98
# ffmpeg's freezedetect: -60 dB.
_FROZEN_LEVELS = 0.255
_FLOW_SIDE, _FLOW_LEAST = 128, 16
# Rows darker than this everywhere say nothing of bars: the video is black.
_LEAST_PICTURE = 0.2


@dataclass(frozen=True)
class Measure:
    """Settings that numbers depend on.

    Attributes:
        frame_side: longer side of the frames.
        frame_stride: every so many frames one is looked at.
        max_frames: of each video at most; None for all.
        threshold: of cuts; None: they are not looked for.
        bar_level: most that a row of black bars has; None: they are not looked for.
    """

    frame_side: int
    frame_stride: int
    max_frames: int | None
    threshold: float | None
    bar_level: float | None

    @property
    def facts(self) -> list[Any]:
        """All that numbers follow from, beside the video."""
        versions = [importlib.metadata.version(name) for name in LIBRARIES]
        return [MEASURE_VERSION, dataclasses.asdict(self), dict(zip(LIBRARIES, versions, strict=True))]


@dataclass(frozen=True)
class ShotNumbers:
    """Numbers about the frames between two cuts.

    Attributes:
        start: first frame, counted in frames that were looked at.
        stop: the frame behind the last one.
        black: share of black frames.
        frozen: share of frames that repeat the one before.
        flicker: mean distance of a frame's brightness from the mean of its neighbours', in levels of 0 to 255.
        motion: mean length of the optical flow, in per cent of the longer side; None for a single frame.
        sharpness: median variance of the Laplacian.
        hashes: perceptual hashes of `HASHES` frames, 64 bits each, hexadecimal.
    """

    start: int
    stop: int
    black: float
    frozen: float
    flicker: float
    motion: float | None
    sharpness: float
    hashes: str


@dataclass(frozen=True)
class VideoNumbers:
    """Numbers about one video.

    Attributes:
        width: of its first frame, in pixels.
        height: of the same.
        crop: what is between black bars; None where there are none.
        shots: in their order; one where cuts are not looked for.
        problem: why it cannot be decoded; there are no numbers then.
        beyond: which of `latte.video.decoders.Limits` it was too much for, and the value that was.
    """

    width: int = 0
    height: int = 0
    crop: Box | None = None
    shots: tuple[ShotNumbers, ...] = ()
    problem: str | None = None
    beyond: dict[str, float] | None = None

    @classmethod
    def of(cls, row: dict[str, Any]) -> "VideoNumbers":
        """The numbers that a document holds."""
        shots = tuple(ShotNumbers(**shot) for shot in row.get("shots", ()))
        crop = row.get("crop")
        return cls(**{**row, "shots": shots, "crop": None if crop is None else tuple(crop)})

    @property
    def picture(self) -> tuple[int, int]:
        """Width and height of what is seen, without bars."""
        return (self.width, self.height) if self.crop is None else self.crop[2:]

    @property
    def row(self) -> dict[str, Any]:
        """The numbers as documents keep them."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def measure(decode: Callable[[Box | None], Iterable[Chunk]], settings: Measure) -> VideoNumbers:
    """Measure a video; one with black bars is decoded twice, the second time without them.

    Args:
        decode: chunks of whole frames of `frame_side`, of what a box leaves of each.
        settings: of measuring.
    """
    numbers = _Numbers(settings)
    for chunk in decode(None):
        numbers.add(chunk)
    crop = numbers.picture()
    if crop is None:
        return numbers.measured(None)
    inner = _Numbers(settings)
    for chunk in decode(crop):
        inner.add(chunk)
    return inner.measured(crop)


class _Numbers:
    """Numbers of a video's frames, one after the other."""

    def __init__(self, settings: Measure) -> None:
        import cv2
        from scenedetect.detectors import ContentDetector

        cv2.setNumThreads(1)  # stripes of a picture, one a thread, change what optical flow finds
        self._settings = settings
        # Without a least length: each cut counts, also one soon after another.
        self._detector = None if settings.threshold is None else ContentDetector(settings.threshold, min_scene_len=0)
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._rows = self._columns = np.zeros(0)
        self._size = (0, 0)
        self._frame_shape = (0, 0)
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        self._cuts: list[int] = []
        self._light: list[float] = []
        self._black: list[bool] = []
        self._change: list[float] = []  # from the frame before; of the first, none
        self._motion: list[float] = []
        self._sharpness: list[float] = []
        self._hashes: list[bytes] = []

    def add(self, chunk: Chunk) -> None:
        """Frames (n, H, W, 3) uint8."""
        self._size = chunk.size
        for frame in chunk.frames:
            self._add(frame)

    def _add(self, frame: np.ndarray) -> None:
        import cv2
        from scenedetect import FrameTimecode
        from scenedetect.detectors import HashDetector

        picture = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)  # (H, W, 3)
        gray = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)  # (H, W)
        if not self._light:
            self._frame_shape = gray.shape[0], gray.shape[1]
            self._rows, self._columns = np.zeros(gray.shape[0]), np.zeros(gray.shape[1])
        number = len(self._light)
        if self._detector is not None:
            # The rate does not matter: cuts come back as the frames' numbers.
            cuts = self._detector.process_frame(FrameTimecode(number, Fraction(25)), picture)
            self._cuts += [cut.frame_num for cut in cuts]
        self._rows = np.maximum(self._rows, gray.mean(axis=1))
        self._columns = np.maximum(self._columns, gray.mean(axis=0))
        self._light.append(float(gray.mean()))
        self._black.append(bool((gray < _BLACK_LEVEL).mean() >= _BLACK_SHARE))
        self._sharpness.append(float(cv2.Laplacian(gray, cv2.CV_64F).var()))
        bits = HashDetector.hash_frame(picture, _HASH_SIDE, _HASH_FACTOR)  # (8, 8) bool
        self._hashes.append(np.packbits(bits).tobytes())
        small = _for_flow(gray)
        if self._before is not None:
            whole, part = self._before
            self._change.append(float(cv2.absdiff(whole, gray).mean()))
            flow = self._flow.calc(part, small, None)  # type: ignore[call-overload]  # (h, w, 2)
            self._motion.append(float(100 * np.hypot(flow[..., 0], flow[..., 1]).mean() / max(small.shape)))
        self._before = gray, small

    def picture(self) -> Box | None:
        """Picture between black bars, in pixels of the video; None where there are none, or nothing but black."""
        level = self._settings.bar_level
        if level is None or not self._light:
            return None
        top, bottom = _bars(self._rows, level)
        left, right = _bars(self._columns, level)
        height, width = self._frame_shape
        kept = (height - top - bottom) / height, (width - left - right) / width
        if min(kept) < _LEAST_PICTURE or not (top or bottom or left or right):
            return None
        across, along = self._size[0] / width, self._size[1] / height
        # Rounded inwards: half a row of a bar is a line that a model learns.
        x, y = math.ceil(left * across), math.ceil(top * along)
        return x, y, math.floor((width - right) * across) - x, math.floor((height - bottom) * along) - y

    def measured(self, crop: Box | None) -> VideoNumbers:
        """Numbers of all shots; those between cuts, whose frames follow from each other."""
        bounds = [0, *self._cuts, len(self._light)]
        shots = tuple(self._shot(start, stop) for start, stop in itertools.pairwise(bounds) if start < stop)
        return VideoNumbers(*self._size, crop, shots)

    def _shot(self, start: int, stop: int) -> ShotNumbers:
        light = np.array(self._light[start:stop])
        jumps = np.abs(light[1:-1] - (light[:-2] + light[2:]) / 2)
        changes, motion = self._change[start : stop - 1], self._motion[start : stop - 1]
        taken = [start + (2 * part + 1) * (stop - start) // (2 * HASHES) for part in range(HASHES)]
        return ShotNumbers(
            start,
            stop,
            black=_rounded(np.mean(self._black[start:stop])),
            frozen=_rounded(np.mean([change <= _FROZEN_LEVELS for change in changes])) if changes else 0.0,
            flicker=_rounded(jumps.mean()) if len(jumps) else 0.0,
            motion=_rounded(np.mean(motion)) if motion else None,
            sharpness=_rounded(np.median(self._sharpness[start:stop])),
            hashes=b"".join(self._hashes[index] for index in taken).hex(),
        )


def _for_flow(gray: np.ndarray) -> np.ndarray:
    """A frame (h, w) for optical flow, which needs some pixels each way and no more than tell directions."""
    import cv2

    height, width = gray.shape
    scale = min(1.0, _FLOW_SIDE / max(height, width))
    size = max(_FLOW_LEAST, round(width * scale)), max(_FLOW_LEAST, round(height * scale))
    small: np.ndarray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    return small


def _bars(lines: np.ndarray, level: float) -> tuple[int, int]:
    """Lines at both ends that are a bar's, and where there are some the next one, which may be half a bar's."""
    bright = np.flatnonzero(lines > level)
    if not len(bright):
        return len(lines), 0
    before, behind = int(bright[0]), len(lines) - 1 - int(bright[-1])
    return before + bool(before), behind + bool(behind)


def _rounded(value: Any) -> float:
    """Four significant digits: what is beyond them differs from processor to processor."""
    return float(f"{float(value):.4g}")
