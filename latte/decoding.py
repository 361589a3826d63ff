"""What runs inside a decoder process: a video becomes frames, cropped and scaled.

`latte.decoders` starts it and watches over it. The process reads one JSON task a line on standard input and answers
with messages: a JSON line, then the frames' bytes. It keeps nothing from one video to the next, so a video that kills
it costs that video only.
"""

import contextlib
import ctypes
import itertools
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

FRAME_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_PR_SET_PDEATHSIG = 1
# Raised whenever the frames of a given video change, so that latents made before are not taken for equal.
TRANSFORM_VERSION = 4
# PIL refuses larger pictures as bombs; so does this for videos.
_MAX_PIXELS = 16384 * 16384
# A frame that is much longer than wide grows as long when its shorter side is scaled up.
_MAX_SCALED_PIXELS = 1 << 26
# What FFmpeg may take a file for. Others read further files (concat, hls), or make a video of any text (tty).
_FORMATS = "3gp,apng,asf,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mp4,mpeg,mpegts,mpegvideo,nut,ogg,rm,webm"
# decord reads on in the file until the next frame is decoded, as far as it comes while its decoding thread waits for a
# core, and keeps a frame's memory for all that it has read: on a busy machine, the whole video's. Videos of more bytes,
# decoded, go to PyAV, which reads what it decodes.
_DECORD_BYTES = 128 << 20
# Of a file's declared length, what must be there.
_MOSTLY = 0.95


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
        yield from _folder_pictures(task)
        return
    done = 0
    if not _is_gif(task.path):
        # What decord had better not open, or stumbles over, goes to PyAV, from the frame it got to.
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
        return len(frame_names(os.listdir(path)))
    with _opened(path) as container:
        return _about_frames(container, _video_stream(container))


def frames_at_most(path: str, most: int) -> int:
    """The most frames that a video can give, counted to `most`; 0 where it is none, `most` where it is damaged."""
    if os.path.isdir(path):
        return min(most, len(frame_names(os.listdir(path))))
    number = 0
    try:
        with _opened(path) as container:
            filled = (1 for packet in container.demux(_video_stream(container)) if packet.size)
            number = most  # until all are counted
            number = sum(itertools.islice(filled, most))
    except Exception:  # what is wrong with it is told where it is decoded
        return number
    return number


def _about_frames(container: Any, stream: Any) -> int:
    import av

    length_s = _length_s(container, stream) or (container.duration or 0) / av.time_base
    return stream.frames or round(length_s * float(stream.average_rate or 0))


def frame_names(names: Iterable[str]) -> list[str]:
    """Those of a folder's files that are frames, in their order."""
    frames = (name for name in names if name.lower().endswith(FRAME_SUFFIXES) and not name.startswith("."))
    return sorted(frames, key=natural_key)


def _folder_pictures(task: Task) -> Iterator[tuple[Image.Image, float | None]]:
    for name in frame_names(os.listdir(task.path))[task.start :: task.stride][: task.count]:
        try:
            with Image.open(Path(task.path, name)) as picture:
                yield _flat(ImageOps.exif_transpose(picture)), None
        except OSError as error:
            raise ValueError(f"frame {name}: {error}") from None


def _opened(path: str) -> Any:
    """The file as PyAV's container, if it is one of a video."""
    import av

    return av.open(path, container_options={"format_whitelist": _FORMATS})


def _video_stream(container: Any) -> Any:
    """The video of a container; the picture on the cover of a song is none.

    Raises:
        ValueError: there is none.
    """
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise ValueError("there is no video in it, only " + _other_streams(container))


def _decord_pictures(task: Task) -> Iterator[tuple[Image.Image, float | None]]:
    import decord

    num_frames, pixels, length_s = _declared(task.path)
    reader = decord.VideoReader(task.path, ctx=decord.cpu(0), num_threads=1)
    _check_decord(len(reader), pixels)
    if len(reader) < num_frames:
        raise ValueError("decord finds fewer frames than the file announces")
    if not num_frames and float(reader.get_frame_timestamp(len(reader) - 1)[1]) < _MOSTLY * length_s:
        raise ValueError("decord's last frame ends before the file's announced length")
    wanted = range(task.start, len(reader), task.stride)[: task.count]
    fps = float(reader.get_avg_fps()) or None
    # One after the other: where it jumps, decord gives wrong frames of open groups of pictures and B-frames.
    for at in range(0, wanted[-1] + 1 if wanted else 0, task.chunk_frames):
        numbers = range(at, min(at + task.chunk_frames, wanted[-1] + 1))
        batch = reader.get_batch(list(numbers)).asnumpy()  # (n, H, W, 3)
        for number, frame in zip(numbers, batch, strict=True):
            if number in wanted:
                yield Image.fromarray(frame), fps


def _declared(path: str) -> tuple[int, int, float]:
    """Number of frames, pixels of a frame and length in seconds, as the file says; 0 for what it does not say.

    Raises:
        ValueError: it is too much for decord.
    """
    with _opened(path) as container:
        stream = _video_stream(container)
        pixels = stream.width * stream.height
        _check_decord(_about_frames(container, stream), pixels)
        return stream.frames, pixels, _length_s(container, stream)


def _check_decord(num_frames: int, pixels: int) -> None:
    if num_frames * pixels * 3 > _DECORD_BYTES:
        raise ValueError("decord might decode all of it into memory")


def _length_s(container: Any, stream: Any) -> float:
    """Length of the video as the file says; that of the whole file only where the video is all that is in it."""
    import av

    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska says it in a tag: 00:00:08.000000000.
    tag = re.fullmatch(r"([0-9]+):([0-9]{2}):([0-9.]+)", stream.metadata.get("DURATION", ""))
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0


def _check_size(width: int, height: int) -> None:
    if width * height > _MAX_PIXELS:
        raise ValueError(f"frames of {width}x{height} are too large")


def _av_pictures(task: Task, skip: int) -> Iterator[tuple[Image.Image, float | None]]:
    """As `_decord_pictures`, without the first `skip` ones."""
    wanted = range(task.start, sys.maxsize, task.stride)[: task.count]
    with _opened(task.path) as container:
        stream = _video_stream(container)
        stream.thread_type = "NONE"
        _check_size(stream.width, stream.height)
        fps = float(stream.average_rate) if stream.average_rate else None
        number, end_s, longest_s = -1, 0.0, 0.0
        for number, frame in enumerate(container.decode(stream)):
            if number > wanted[-1]:
                return
            ends_s = (frame.time or 0.0) + float((frame.duration or 0) * (frame.time_base or 0))
            end_s, longest_s = max(end_s, ends_s), max(longest_s, ends_s - end_s)
            if number not in wanted or wanted.index(number) < skip:
                continue
            _check_size(frame.width, frame.height)
            pixels = frame.to_ndarray(format="rgba" if _may_be_clear(frame.format) else "rgb24")  # (H, W, 4 or 3)
            picture = _flat(Image.fromarray(pixels))
            yield picture.rotate(frame.rotation, expand=True) if frame.rotation else picture, fps
        _check_whole(stream.frames, number + 1, _length_s(container, stream), end_s, longest_s)


def _check_whole(declared: int, num_frames: int, length_s: float, end_s: float, longest_s: float) -> None:
    """A file that was cut off may just end early; one with an edit list has fewer frames on purpose, but all its time.

    Where the number of frames is not declared, the last may be shown as long as any before it.

    Raises:
        ValueError: both frames and time are missing.
    """
    if end_s >= _MOSTLY * length_s:
        return
    if num_frames < declared:
        raise ValueError(f"it ends after {num_frames} of {declared} frames")
    if not declared and end_s + longest_s < length_s:
        raise ValueError(f"it ends after {end_s:.2f} of {length_s:.2f} s")


def _may_be_clear(pixel_format: Any) -> bool:
    return pixel_format.has_palette or any(component.is_alpha for component in pixel_format.components)


def _other_streams(container: Any) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing that can be decoded"


def _flat(picture: Image.Image) -> Image.Image:
    """RGB of 8 bits; transparent pixels show white behind them."""
    if picture.mode.startswith("I"):  # 16 bits, which PIL would cut off at 255
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
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
    import decord  # noqa: F401

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
