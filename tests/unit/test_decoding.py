"""Frames from files of every kind, in processes that may hang, die or be left alone."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latte import decoding, storage, video
from latte.catalog import DatasetConfig, scan
from latte.decoders import Chunk, End, Source, count_frames, decode_all
from latte.decoding import center_crop
from tests import memory, video_files
from tests.video_files import decode


def processes_named(text: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text in line and state != "Z":
            found.append(int(folder.name))
    return found


def wait_until(true: object, limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


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

KINDS = {
    "a.mp4": ("libx264", "yuv420p"),
    "b.avi": ("mpeg4", "yuv420p"),
    "c.mkv": ("libx264", "yuv444p"),
    "d.webm": ("libvpx-vp9", "yuv420p"),
    "e.mov": ("libx264", "yuv420p"),
    "ten-bit.mp4": ("libx264", "yuv420p10le"),
    "lossless.mkv": ("ffv1", "bgr0"),
}


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
    sizes = [len(e.frames) for e in decode_all([Source(path.as_uri())], 32) if isinstance(e, Chunk)]
    assert sizes == [16, 16, 16, 2]
    ((got, _),) = decode(path, max_frames=21)
    assert len(got) == 21


def test_files_that_decord_could_read_into_memory_go_to_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(video_files.write(tmp_path / "a.mp4", video_files.moving(20)))
    task = decoding.Task(path, 32, chunk_frames=8)
    by_decord = np.concatenate([frames for frames, _ in decoding.decode(task)])
    monkeypatch.setattr(decoding, "_DECORD_BYTES", os.path.getsize(path) - 1)
    monkeypatch.setattr(decoding, "_decord_pictures", None)  # would be called in vain
    chunks = list(decoding.decode(task))
    assert [len(frames) for frames, _ in chunks] == [8, 8, 4]
    assert {fps for _, fps in chunks} == {25.0}
    by_pyav = np.concatenate([frames for frames, _ in chunks])
    assert np.abs(by_pyav.astype(int) - by_decord).max() <= 4


def test_a_variable_frame_rate_gives_each_frame_once(tmp_path: Path) -> None:
    import av

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


def test_large_frames_are_decoded_a_few_at_a_time(tmp_path: Path) -> None:
    path = video_files.write(tmp_path / "large.mp4", np.zeros((24, 1440, 2560, 3), np.uint8), "mpeg4")
    with memory.watched() as peaks:
        ((got, _),) = decode(path)
    assert got.shape == (24, 32, 32, 3)
    assert peaks.decoder_bytes < 520e6  # 430e6; with 16 at a time 610e6


def test_frames_are_counted_without_decoding(tmp_path: Path) -> None:
    paths = [video_files.write(tmp_path / name, video_files.moving(20), *kind) for name, kind in KINDS.items()]
    paths.append(video_files.write_frames(tmp_path / "folder", video_files.moving(20)))
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


# ------------------------------------------------------------------------------------------------------- bad videos


def test_bad_videos_cost_themselves_only(tmp_path: Path) -> None:
    good = video_files.write(tmp_path / "good.mp4", video_files.moving(20))
    whole = good.read_bytes()
    (tmp_path / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    video_files.write_audio(tmp_path / "audio.mp4")
    (tmp_path / "empty-folder").mkdir()
    front = tmp_path / "front.mp4"
    video.write_preview(front, video_files.moving(30), 25)  # its index stands in front, so the cut hits frames
    front.write_bytes(front.read_bytes()[: front.stat().st_size // 2])
    bad = [tmp_path / name for name in ("truncated.mp4", "zero.mp4", "text.mp4", "audio.mp4", "empty-folder")]
    bad += [front, tmp_path / "missing.mp4"]
    paths = [path for one in bad for path in (one, good)]
    done = decode(*paths)
    for path, (got, end) in zip(paths, done, strict=True):
        if path == good:
            assert got.shape == (20, 32, 32, 3)
        else:
            assert got is None
            assert "\n" not in end.reject
            assert str(tmp_path) not in end.reject
    assert "only audio" in done[6][1].reject


def test_a_broken_picture_rejects_its_folder(tmp_path: Path) -> None:
    folder = video_files.write_frames(tmp_path / "video", video_files.moving(3))
    (folder / "frame1.png").write_bytes(b"\x89PNG broken")
    ((got, end),) = decode(folder)
    assert got is None
    assert "frame1.png" in end.reject


def test_a_decoder_that_hangs_is_ended_and_the_next_video_decoded(tmp_path: Path) -> None:
    # A pipe that nobody writes to: opening it blocks inside the decoder.
    os.mkfifo(tmp_path / "hang.mp4")
    good = video_files.write(tmp_path / "good.mp4", video_files.moving(5))
    started = time.monotonic()
    (_, end), (got, _) = decode(tmp_path / "hang.mp4", good, workers=1, limit_s=1)
    assert end.reject == "decoding took longer than 1 s and 0.1 s a frame"
    assert len(got) == 5
    assert time.monotonic() - started < 20


def test_a_decoder_that_is_killed_costs_one_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "victim.mp4")
    good = video_files.write(tmp_path / "good.mp4", video_files.moving(5))
    mark = f"latte.decoding {os.getpid()}"

    def kill_the_decoder() -> None:
        wait_until(lambda: processes_named(mark))
        time.sleep(1)
        for pid in processes_named(mark):
            os.kill(pid, signal.SIGKILL)

    before = processes_named(mark)
    for pid in before:  # the decoder that single clips share
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes_named(mark))
    killer = threading.Thread(target=kill_the_decoder)
    killer.start()
    (_, end), (got, _) = decode(tmp_path / "victim.mp4", good, workers=1, limit_s=60)
    killer.join()
    assert end.reject == "its decoder ended by SIGKILL"
    assert len(got) == 5


def test_a_changed_file_is_not_taken_for_the_listed_one(tmp_path: Path) -> None:
    path = video_files.write(tmp_path / "a.mp4", video_files.moving(3))
    digest = storage.sha256_file(path)
    video_files.write(path, video_files.moving(3, seed=1))
    (end,) = decode_all([Source(path.as_uri(), digest)], 32)
    assert "changed after it was listed" in end.reject
    assert end.passing


def test_a_file_that_is_gone_may_come_back(tmp_path: Path) -> None:
    (end,) = decode_all([Source((tmp_path / "gone.mp4").as_uri(), "0" * 64)], 32)
    assert end.reject == "it vanished after it was listed; run again"
    assert end.passing


def test_frames_are_checked_too(tmp_path: Path) -> None:
    folder = video_files.write_frames(tmp_path / "frames", video_files.moving(3))
    (entry,) = scan(DatasetConfig(videos=str(tmp_path), layout="frames")).entries
    assert [e.reject for e in decode_all([Source(entry.uri, entry.digest)], 32) if isinstance(e, End)] == [None]
    shutil.copy(folder / "frame0.png", folder / "frame1.png")
    (end,) = decode_all([Source(entry.uri, entry.digest)], 32)
    assert "changed after it was listed" in end.reject


def test_a_library_s_name_in_the_current_folder_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "av.py").write_text("raise SystemExit(3)")
    path = video_files.write(tmp_path / "a.mp4", video_files.moving(3))
    monkeypatch.chdir(tmp_path)
    ((frames, _),) = decode(path)
    assert len(frames) == 3


@pytest.mark.parametrize("name", ["b.avi", "c.mkv", "d.webm", "e.mov"])
def test_a_file_that_was_cut_off_is_rejected(tmp_path: Path, name: str) -> None:
    path = video_files.write(tmp_path / name, video_files.moving(200), *KINDS[name])
    assert decode(path)[0][1].num_frames == 200
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    ((_, end),) = decode(path)
    assert end.reject
    assert not end.passing


def test_a_last_picture_that_stays_long_is_no_cut(tmp_path: Path) -> None:
    path = tmp_path / "slides.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number, pixels in enumerate(video_files.moving(4)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = 50 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    ((frames, _),) = decode(path)
    assert len(frames) == 4


def test_pictures_of_16_bits_and_turned_ones(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    ramp = np.repeat(np.linspace(0, 65535, 32)[None], 32, axis=0).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "frames" / "0.png")
    half = Image.fromarray(np.repeat(np.repeat([[0, 255]], 16, axis=1), 32, axis=0).astype(np.uint8))
    exif = half.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    half.save(tmp_path / "frames" / "1.png", exif=exif)
    ((frames, _),) = decode(tmp_path / "frames")
    np.testing.assert_allclose(frames[0, 0, :, 0], ramp[0] / 257, atol=1)
    assert frames[1, 0].max() == 0
    assert frames[1, -1].min() == 255


def test_what_is_no_video_is_not_made_one(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello\n" * 50)
    video_files.write(tmp_path / "other.mp4", video_files.moving(3))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    (tmp_path / "line").mkdir()
    Image.new("RGB", (80000, 1)).save(tmp_path / "line" / "0.png")
    song = tmp_path / "song.mp4"
    with av.open(str(video_files.write_audio(tmp_path / "plain.mp4"))) as source, av.open(str(song), "w") as target:
        sound = target.add_stream_from_template(source.streams.audio[0])
        cover = target.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        target.mux(cover.encode(av.VideoFrame.from_ndarray(video_files.moving(1)[0], format="rgb24")))
        target.mux(cover.encode())
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = sound
                target.mux(packet)
    names = ("readme.txt", "list.mp4", "line", "song.mp4")
    reasons = [end.reject for _, end in decode(*(tmp_path / name for name in names))]
    assert all(reasons), reasons
    assert "too long and narrow" in reasons[2]
    assert "only audio" in reasons[3]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_decoder_outlives_the_process_that_started_it(tmp_path: Path, how: signal.Signals) -> None:
    os.mkfifo(tmp_path / "hang.mp4")
    code = textwrap.dedent(
        """
        import sys
        from latte.decoders import Source, decode_all
        list(decode_all([Source(sys.argv[1])] * 2, 32))
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", code, (tmp_path / "hang.mp4").as_uri()], stderr=subprocess.DEVNULL)
    mark = f"latte.decoding {parent.pid}"
    wait_until(lambda: len(processes_named(mark)) == 2)
    time.sleep(0.5)
    parent.send_signal(how)
    parent.wait(20)
    wait_until(lambda: not processes_named(mark))


def test_closing_the_iterator_ends_the_decoders(tmp_path: Path) -> None:
    path = video_files.write(tmp_path / "a.mp4", video_files.moving(100))
    threads = threading.active_count()
    events = decode_all([Source(path.as_uri())] * 4, 32)
    next(events)
    events.close()
    assert threading.active_count() == threads
