"""Work of a decoder process: a video becomes frames, cropped and scaled.

`decoders` starts it and watches over it. The process reads one JSON task a line on standard input, a socket, and
answers with messages: a JSON line, then the frames' bytes. It opens no file itself (`confinement`): it asks for the
video's files, one by one, and gets them opened. It keeps nothing from one video to the next, so a video that kills
it costs that video only.
"""

import codecs
import contextlib
import ctypes
import importlib
import json
import os
import pkgutil
import re
import resource
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from latte.video import confinement, frames
from latte.video.views import Box

FRAME_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
# What PIL may take a picture for, whatever its name: others run programs (EPS) or read further files.
_PICTURES = ("BMP", "JPEG", "PNG", "WEBP")
_NOT_FOR_DECODING = ("av.__main__", "av.datasets")
_PR_SET_PDEATHSIG = 1
# Raised whenever the frames of a given video change, so that latents made before are not taken for equal.
TRANSFORM_VERSION = 5
# A frame that is much longer than wide grows as long when its shorter side is scaled up.
_MAX_SCALED_PIXELS = 1 << 26


@dataclass(frozen=True)
class DecodeTask:
    """Frames to decode out of one video.

    Attributes:
        path: local file, or folder of frames; a decoder process is not told.
        image_size: side of the square frames; of whole ones, their longer side at most.
        chunk_frames: frames per answer.
        start: first frame.
        stride: distance between frames.
        count: frames wanted at most; None for all.
        mirrored: left and right exchanged.
        only_count: no frames, just about how many there are, by what the file says of itself; with `count`, the most
            that there can be, counted up to it.
        whole: frames keep their shape and are not enlarged; all of a video get the shape that its first one has.
        crop: what is left of each frame before it is scaled: left, top, width, height.
        num_files: of a folder of frames, how many they are, for a process that does not see them; None: one video file.
    """

    path: str
    image_size: int
    chunk_frames: int = 16
    start: int = 0
    stride: int = 1
    count: int | None = None
    mirrored: bool = False
    only_count: bool = False
    whole: bool = False
    crop: Box | None = None
    num_files: int | None = None


@dataclass(frozen=True)
class Files:
    """The files of a video, each opened when it is wanted.

    Attributes:
        count: how many frames lie in the folder; None where the video is one file.
        open: opens one for reading, by its number in their order; its `name` is the file's. Raises OSError.
    """

    count: int | None
    open: Callable[[int], BinaryIO]


def files_of(path: str) -> Files:
    """Those of a local video or folder of frames; what cannot be read is told when one is opened."""
    names: list[str] | None = None
    with contextlib.suppress(OSError):  # of a folder that cannot be read: opening it as a file tells why
        names = frame_names(os.listdir(path))

    def opened(number: int) -> BinaryIO:
        whole = Path(path) if names is None else Path(path, names[number])
        # A pipe that nobody writes to would wait here, where nobody watches over the time.
        file = os.open(whole, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(file, True)
        return named(file, whole.name)

    return Files(None if names is None else len(names), opened)


def named(descriptor: int, name: str) -> BinaryIO:
    """An open file that tells this name, by whose ending FFmpeg tells formats apart where their content does not."""
    file = os.fdopen(descriptor, "rb", buffering=0)
    file.name = name
    return file


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


def decode(task: DecodeTask, files: Files | None = None) -> Iterator["Decoded"]:
    """Chunks of frames from the task's path or from files.

    Raises:
        Exception: whatever the decoder makes of a broken file; the caller turns it into a reason.
    """
    chunk: list[np.ndarray] = []
    fps: float | None = None
    first: tuple[int, int] | None = None
    for picture, fps in _pictures(task, files or files_of(task.path)):
        first = first or picture.size
        if task.crop is not None:
            left, top, width, height = task.crop
            picture = picture.crop((left, top, left + width, top + height))
        if task.whole:
            shape = chunk[0].shape if chunk else shape_within(task.crop[2:] if task.crop else first, task.image_size)
            frame = np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BOX))  # (H, W, 3)
        else:
            frame = center_crop(picture, task.image_size)  # (S, S, 3)
        chunk.append(frame[:, ::-1] if task.mirrored else frame)
        if len(chunk) == task.chunk_frames:
            yield Decoded(np.stack(chunk), fps, first)  # (n, H, W, 3)
            chunk = []
    if chunk and first is not None:
        yield Decoded(np.stack(chunk), fps, first)  # (n, H, W, 3)


@dataclass(frozen=True)
class Decoded:
    """Frames of a video, uint8 RGB, (n, H, W, 3), its frame rate, and width and height of its first frame."""

    frames: np.ndarray
    fps: float | None
    size: tuple[int, int]


def shape_within(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Height and width of a frame of this width and height, once its longer side is brought to `longest` at most."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[1] * scale)), max(1, round(size[0] * scale))


def _pictures(task: DecodeTask, files: Files) -> Iterator[tuple[Image.Image, float | None]]:
    wanted = range(task.start, sys.maxsize if files.count is None else files.count, task.stride)[: task.count]
    if files.count is not None:
        yield from _folder_pictures(files, wanted)
        return
    with files.open(0) as file:
        yield from frames.read(file, wanted)


def _count(task: DecodeTask, files: Files) -> int:
    """About how many frames a video has, or, where `task.count` is given, the most that it can give, up to that.

    Raises:
        Exception: whatever the decoder makes of a broken file.
    """
    if files.count is not None:
        return min(files.count, task.count or files.count)
    with files.open(0) as file:
        return frames.at_most(file, task.count) if task.count else frames.count(file)


def frame_names(names: Iterable[str]) -> list[str]:
    """Those of a folder's files that are frames, in their order."""
    found = (name for name in names if name.lower().endswith(FRAME_SUFFIXES) and not name.startswith("."))
    return sorted(found, key=natural_key)


def _folder_pictures(files: Files, wanted: range) -> Iterator[tuple[Image.Image, float | None]]:
    for number in wanted:
        with files.open(number) as file:
            try:
                with Image.open(file, formats=_PICTURES) as picture:
                    yield frames.flat(ImageOps.exif_transpose(picture)), None
            except UnidentifiedImageError:
                raise ValueError(f"frame {file.name}: not a picture in BMP, JPEG, PNG or WebP") from None
            except OSError as error:
                raise ValueError(f"frame {file.name}: {error}") from None


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
    asked = socket.socket(fileno=os.dup(0))
    _import_all()
    _send(answers, {"kind": "ready", "open_because": confinement.confine()})
    while line := _received(asked)[0]:
        _serve(DecodeTask(**json.loads(line)), asked, answers)


def _import_all() -> None:
    """Import all that decoding may ever need: before the first video's time runs, while files can still be opened."""
    import av

    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.startswith(_NOT_FOR_DECODING):
            importlib.import_module(module.name)
    Image.init()
    for coding in ("ascii", "cp1252", "latin-1", "utf-16", "utf-16-be", "utf-16-le", "utf-8"):
        codecs.lookup(coding)  # each is a module
    warnings.simplefilter("ignore")  # showing one would open the file of the line


def _received(asked: socket.socket) -> tuple[bytes, list[int]]:
    """The next line that the parent has sent, and the files that came with it; b"" at the end."""
    line, files = b"", []
    while not line.endswith(b"\n"):
        data, some, _, _ = socket.recv_fds(asked, 1 << 16, 1)
        files += some
        if not data:
            return b"", files
        line += data
    return line, files


def _serve(task: DecodeTask, asked: socket.socket, answers: BinaryIO) -> None:
    def opened(number: int) -> BinaryIO:
        _send(answers, {"kind": "open", "number": number})
        line, files = _received(asked)
        if not line:
            sys.exit(0)
        answer = json.loads(line)
        if not files:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return named(files[0], answer["name"])

    num_frames = 0
    fps: float | None = None
    files = Files(task.num_files, opened)
    try:
        if task.only_count:
            _send(answers, {"kind": "end", "num_frames": _count(task, files), "fps": None})
            return
        for decoded in decode(task, files):
            num_frames, fps = num_frames + len(decoded.frames), decoded.fps
            count, height, width, _ = decoded.frames.shape
            header = {"kind": "frames", "count": count, "height": height, "width": width, "size": decoded.size}
            _send(answers, header, decoded.frames.tobytes())
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


def line_of(task: DecodeTask) -> bytes:
    """The task as the process reads it."""
    return json.dumps(asdict(task)).encode() + b"\n"


if __name__ == "__main__":
    main()
