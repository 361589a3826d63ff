"""Videos in and out: frames of a clip as the encoder saw them, lossless clips, previews for browsers."""

import atexit
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from latte import storage
from latte.errors import LatteError, UserError
from latte.video.decoder_process import DecodeTask
from latte.video.decoders import Chunk, Decoder, decode_one
from latte.video.sources import VideoSource
from latte.video.views import Box

# Decisions that x264 takes by looking ahead vary from run to run on small pictures.
_DETERMINISTIC_X264 = "bframes=0:rc-lookahead=0:mbtree=0"
# A decoder ends with the thread that started it, so each thread has its own.
_of_thread = threading.local()


class DecodeError(LatteError):
    """A video could not be decoded."""


def load_real_clip(
    entry_uri: str, start: int, stride: int, num_frames: int, image_size: int, crop: Box | None = None
) -> np.ndarray:
    """Frames of a real video as the encoder saw them, uint8 RGB, (F, S, S, 3).

    Args:
        entry_uri: the video file or the folder of its frames, `file://` or `s3://`.
        start: first frame.
        stride: distance between frames.
        num_frames: F.
        image_size: S.
        crop: what the encoder took of every frame.

    Raises:
        DecodeError: the video cannot be decoded or ends before the clip does.
        UserError: the video is gone.
    """
    task = DecodeTask("", image_size, num_frames, start, stride, num_frames, crop=crop)
    path = storage.path(entry_uri)
    if path is not None and not path.exists():
        raise UserError(f"{entry_uri}: no such video")
    frames = []
    for value in decode_one(_decoder(), 0, VideoSource(entry_uri), task):
        if isinstance(value, Chunk):
            frames.append(value.frames)
        elif value.reject is not None:
            raise DecodeError(f"{entry_uri}: {value.reject}")
    clip = np.concatenate(frames)  # (F, S, S, 3)
    if len(clip) != num_frames:
        raise DecodeError(f"{entry_uri}: wanted {num_frames} frames from {start} at stride {stride}, got {len(clip)}")
    return clip


def write_lossless(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write frames as FFV1 in Matroska; `read_lossless` gives back exactly these, and equal frames make equal bytes.

    Args:
        path: local file; its name need not end in .mkv.
        frames: uint8 RGB, (F, H, W, 3).
        fps: frames per second.
    """
    options = {"level": "3", "slices": "1", "slicecrc": "1"}
    _write(path, frames, fps, "matroska", "ffv1", "bgr0", options, {})


def write_preview(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write frames as H.264 in MP4, which every browser plays; equal frames make equal bytes.

    Args:
        path: local file; its name need not end in .mp4.
        frames: uint8 RGB, (F, H, W, 3); an odd side is made even by repeating its last row or column.
        fps: frames per second.
    """
    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # (F, H', W', 3)
    options = {"crf": "18", "preset": "medium", "profile": "high", "x264-params": _DETERMINISTIC_X264}
    _write(path, even, fps, "mp4", "libx264", "yuv420p", options, {"movflags": "+faststart"})


def read_lossless(path: str | Path) -> np.ndarray:
    """Frames that `write_lossless` wrote, uint8 RGB, (F, H, W, 3), from a local path or a URI.

    This process decodes them itself, so nothing but FFV1 in Matroska is taken.

    Raises:
        UserError: no such file, or not such a video.
    """
    import av

    options = {"codec_whitelist": "ffv1", "protocol_whitelist": "none"}
    with storage.as_local_file(str(path)) as local, local.open("rb") as file:
        try:
            with av.open(file, "r", format="matroska", container_options=options) as container:
                if getattr(container.streams.video[0].codec_context, "name", "") != "ffv1":
                    raise UserError(f"{path}: not a video that can be read: not FFV1 in Matroska")
                frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]  # (H, W, 3) each
        except (av.FFmpegError, IndexError) as error:
            raise UserError(f"{path}: not a video that can be read: {error}") from None
    return np.stack(frames)  # (F, H, W, 3)


def _write(
    path: str | Path,
    frames: np.ndarray,
    fps: float,
    container_format: str,
    codec: str,
    pixels: str,
    options: dict[str, str],
    container_options: dict[str, str],
) -> None:
    import av

    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames: expected uint8 (F, H, W, 3), got {frames.dtype} {frames.shape}")
    rate = Fraction(fps).limit_denominator(1001)
    # bitexact leaves out dates, library versions and random identifiers.
    with av.open(
        str(path), "w", format=container_format, options={"fflags": "+bitexact", **container_options}
    ) as container:
        stream: Any = container.add_stream(codec, rate=rate, options={"flags": "+bitexact", **options})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def _decoder() -> Decoder:
    """This thread's decoder, kept so that not every clip pays for a process's start."""
    if not hasattr(_of_thread, "decoder"):
        _of_thread.decoder = Decoder()
        atexit.register(_of_thread.decoder.close)
    decoder: Decoder = _of_thread.decoder
    return decoder
