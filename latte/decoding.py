"""What runs inside a decoder process: a video becomes frames, cropped and scaled.

`latte.decoders` starts it and watches over it. The process reads one JSON task a line on standard input and answers
with messages: a JSON line, then the frames' bytes. It keeps nothing from one video to the next, so a video that kills
it costs that video only.
"""

import ctypes
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from latte import frames

FRAME_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_PR_SET_PDEATHSIG = 1
# Raised whenever the frames of a given video change, so that latents made before are not taken for equal.
TRANSFORM_VERSION = 5
# A frame that is much longer than wide grows as long when its shorter side is scaled up.
_MAX_SCALED_PIXELS = 1 << 26


@dataclass(frozen=True)
class Task:
    """What to decode.

    Attributes:
        path: local file, or folder of frames.
        image_size: side of the square frames.
        chunk_frames: frames per answer.
        start: first frame.
        stride: distance between frames.
        count: frames wanted at most; None for all.
        mirrored: left and right exchanged.
        only_count: no frames, just about how many there are, by what the file says of itself; with `count`, the most
            that there can be, counted up to it.
    """

    path: str
    image_size: int
    chunk_frames: int = 16
    start: int = 0
    stride: int = 1
    count: int | None = None
    mirrored: bool = False
    only_count: bool = False


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sorts names with numbers in them by the numbers' values, frame2 before frame10; no two names are equal."""
    key = []
    for part in re.split(r"([0-9]+)", name):
        if part[:1].isascii() and part[:1].isdigit():
            digits = part.lstrip("0")
            key.append((0, len(digits), digits))
        elif part:
            key.append((1, 0, part))
    return tuple(key), name


def center_crop(frame: Image.Image, image_size: int) -> np.ndarray:
    """Scale the shorter side to `image_size` and cut the middle, as ADM (Dhariwal and Nichol 2021) and Latte do.

    The picture is halved by averaging while it is at least twice too large, then scaled bicubically.

    Returns:
        uint8 RGB, (image_size, image_size, 3).

    Raises:
        ValueError: it is so long and narrow that scaling it would take more than 64 million pixels.
    """
    while min(frame.size) >= 2 * image_size:
        frame = frame.resize((frame.width // 2, frame.height // 2), Image.Resampling.BOX)
    scale = image_size / min(frame.size)
    if frame.width * frame.height * scale**2 > _MAX_SCALED_PIXELS:
        raise ValueError(f"frames of {frame.width}x{frame.height} are too long and narrow")
    frame = frame.resize((round(frame.width * scale), round(frame.height * scale)), Image.Resampling.BICUBIC)
    left, top = (frame.width - image_size) // 2, (frame.height - image_size) // 2
    return np.asarray(frame)[top : top + image_size, left : left + image_size]


def decode(task: Task) -> Iterator[tuple[np.ndarray, float | None]]:
    """Chunks of frames (n, S, S, 3) uint8 with the frame rate.

    Raises:
        Exception: whatever the decoder makes of a broken file; the caller turns it into a reason.
    """
    chunk: list[np.ndarray] = []
    fps: float | None = None
    for picture, fps in _pictures(task):
        frame = center_crop(picture, task.image_size)  # (S, S, 3)
        chunk.append(frame[:, ::-1] if task.mirrored else frame)
        if len(chunk) == task.chunk_frames:
            yield np.stack(chunk), fps  # (n, S, S, 3)
            chunk = []
    if chunk:
        yield np.stack(chunk), fps  # (n, S, S, 3)


def _pictures(task: Task) -> Iterator[tuple[Image.Image, float | None]]:
    if os.path.isdir(task.path):
        return _folder_pictures(task)
    return frames.read(task.path, range(task.start, sys.maxsize, task.stride)[: task.count])


def count_frames(path: str) -> int:
    """About how many frames a video has, without decoding it; 0 where it does not say.

    Raises:
        Exception: whatever the decoder makes of a broken file.
    """
    if os.path.isdir(path):
        return len(frame_names(os.listdir(path)))
    return frames.count(path)


def frames_at_most(path: str, most: int) -> int:
    """The most frames that a video can give, counted to `most`; 0 where it is none, `most` where it is damaged."""
    if os.path.isdir(path):
        return min(most, len(frame_names(os.listdir(path))))
    return frames.at_most(path, most)


def frame_names(names: Iterable[str]) -> list[str]:
    """Those of a folder's files that are frames, in their order."""
    found = (name for name in names if name.lower().endswith(FRAME_SUFFIXES) and not name.startswith("."))
    return sorted(found, key=natural_key)


def _folder_pictures(task: Task) -> Iterator[tuple[Image.Image, float | None]]:
    for name in frame_names(os.listdir(task.path))[task.start :: task.stride][: task.count]:
        try:
            with Image.open(Path(task.path, name)) as picture:
                yield frames.flat(ImageOps.exif_transpose(picture)), None
        except OSError as error:
            raise ValueError(f"frame {name}: {error}") from None


def reason_of(error: BaseException) -> str:
    """One line that says why a video could not be decoded; it names no path, which may be a temporary one."""
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return "cannot be decoded: " + " ".join(text.split())[:200]


def main() -> None:
    """Serve tasks until standard input ends; arguments are the parent's process and the bytes of memory to stay in."""
    _die_with(int(sys.argv[1]))
    _stay_within(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries may print to standard output, which carries the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    # Imported before the first video's time runs.
    import av  # noqa: F401

    _send(answers, {"kind": "ready"})
    for line in sys.stdin.buffer:
        _serve(Task(**json.loads(line)), answers)


def _serve(task: Task, answers: BinaryIO) -> None:
    num_frames = 0
    fps: float | None = None
    try:
        if task.only_count:
            num_frames = frames_at_most(task.path, task.count) if task.count else count_frames(task.path)
            _send(answers, {"kind": "end", "num_frames": num_frames, "fps": None})
            return
        for chunk, rate in decode(task):
            num_frames, fps = num_frames + len(chunk), rate
            _send(answers, {"kind": "frames", "count": len(chunk)}, chunk.tobytes())
    except BrokenPipeError:
        raise
    except MemoryError:
        _send(answers, {"kind": "out of memory"})
        return
    except Exception as error:
        _send(answers, {"kind": "reject", "reason": reason_of(error)})
        return
    if num_frames:
        _send(answers, {"kind": "end", "num_frames": num_frames, "fps": fps})
    else:
        _send(answers, {"kind": "reject", "reason": "cannot be decoded: no frame in it"})


def _send(answers: BinaryIO, header: dict[str, Any], payload: bytes = b"") -> None:
    view = memoryview(json.dumps(header).encode() + b"\n" + payload)
    while view:
        view = view[answers.write(view) :]


def _die_with(parent: int) -> None:
    """Ask the kernel to end this process with the one that started it, however that one ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def _stay_within(memory_bytes: int) -> None:
    """Let what wants more memory fail in this process, before the kernel ends another one for it."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def line_of(task: Task) -> bytes:
    """The task as the process reads it."""
    return json.dumps(asdict(task)).encode() + b"\n"


if __name__ == "__main__":
    main()
