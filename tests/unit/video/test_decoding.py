"""Frames from files of every kind, in processes that may hang, die or be left alone."""

import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latte.video import decoder_process
from latte.video.decoder_process import center_crop
from latte.video.decoders import Chunk, count_frames, decode_all
from latte.video.sources import VideoSource
from tests import memory, video_files
from tests.video_files import KINDS, decode

# ----------------------------------------------------------------------------------------------------- the transform


def adm_center_crop(picture: Image.Image, size: int) -> np.ndarray:
    """The steps of ADM's published preprocessing, written out."""
    width, height = picture.size
    while min(width, height) >= 2 * size:
        width, height = width // 2, height // 2
        picture = picture.resize((width, height), Image.BOX)
    factor = size / min(width, height)
    picture = picture.resize((round(width * factor), round(height * factor)), Image.BICUBIC)
    pixels = np.array(picture)
    y, x = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[y : y + size, x : x + size]


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([8, 17, 32]))
@settings(max_examples=40, deadline=None)
def test_center_crop_gives_a_square_of_any_picture(width: int, height: int, size: int) -> None:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = center_crop(Image.fromarray(pixels), size)
    assert out.shape == (size, size, 3)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, adm_center_crop(Image.fromarray(pixels), size))


def test_center_crop_of_the_right_size_changes_nothing() -> None:
    pixels = video_files.moving(1, 32, 32)[0]
    np.testing.assert_array_equal(center_crop(Image.fromarray(pixels), 32), pixels)


# ------------------------------------------------------------------------------------------------------ good videos


def test_every_kind_of_container(tmp_path: Path) -> None:
    frames = video_files.moving(20)
    paths = [video_files.write(tmp_path / name, frames, *kind) for name, kind in KINDS.items()]
    wanted = np.stack([center_crop(Image.fromarray(frame), 32) for frame in frames])
    for name, (got, end) in zip(KINDS, decode(*paths), strict=True):
        assert end.reject is None, (name, end)
        assert (got.shape, end.num_frames, end.fps) == ((20, 32, 32, 3), 20, 25.0), name
        limit = 0 if name == "lossless.mkv" else 12  # mpeg4 blurs colours
        assert np.abs(got.astype(int) - wanted).mean() <= limit, name


def test_the_name_says_nothing_about_the_content(tmp_path: Path) -> None:
    path = video_files.write(tmp_path / "a.mp4", video_files.moving(5))
    ((got, _),) = decode(path.rename(tmp_path / "wrong.avi"))
    assert got.shape == (5, 32, 32, 3)


def test_one_frame_odd_sides_and_strange_names(tmp_path: Path) -> None:
    one = video_files.write(tmp_path / "one.mp4", video_files.moving(1))
    odd = video_files.write(tmp_path / "odd.mkv", video_files.moving(3, 37, 51), "ffv1", "bgr0")
    name = video_files.write(tmp_path / "plain.mp4", video_files.moving(2)).rename(tmp_path / "a b\nc é 視.mp4")
    shapes = [got.shape[0] for got, _ in decode(one, odd, name)]
    assert shapes == [1, 3, 2]


def test_a_transparent_gif_shows_white_behind_it(tmp_path: Path) -> None:
    ((got, end),) = decode(video_files.write_gif(tmp_path / "a.gif"), size=40)
    assert end.num_frames == 4
    for number, frame in enumerate(got):
        square = frame[12:18, 5 * number + 2 : 5 * number + 8].astype(int)
        assert np.abs(square - (255, 0, 0)).max() < 10
        assert (frame[30:] > 245).all()
        assert (frame[:, 5 * number + 12 :] > 245).all()


def test_rotated_videos_stand_upright(tmp_path: Path) -> None:
    upright = video_files.moving(4, 48, 64)
    source = video_files.write(tmp_path / "lying.mp4", np.ascontiguousarray(np.rot90(upright, axes=(1, 2))))
    ((lying, _),) = decode(source)
    for degrees, turns in ((90, 1), (180, 2), (-90, 3)):  # counter-clockwise
        rotated = tmp_path / f"{degrees}.mp4"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", str(degrees), "-i", source]
        subprocess.run([*command, "-c", "copy", rotated], check=True)
        ((got, _),) = decode(rotated)
        assert np.abs(np.rot90(lying, turns, axes=(1, 2)).astype(int) - got).mean() < 10, (
            degrees
        )  # colours are sampled coarsely


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    frames = video_files.moving(12, 32, 32)
    ((got, end),) = decode(video_files.write_frames(tmp_path / "video", frames))
    np.testing.assert_array_equal(got, frames)
    assert end.fps is None


def test_long_videos_come_in_chunks_and_max_frames_ends_them(tmp_path: Path) -> None:
    path = video_files.write(tmp_path / "a.mp4", video_files.moving(50))
    sizes = [len(e.frames) for e in decode_all([VideoSource(path.as_uri())], 32) if isinstance(e, Chunk)]
    assert sizes == [16, 16, 16, 2]
    ((got, _),) = decode(path, max_frames=21)
    assert len(got) == 21


def test_a_variable_frame_rate_gives_each_frame_once(tmp_path: Path) -> None:

    frames = video_files.moving(12)
    path = tmp_path / "variable.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=100)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "bgr0"
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = number**2  # ever longer
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    ((got, _),) = decode(path, size=48)
    np.testing.assert_array_equal(got, frames[:, :, 8:56])


@pytest.mark.parametrize("stride", [2, 7, 100])
def test_a_stride_takes_every_so_many_frames_of_any_kind(tmp_path: Path, stride: int) -> None:
    frames = video_files.moving(40)
    paths = [video_files.write(tmp_path / name, frames, *kind) for name, kind in KINDS.items()]
    paths += [video_files.write_frames(tmp_path / "folder", frames), video_files.write_gif(tmp_path / "a.gif")]
    whole, strided = decode(*paths), decode(*paths, frame_stride=stride)
    first = decode(*paths, frame_stride=stride, max_frames=3)
    for (wanted, _), (got, end), (few, _) in zip(whole, strided, first, strict=True):
        np.testing.assert_array_equal(got, wanted[::stride])
        assert end.num_frames == len(got)
        np.testing.assert_array_equal(few, got[:3])


@pytest.mark.parametrize("name", KINDS)
def test_a_clip_is_a_slice_of_the_whole_video(tmp_path: Path, name: str) -> None:
    path = str(video_files.write(tmp_path / name, video_files.moving(60), *KINDS[name]))
    whole = np.concatenate([chunk.frames for chunk in decoder_process.decode(decoder_process.DecodeTask(path, 32))])
    for start, stride in ((13, 1), (30, 3), (59, 1)):
        task = decoder_process.DecodeTask(path, 32, start=start, stride=stride, count=8)
        clip = np.concatenate([chunk.frames for chunk in decoder_process.decode(task)])
        np.testing.assert_array_equal(clip, whole[start::stride][:8])


def test_large_frames_take_little_memory(tmp_path: Path) -> None:
    path = video_files.write(tmp_path / "large.mp4", np.zeros((24, 1440, 2560, 3), np.uint8), "mpeg4")
    with memory.watched() as peaks:
        ((got, _),) = decode(path)
    assert got.shape == (24, 32, 32, 3)
    assert peaks.decoder_bytes < 400e6  # 240e6 to 305e6; 16 frames at a time would take 610e6


def test_frames_are_counted_without_decoding(tmp_path: Path) -> None:
    frames = video_files.moving(20)
    says_it = {name: kind for name, kind in KINDS.items() if not name.endswith(".mpg")}
    paths = [video_files.write(tmp_path / name, frames, *kind) for name, kind in says_it.items()]
    paths.append(video_files.write_frames(tmp_path / "folder", frames))
    assert count_frames([path.as_uri() for path in paths]) == [20] * len(paths)
    (tmp_path / "text.mp4").write_text("not a video")
    assert count_frames([path.as_uri() for path in (tmp_path / "text.mp4", tmp_path / "none.mp4", paths[0])]) == [
        0,
        0,
        20,
    ]


def test_a_mirrored_copy_has_left_and_right_exchanged(tmp_path: Path) -> None:
    path = video_files.write(tmp_path / "a.mp4", video_files.moving(20))
    folder = video_files.write_frames(tmp_path / "folder", video_files.moving(3))
    for (plain, _), (mirrored, end) in zip(decode(path, folder), decode(path, folder, mirrored=True), strict=True):
        np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])
        assert end.num_frames == len(plain)
