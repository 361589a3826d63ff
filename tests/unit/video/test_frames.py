"""Every frame that is read is one that the file holds: ffmpeg's command line decodes the same files, and decides."""

import math
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from latte.video import decoder_process
from latte.video.decoders import count_frames
from tests import video_files
from tests.video_files import decode

SIZE, NUM_FRAMES, FPS = 64, 40, 25
# Arguments for the codec, and containers. All have a keyframe every 12 frames.
CODECS: dict[str, tuple[list[str], list[str]]] = {
    "h264": (["libx264", "-bf", "0"], ["mp4", "mov", "mkv", "avi", "ts", "flv"]),
    "h264-b-frames": (["libx264", "-bf", "3"], ["mp4", "mkv", "ts"]),
    "h264-open": (["libx264", "-bf", "3", "-x264-params", "open-gop=1"], ["mp4", "mkv", "ts"]),
    "hevc": (["libx265", "-x265-params", "keyint=12:open-gop=0:log-level=none"], ["mp4", "mkv"]),
    "hevc-open": (["libx265", "-x265-params", "keyint=12:open-gop=1:log-level=none"], ["mp4", "mkv", "ts"]),
    "mpeg4": (["mpeg4", "-q:v", "3"], ["mp4", "avi"]),
    "mpeg4-b-frames": (["mpeg4", "-q:v", "3", "-bf", "2"], ["mp4", "mkv", "avi"]),
    "mpeg2": (["mpeg2video", "-q:v", "3", "-bf", "2"], ["mpg", "ts", "mkv"]),
    "vp8": (["libvpx", "-deadline", "realtime", "-b:v", "1M"], ["webm"]),
    "vp9": (["libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M"], ["webm", "mp4"]),
    "av1": (["libaom-av1", "-cpu-used", "8", "-lag-in-frames", "16"], ["mp4", "mkv"]),
    "mjpeg": (["mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p"], ["avi", "mov", "mkv"]),
    "ffv1": (["ffv1"], ["mkv", "avi"]),
    "wmv2": (["wmv2", "-q:v", "3"], ["wmv"]),
}


def ffmpeg(*arguments: object, data: bytes | None = None) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-nostdin", *map(str, arguments)]
    if data is not None:
        command.remove("-nostdin")
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def shown_by_ffmpeg(paths: Sequence[Path], height: int = SIZE, width: int = SIZE) -> list[np.ndarray]:
    """What the command line shows of each file with its default settings, frames (n, H, W, 3), timing aside."""
    inputs = [word for path in paths for word in ("-threads", 1, "-i", path)]
    raw = [path.with_name(path.name + ".rgb") for path in paths]
    out = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    outputs = [word for n, path in enumerate(raw) for word in ("-map", f"{n}:v:0", *out, path)]
    # Of a file without its first keyframe, it counts the packets that give nothing as errors.
    ffmpeg("-max_error_rate", 1, *inputs, *outputs)
    return [np.fromfile(path, np.uint8).reshape(-1, height, width, 3) for path in raw]


def read(path: Path, size: int = SIZE) -> np.ndarray:
    return np.concatenate(
        [chunk.frames for chunk in decoder_process.decode(decoder_process.DecodeTask(str(path), size))]
    )


def assert_same(got: np.ndarray, wanted: np.ndarray, of: object) -> None:
    assert got.shape == wanted.shape, of
    assert np.abs(got.astype(int) - wanted).max() <= 4, of


def encoded(path: Path, codec: Sequence[str], frames: np.ndarray) -> Path:
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{frames.shape[2]}x{frames.shape[1]}", "-r", FPS, "-i", "-"]
    pixels = [] if codec[0] in ("mjpeg", "ffv1") else ["-pix_fmt", "yuv420p"]
    ffmpeg(*raw, "-c:v", codec[0], "-g", 12, *codec[1:], *pixels, path, data=frames.tobytes())
    return path


def cut_copies(source: Path, endings: Sequence[str]) -> list[Path]:
    """The video in other containers, without encoding it again: whole, and cut in each way."""
    ways = {
        "whole": ["-map", 0],
        "from-the-middle": ["-map", 1],
        "first-keyframe-lost": ["-map", 0, "-bsf:v", r"noise=drop=lt(n\,5)", "-copyinkf"],
        "before-zero": ["-map", 2, "-avoid_negative_ts", "disabled"],
        "late": ["-map", 3],
    }
    paths = {source.with_name(f"{way}.{ending}"): [*ways[way], "-c", "copy"] for way in ways for ending in endings}
    inputs = ["-i", source, "-ss", 0.7, "-i", source, "-itsoffset", -0.4, "-i", source, "-itsoffset", 0.5, "-i", source]
    ffmpeg(*inputs, *(word for path, words in paths.items() for word in (*words, path)))
    for ending in {"ts", "mpg"} & set(endings):
        path = source.with_name(f"any-byte.{ending}")
        whole = source.with_name(f"whole.{ending}").read_bytes()
        path.write_bytes(whole[len(whole) // 4 // 188 * 188 :])
        paths[path] = []
    return list(paths)


@pytest.mark.parametrize("name", CODECS)
def test_frames_are_those_that_ffmpeg_shows_of_any_cut(tmp_path: Path, name: str) -> None:
    codec, endings = CODECS[name]
    first = "ts" if "ts" in endings else endings[0]  # what a decoder needs stands before each of its keyframes
    source = encoded(tmp_path / f"source.{first}", codec, video_files.moving(NUM_FRAMES, SIZE, SIZE))
    paths = cut_copies(source, endings)
    for path, wanted in zip(paths, shown_by_ffmpeg(paths), strict=True):
        assert len(wanted) > NUM_FRAMES // 4, path.name
        got = read(path)
        assert_same(got, wanted, path.name)
        task = decoder_process.DecodeTask(str(path), SIZE, start=3, stride=5, count=4)
        np.testing.assert_array_equal(
            np.concatenate([chunk.frames for chunk in decoder_process.decode(task)]), got[3::5][:4]
        )


def test_frames_before_an_edit_list_s_start_are_neither_read_nor_counted(tmp_path: Path) -> None:
    source = encoded(tmp_path / "a.mp4", ["libx264", "-bf", "0"], video_files.moving(NUM_FRAMES, SIZE, SIZE))
    ffmpeg("-ss", 0.7, "-i", source, "-c", "copy", tmp_path / "cut.mp4")
    with av.open(str(tmp_path / "cut.mp4")) as container:
        held = container.streams.video[0].frames
    whole, cut = read(source), read(tmp_path / "cut.mp4")
    assert len(cut) == NUM_FRAMES - round(0.7 * FPS) < held
    np.testing.assert_array_equal(cut, whole[-len(cut) :])
    assert abs(count_frames([(tmp_path / "cut.mp4").as_uri()])[0] - len(cut)) <= 1


def with_edits(source: Path, path: Path, edits: Sequence[tuple[int, int]]) -> Path:
    """Copy an MP4 file whose index stands at its end, with another edit list: first frame and number of frames each."""
    data = bytearray(source.read_bytes())
    at = data.index(b"mdhd") + 16
    (media_rate,) = struct.unpack(">I", data[at : at + 4])
    at = data.index(b"mvhd") + 16
    (movie_rate,) = struct.unpack(">I", data[at : at + 4])
    at = data.index(b"elst") - 4
    (size,) = struct.unpack(">I", data[at : at + 4])
    new = struct.pack(">II", 0, len(edits))
    for first, count in edits:
        new += struct.pack(">IIHH", count * movie_rate // FPS, first * media_rate // FPS, 1, 0)
    new = struct.pack(">I4s", 8 + len(new), b"elst") + new
    for name in (b"moov", b"trak", b"edts"):
        box = data.index(name) - 4
        (held,) = struct.unpack(">I", data[box : box + 4])
        data[box : box + 4] = struct.pack(">I", held + len(new) - size)
    data[at : at + size] = new
    path.write_bytes(data)
    return path


def test_an_edit_list_may_show_a_stretch_twice_and_out_of_order(tmp_path: Path) -> None:
    source = encoded(tmp_path / "a.mp4", ["libx264", "-bf", "0"], video_files.moving(NUM_FRAMES, SIZE, SIZE))
    path = with_edits(source, tmp_path / "b.mp4", [(20, 10), (5, 10), (20, 5)])
    (wanted,) = shown_by_ffmpeg([path])
    got, whole = read(path), read(source)
    assert_same(got, wanted, "edits")
    np.testing.assert_array_equal(got, np.concatenate([whole[20:30], whole[5:15], whole[20:25]]))


# ------------------------------------------------------------------------------------------- frames that are not there


def rewritten_avi(path: Path, change: Callable[[int, bytes], bytes]) -> None:
    """Replace each frame's data in an AVI file; its headers stay as they are."""
    data = path.read_bytes()
    start = data.index(b"movi") + 4
    stop = start - 4 + struct.unpack("<I", data[start - 8 : start - 4])[0]
    body, index, number, at = b"", b"", 0, start
    while at + 8 <= stop:
        (size,) = struct.unpack("<I", data[at + 4 : at + 8])
        chunk = change(number, data[at + 8 : at + 8 + size])
        key = 0x10 if number == 0 else 0
        index += b"00dc" + struct.pack("<III", key, 4 + len(body), len(chunk))
        body += b"00dc" + struct.pack("<I", len(chunk)) + chunk + bytes(len(chunk) % 2)
        number, at = number + 1, at + 8 + size + size % 2
    head = data[: start - 8] + struct.pack("<I", 4 + len(body)) + b"movi" + body
    whole = head + b"idx1" + struct.pack("<I", len(index)) + index
    path.write_bytes(b"RIFF" + struct.pack("<I", len(whole) - 8) + whole[8:])


def not_coded(second_of_25: int) -> bytes:
    """A picture of MPEG-4 of which nothing is coded: P, no whole second gone by, the time in it, nothing follows."""
    bits = f"01{0:b}1{second_of_25:05b}10"
    bits += "0" + "1" * (-(len(bits) + 1) % 8)
    return b"\0\0\1\xb6" + int(bits, 2).to_bytes(len(bits) // 8, "big")


@pytest.mark.parametrize("what", ["not coded", "empty"])
def test_dropped_frames_of_a_recording_are_not_made_up(tmp_path: Path, what: str) -> None:
    path = video_files.write(tmp_path / "a.avi", video_files.moving(60, SIZE, SIZE), "mpeg4", options={"g": "12"})

    def change(number: int, chunk: bytes) -> bytes:
        if number % 6 != 3:
            return chunk
        return b"" if what == "empty" else not_coded(number % FPS)

    rewritten_avi(path, change)
    (wanted,) = shown_by_ffmpeg([path])
    assert len(wanted) == 50
    assert_same(read(path), wanted, what)


def test_a_video_with_a_damaged_frame_is_rejected(tmp_path: Path) -> None:
    path = video_files.write(tmp_path / "a.avi", video_files.moving(40, SIZE, SIZE), "mpeg4", options={"g": "12"})
    rewritten_avi(path, lambda number, chunk: chunk[: len(chunk) // 2] if number == 24 else chunk)
    assert len(shown_by_ffmpeg([path])[0]) == 40
    ((_, end),) = decode(path)
    assert end.reject == "cannot be decoded: frame 24 is damaged"


@pytest.mark.parametrize("name", ["vp8", "vp9"])
def test_a_video_without_any_keyframe_is_rejected(tmp_path: Path, name: str) -> None:
    source = encoded(tmp_path / "a.webm", CODECS[name][0], video_files.moving(10, SIZE, SIZE))
    ffmpeg("-i", source, "-c", "copy", "-bsf:v", "noise=drop=key", "-copyinkf", tmp_path / "none.webm")
    ((_, end),) = decode(tmp_path / "none.webm")
    assert end.reject == "cannot be decoded: Invalid data found when processing input"


# ------------------------------------------------------------------------------------ which way up, which of several


def with_matrix(source: Path, path: Path, matrix: Sequence[float]) -> Path:
    """Copy an MP4 file with another display matrix: its first two rows and columns."""
    data = bytearray(source.read_bytes())
    a, b, c, d = (round(value * 65536) for value in matrix)
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def test_turned_and_mirrored_videos_stand_as_ffmpeg_shows_them(tmp_path: Path) -> None:
    source = encoded(tmp_path / "a.mp4", ["libx264", "-crf", "10"], video_files.moving(3, SIZE, SIZE))
    matrices = [
        *((a, 0, 0, d) for a in (1, -1) for d in (1, -1)),
        *((0, b, c, 0) for b in (1, -1) for c in (1, -1)),
        (0.5, 0, 0, -0.5),
        (0, 0, 0, 0),
    ]
    paths = [with_matrix(source, tmp_path / f"{n}.mp4", matrix) for n, matrix in enumerate(matrices)]
    different = set()
    for matrix, path, wanted in zip(matrices, paths, shown_by_ffmpeg(paths), strict=True):
        got = read(path)
        assert_same(got, wanted, matrix)
        different.add(got.tobytes())
    assert len(different) == 8


def test_videos_that_are_turned_by_other_angles_keep_their_size(tmp_path: Path) -> None:
    source = encoded(tmp_path / "a.mp4", ["libx264", "-crf", "10"], video_files.moving(2, SIZE, SIZE))
    turn = math.radians(30)
    path = with_matrix(source, tmp_path / "b.mp4", (math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn)))
    (wanted,) = shown_by_ffmpeg([path])
    inner = slice(SIZE // 4, 3 * SIZE // 4)
    assert np.abs(read(path).astype(int) - wanted)[:, inner, inner].mean() < 3


@pytest.mark.parametrize("default", ["small", "large"])
def test_of_several_videos_in_a_file_ffmpeg_s_choice_is_read(tmp_path: Path, default: str) -> None:
    frames = video_files.moving(4, SIZE, SIZE)
    small = encoded(tmp_path / "small.mkv", ["ffv1"], frames[:, ::2, ::2].copy())
    large = encoded(tmp_path / "large.mkv", ["ffv1"], frames[::-1].copy())
    marks = ["-disposition:0", "default" if default == "small" else 0]
    marks += ["-disposition:1", "default" if default == "large" else 0]
    path = tmp_path / "both.mkv"
    ffmpeg("-i", small, "-i", large, "-map", 0, "-map", 1, "-c", "copy", *marks, path)
    side = SIZE // 2 if default == "small" else SIZE
    out = ffmpeg("-i", path, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    np.testing.assert_array_equal(read(path, side), np.frombuffer(out, np.uint8).reshape(4, side, side, 3))


def test_pixels_that_are_not_square_are_taken_as_they_are_stored(tmp_path: Path) -> None:
    frames = video_files.moving(4, SIZE, SIZE)
    encoded(tmp_path / "a.mkv", ["ffv1"], frames)
    encoded(tmp_path / "wide.mkv", ["ffv1", "-vf", "setsar=2/1"], frames)
    np.testing.assert_array_equal(read(tmp_path / "wide.mkv"), read(tmp_path / "a.mkv"))


def test_transparent_pixels_of_a_video_show_white_behind_them(tmp_path: Path) -> None:
    pixels = np.zeros((4, SIZE, SIZE, 4), np.uint8)
    pixels[:, :, : SIZE // 2, 3] = 255
    raw = ["-f", "rawvideo", "-pix_fmt", "rgba", "-s", f"{SIZE}x{SIZE}", "-r", FPS, "-i", "-"]
    ffmpeg(*raw, "-c:v", "png", tmp_path / "a.mov", data=pixels.tobytes())
    got = read(tmp_path / "a.mov")
    assert got[:, :, : SIZE // 2].max() == 0
    assert got[:, :, SIZE // 2 :].min() == 255


@pytest.mark.parametrize("colours", ["bt709", "smpte170m"])
def test_colours_are_read_by_the_matrix_that_the_file_names(tmp_path: Path, colours: str) -> None:
    tags = ["-colorspace", colours, "-color_primaries", colours, "-color_trc", colours]
    frames = video_files.moving(3, SIZE, SIZE)
    path = encoded(
        tmp_path / "a.mp4", ["libx264", "-crf", "1", "-vf", f"scale=out_color_matrix={colours}", *tags], frames
    )
    assert np.abs(read(path).astype(int) - frames).mean() < 3
    (wanted,) = shown_by_ffmpeg([path])
    assert_same(read(path), wanted, colours)
