"""The frames that a video file holds: those that ffmpeg's command line shows, upright, as RGB of 8 bits.

Runs inside a decoder process (`decoder_process`). PyAV decodes every file from its first packet on, one frame at a
time, whatever its size.
"""

import itertools
import math
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

# PIL refuses larger pictures as bombs; so does this for videos.
_MAX_PIXELS = 16384 * 16384
# What FFmpeg may take a file for. Others read further files (concat, hls), or make a video of any text (tty).
_FORMATS = "3gp,apng,asf,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mp4,mpeg,mpegts,mpegvideo,nut,ogg,rm,webm"
_READ_BYTES = 1 << 18
# What a default stream is preferred by, in pixels of a frame.
_DEFAULT_PIXELS = 5_000_000
# Of a file's declared length, what must be there.
_MOSTLY = 0.95


def read(file: BinaryIO, wanted: range) -> Iterator[tuple[Image.Image, float | None]]:
    """Those frames of a video file whose numbers are wanted, RGB, each with the frame rate.

    Raises:
        Exception: whatever the decoder makes of a broken file.
        ValueError: a frame is damaged, or the file ends early.
    """
    from av.video.reformatter import VideoReformatter

    to_rgb = VideoReformatter()  # one for all frames: setting it up takes longer than a small frame
    with _opened(file) as container:
        stream = _video_stream(container)
        _check_size(stream.width, stream.height)
        fps = float(stream.average_rate) if stream.average_rate else None
        time_base = float(stream.time_base or 0)
        # What was shifted to before zero is shown, too, and counts as length.
        start_s = min(0.0, (stream.start_time or 0) * time_base)
        number, end_s, longest_s = -1, 0.0, 0.0
        for number, frame in enumerate(_decoded(container, stream)):
            if number > wanted[-1]:
                return
            if frame.is_corrupt:
                raise ValueError(f"frame {number} is damaged")
            shown = frame.dts if frame.pts is None else frame.pts
            ends_s = ((shown or 0) + (frame.duration or 0)) * time_base - start_s
            end_s, longest_s = max(end_s, ends_s), max(longest_s, ends_s - end_s)
            if number in wanted:
                _check_size(frame.width, frame.height)
                clear = _may_be_clear(frame.format)
                rgb = to_rgb.reformat(frame, format="rgba" if clear else "rgb24", threads=1)
                picture = Image.fromarray(rgb.to_ndarray())  # (H, W, 4 or 3)
                yield _upright(flat(picture) if clear else picture, _display_matrix(frame)), fps
        _check_whole(stream.frames, number + 1, _length_s(container, stream), end_s, longest_s)


def count(file: BinaryIO) -> int:
    """About how many frames a video file shows, without decoding it; 0 where it does not say.

    Raises:
        Exception: whatever the decoder makes of a broken file.
    """
    import av

    with _opened(file) as container:
        stream = _video_stream(container)
        length_s = _length_s(container, stream) or (container.duration or 0) / av.time_base
        by_length = round(length_s * float(stream.average_rate or 0))
        # Of the frames in the file, an edit list may leave some out, which then take none of its length.
        return min(stream.frames, by_length) if stream.frames and by_length else stream.frames or by_length


def at_most(file: BinaryIO, most: int) -> int:
    """The most frames that a file can give, by its packets, counted to `most`; 0 without a video, `most` if damaged."""
    number = 0
    try:
        with _opened(file) as container:
            filled = (1 for packet in container.demux(_video_stream(container)) if packet.size)
            number = most  # until all are counted
            number = sum(itertools.islice(filled, most))
    except Exception:  # what is wrong with it is told where it is decoded
        return number
    return number


def flat(picture: Image.Image) -> Image.Image:
    """RGB of 8 bits; transparent pixels show white behind them."""
    if picture.mode.startswith("I"):  # 16 bits, which PIL would cut off at 255
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture).convert("RGB")


def _opened(file: BinaryIO) -> Any:
    """The file as PyAV's container, if it is one of a video."""
    import av

    # No protocol: what a file names beside itself is not opened.
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
    return av.open(file, container_options=options, buffer_size=_READ_BYTES)


def _video_stream(container: Any) -> Any:
    """The video that ffmpeg picks of several: the largest; the picture on the cover of a song is none.

    Raises:
        ValueError: there is none, or none that can be decoded.
    """
    from av.stream import Disposition

    def rank(stream: Any) -> int:
        preferred = _DEFAULT_PIXELS if stream.disposition & Disposition.default else 0
        return int(stream.width * stream.height + preferred)

    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not videos:
        raise ValueError("there is no video in it, only " + _other_streams(container))
    known = [stream for stream in videos if stream.codec_context is not None]
    if not known:
        raise ValueError("there is no decoder for its video")
    return max(known, key=rank)


def _other_streams(container: Any) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing that can be decoded"


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Every frame that comes out of the decoder, in the order in which it is shown.

    Packets that need a keyframe from before the stream begins give nothing.

    Raises:
        av.FFmpegError: a packet behind the first keyframe cannot be decoded, or none can.
        ValueError: one of the frames in a packet cannot be decoded.
    """
    from av.error import InvalidDataError

    decoder = stream.codec_context
    decoder.thread_count = 1  # there is a process for each core
    begun, trouble = False, None
    # A packet without data is a frame that was dropped when it was recorded; the decoder would take it for the end.
    for packet in itertools.chain((packet for packet in container.demux(stream) if packet.size), (None,)):
        try:
            frames = decoder.decode(packet)
        except InvalidDataError as error:
            if begun:
                raise
            decoder.flush_buffers()  # of what else is in the packet, which would stand in the way of the next one
            trouble = error
            continue
        except BlockingIOError:  # PyAV hands on the frames of a packet before a damaged one, and leaves that for later
            raise ValueError("a frame is damaged") from None
        begun |= bool(frames) or (packet is not None and packet.is_keyframe)
        yield from frames
    if trouble is not None and not begun:
        raise trouble


def _display_matrix(frame: Any) -> tuple[int, ...] | None:
    """Display matrix of a frame, 3x3 numbers by rows, where the file has one."""
    from av.sidedata.sidedata import Type

    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    return None if matrix is None else struct.unpack("=9i", bytes(matrix))


def _upright(picture: Image.Image, matrix: tuple[int, ...] | None) -> Image.Image:
    """A picture turned and mirrored as ffmpeg does by a display matrix."""
    if matrix is None:
        return picture
    turn = Image.Transpose
    across, along = math.hypot(matrix[0], matrix[3]), math.hypot(matrix[1], matrix[4])
    if not across or not along:
        return picture
    clockwise = round(math.degrees(math.atan2(matrix[1] / along, matrix[0] / across))) % 360
    if clockwise == 90:
        return picture.transpose(turn.TRANSPOSE if matrix[3] > 0 else turn.ROTATE_270)
    if clockwise == 270:
        return picture.transpose(turn.TRANSVERSE if matrix[3] < 0 else turn.ROTATE_90)
    if clockwise == 180 and matrix[0] < 0:
        picture = picture.transpose(turn.FLIP_LEFT_RIGHT)
    if clockwise in (0, 180):
        return picture.transpose(turn.FLIP_TOP_BOTTOM) if matrix[4] < 0 else picture
    return picture.rotate(-clockwise, Image.Resampling.BILINEAR)


def _may_be_clear(pixel_format: Any) -> bool:
    return pixel_format.has_palette or any(component.is_alpha for component in pixel_format.components)


def _check_size(width: int, height: int) -> None:
    if width * height > _MAX_PIXELS:
        raise ValueError(f"frames of {width}x{height} are too large")


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
