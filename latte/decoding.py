"""What runs inside a decoder process: a video becomes frames, cropped and scaled.

`latte.decoders` starts it and watches over it. The process reads one JSON task a line on standard input and answers
with messages: a JSON line, then the frames' bytes. It keeps nothing from one video to the next, so a video that kills
it costs that video only.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

FRAME_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_PR_SET_PDEATHSIG = 1
# Raised whenever the frames of a given video change, so that latents made before are not taken for equal.
TRANSFORM_VERSION = 2
# PIL refuses larger pictures as bombs; so does this for videos.
_MAX_PIXELS = 16384 * 16384
# decord reads on in the file until the next frame is decoded, as far as it comes while its decoding thread waits for a
# core: on a busy machine, all of it. Larger files go to PyAV, which reads what it decodes.
_DECORD_BYTES = 128 << 20
# Large frames are decoded a few at a time: decord takes 2 GB for 16 of 4K, 0.4 GB for single ones.
_TOGETHER_PIXELS = 8 << 20


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
        only_count: no frames, just about how many there are, by what the file says of itself.
    """

    path: str
    image_size: int
    chunk_frames: int = 16
    start: int = 0
    stride: int = 1
    count: int | None = None
    mirrored: bool = False
    only_count: bool = False


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts names with numbers in them by the numbers' values: frame2 before frame10."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((0, int(part)) if part.isascii() and part.isdigit() else (1, part) for part in parts if part)


def center_crop(frame: Image.Image, image_size: int) -> np.ndarray:
    """Scale the shorter side to `image_size` and cut the middle, as ADM (Dhariwal and Nichol 2021) and Latte do.

    The picture is halved by averaging while it is at least twice too large, then scaled bicubically.

    Returns:
        uint8 RGB, (image_size, image_size, 3).
    """
    while min(frame.size) >= 2 * image_size:
        frame = frame.resize((frame.width // 2, frame.height // 2), Image.Resampling.BOX)
    scale = image_size / min(frame.size)
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
        yield from _folder_pictures(task)
        return
    done = 0
    if not _is_gif(task.path) and os.path.getsize(task.path) <= _DECORD_BYTES:
        # decord is the faster one; what it cannot open or stumbles over goes to PyAV, from the frame it got to.
        with contextlib.suppress(Exception):  # PyAV tries the same and says what is wrong
            for picture in _decord_pictures(task):
                yield picture
                done += 1
            return
    yield from _av_pictures(task, skip=done)


def count_frames(path: str) -> int:
    """About how many frames a video has, without decoding it; 0 where it does not say.

    Raises:
        Exception: whatever the decoder makes of a broken file.
    """
    if os.path.isdir(path):
        return len(_frame_names(path))
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        length_s = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        length_s = length_s or (container.duration or 0) / av.time_base
        return stream.frames or round(length_s * float(stream.average_rate or 0))


def _frame_names(folder: str) -> list[str]:
    names = (name for name in os.listdir(folder) if name.lower().endswith(FRAME_SUFFIXES) and name[0] != ".")
    return sorted(names, key=natural_key)


def _folder_pictures(task: Task) -> Iterator[tuple[Image.Image, float | None]]:
    for name in _frame_names(task.path)[task.start :: task.stride][: task.count]:
        try:
            with Image.open(Path(task.path, name)) as picture:
                yield _flat(picture), None
        except OSError as error:
            raise ValueError(f"frame {name}: {error}") from None


def _decord_pictures(task: Task) -> Iterator[tuple[Image.Image, float | None]]:
    import decord

    num_frames, pixels = _declared(task.path)
    reader = decord.VideoReader(task.path, ctx=decord.cpu(0), num_threads=1)
    if len(reader) < num_frames:
        raise ValueError("decord finds fewer frames than the file announces")
    together = max(1, min(task.chunk_frames, _TOGETHER_PIXELS // max(1, pixels)))
    indices = range(task.start, len(reader), task.stride)[: task.count]
    fps = float(reader.get_avg_fps()) or None
    for at in range(0, len(indices), together):
        batch = reader.get_batch(list(indices[at : at + together])).asnumpy()  # (n, H, W, 3)
        for frame in batch:
            yield Image.fromarray(frame), fps


def _declared(path: str) -> tuple[int, int]:
    """Number of frames and pixels of a frame, as the file says.

    Raises:
        ValueError: the frames are too large.
    """
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        _check_size(stream.width, stream.height)
        return stream.frames, stream.width * stream.height


def _check_size(width: int, height: int) -> None:
    if width * height > _MAX_PIXELS:
        raise ValueError(f"frames of {width}x{height} are too large")


def _av_pictures(task: Task, skip: int) -> Iterator[tuple[Image.Image, float | None]]:
    """As `_decord_pictures`, without the first `skip` ones."""
    import av

    wanted = range(task.start, sys.maxsize, task.stride)[: task.count]
    with av.open(task.path) as container:
        if not container.streams.video:
            raise ValueError("there is no video in it, only " + _other_streams(container))
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        _check_size(stream.width, stream.height)
        fps = float(stream.average_rate) if stream.average_rate else None
        number, end_s = -1, 0.0
        for number, frame in enumerate(container.decode(stream)):
            if number > wanted[-1]:
                return
            end_s = max(end_s, (frame.time or 0.0) + float((frame.duration or 0) * (frame.time_base or 0)))
            if number not in wanted or wanted.index(number) < skip:
                continue
            _check_size(frame.width, frame.height)
            picture = _flat(Image.fromarray(frame.to_ndarray(format="rgba"), "RGBA"))
            yield picture.rotate(frame.rotation, expand=True) if frame.rotation else picture, fps
        _check_whole(stream, number + 1, end_s)


def _check_whole(stream: Any, num_frames: int, end_s: float) -> None:
    """A file that was cut off may just end early; one with an edit list has fewer frames on purpose, but all its time.

    Raises:
        ValueError: both frames and time are missing.
    """
    length_s = float((stream.duration or 0) * stream.time_base) if stream.time_base else 0.0
    if num_frames < stream.frames and end_s < 0.95 * length_s:
        raise ValueError(f"it ends after {num_frames} of {stream.frames} frames")


def _other_streams(container: Any) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing that can be decoded"


def _flat(picture: Image.Image) -> Image.Image:
    """RGB; transparent pixels show white behind them."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture).convert("RGB")


def _is_gif(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"GIF8"


def reason_of(error: BaseException) -> str:
    """One line that says why a video could not be decoded; it names no path, which may be a temporary one."""
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return "cannot be decoded: " + " ".join(text.split())[:200]


def main() -> None:
    """Serve tasks until standard input ends."""
    _die_with(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries may print to standard output, which carries the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    # Imported before the first video's time runs.
    import av  # noqa: F401
    import decord  # noqa: F401

    _send(answers, {"kind": "ready"})
    for line in sys.stdin.buffer:
        _serve(Task(**json.loads(line)), answers)


def _serve(task: Task, answers: BinaryIO) -> None:
    num_frames = 0
    fps: float | None = None
    try:
        if task.only_count:
            num_frames = count_frames(task.path)
            _send(answers, {"kind": "end", "num_frames": num_frames, "fps": None})
            return
        for chunk, rate in decode(task):
            num_frames, fps = num_frames + len(chunk), rate
            _send(answers, {"kind": "frames", "count": len(chunk)}, chunk.tobytes())
    except BrokenPipeError:
        raise
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


def line_of(task: Task) -> bytes:
    """The task as the process reads it."""
    return json.dumps(asdict(task)).encode() + b"\n"


if __name__ == "__main__":
    main()
