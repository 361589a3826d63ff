"""Files that are no videos or broken ones, decoders that hang or die: each costs one video."""

import contextlib
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
import numpy as np
import pytest
from PIL import Image

from latte import storage
from latte.data.catalog import DatasetConfig, scan
from latte.video import clip_files
from latte.video.decoders import End, Limits, decode_all
from latte.video.sources import VideoSource
from tests import video_files
from tests.video_files import KINDS, decode


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


def a_pipe(path: Path) -> int:
    """A pipe that is held open and never written to: reading it waits for ever. Returns the end that holds it."""
    os.mkfifo(path)
    return os.open(path, os.O_RDWR)


def files_of(pid: int) -> str:
    """Where the open files of a process lie."""
    names = []
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(link))
    return " ".join(names)


def test_bad_videos_cost_themselves_only(tmp_path: Path) -> None:
    good = video_files.write(tmp_path / "good.mp4", video_files.moving(20))
    whole = good.read_bytes()
    (tmp_path / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    video_files.write_audio(tmp_path / "audio.mp4")
    (tmp_path / "empty-folder").mkdir()
    front = tmp_path / "front.mp4"
    clip_files.write_preview(front, video_files.moving(30), 25)  # its index stands in front, so the cut hits frames
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
    a_pipe(tmp_path / "hang.mp4")
    good = video_files.write(tmp_path / "good.mp4", video_files.moving(5))
    started = time.monotonic()
    (_, end), (got, _) = decode(tmp_path / "hang.mp4", good, workers=1, limits=Limits(decode_limit_s=1))
    assert end.reject == "decoding took longer than 1 s and 0.1 s a frame; raise decode_limit_s"
    assert end.beyond == {"decode_limit_s": 1}
    assert len(got) == 5
    assert time.monotonic() - started < 20


def test_a_decoder_that_is_killed_costs_one_video(tmp_path: Path) -> None:
    held = a_pipe(tmp_path / "victim.mp4")
    good = video_files.write(tmp_path / "good.mp4", video_files.moving(5))
    mark = f"latte.video.decoder_process {os.getpid()}"

    def kill_the_decoder() -> None:
        wait_until(lambda: [pid for pid in processes_named(mark) if str(tmp_path) in files_of(pid)], 120)
        for pid in processes_named(mark):
            os.kill(pid, signal.SIGKILL)

    before = processes_named(mark)
    for pid in before:  # the decoder that single clips share
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes_named(mark))
    killer = threading.Thread(target=kill_the_decoder)
    killer.start()
    (_, end), (got, _) = decode(tmp_path / "victim.mp4", good, workers=1, limits=Limits(decode_limit_s=60))
    killer.join()
    os.close(held)
    assert end.reject == "its decoder ended by SIGKILL"
    assert len(got) == 5


def test_a_video_that_wants_too_much_memory_is_rejected_and_the_next_one_decoded(tmp_path: Path) -> None:
    still = Image.new("P", (6000, 6000))
    still.save(tmp_path / "vast.gif", save_all=True, append_images=[Image.new("P", still.size, 1)])
    assert (tmp_path / "vast.gif").stat().st_size < 100_000
    good = video_files.write(tmp_path / "good.mp4", video_files.moving(5))
    (_, end), (got, _) = decode(tmp_path / "vast.gif", good, workers=1, limits=Limits(decode_memory_gb=0.5))
    assert end.reject == "decoding took more than 0.5 GB of memory; raise decode_memory_gb"
    assert end.beyond == {"decode_memory_gb": 0.5}
    assert len(got) == 5
    ((frames, _),) = decode(tmp_path / "vast.gif")
    assert len(frames) == 2


def test_a_changed_file_is_not_taken_for_the_listed_one(tmp_path: Path) -> None:
    path = video_files.write(tmp_path / "a.mp4", video_files.moving(3))
    digest = storage.sha256_file(path)
    video_files.write(path, video_files.moving(3, seed=1))
    (end,) = decode_all([VideoSource(path.as_uri(), digest)], 32)
    assert "changed after it was listed" in end.reject
    assert end.passing


def test_a_file_that_is_gone_may_come_back(tmp_path: Path) -> None:
    (end,) = decode_all([VideoSource((tmp_path / "gone.mp4").as_uri(), "0" * 64)], 32)
    assert end.reject == "it vanished after it was listed; run again"
    assert end.passing


def test_frames_are_checked_too(tmp_path: Path) -> None:
    folder = video_files.write_frames(tmp_path / "frames", video_files.moving(3))
    (entry,) = scan(DatasetConfig(videos=str(tmp_path), layout="frames")).entries
    assert [e.reject for e in decode_all([VideoSource(entry.uri, entry.digest)], 32) if isinstance(e, End)] == [None]
    shutil.copy(folder / "frame0.png", folder / "frame1.png")
    (end,) = decode_all([VideoSource(entry.uri, entry.digest)], 32)
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
    a_pipe(tmp_path / "hang.mp4")
    code = textwrap.dedent(
        """
        import sys
        from latte.video.decoders import decode_all
        from latte.video.sources import VideoSource
        list(decode_all([VideoSource(sys.argv[1])] * 2, 32))
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", code, (tmp_path / "hang.mp4").as_uri()], stderr=subprocess.DEVNULL)
    mark = f"latte.video.decoder_process {parent.pid}"
    wait_until(lambda: len(processes_named(mark)) == 2)
    time.sleep(0.5)
    parent.send_signal(how)
    parent.wait(20)
    wait_until(lambda: not processes_named(mark))


def test_closing_the_iterator_ends_the_decoders(tmp_path: Path) -> None:
    path = video_files.write(tmp_path / "a.mp4", video_files.moving(100))
    threads = threading.active_count()
    events = decode_all([VideoSource(path.as_uri())] * 4, 32)
    next(events)
    events.close()
    assert threading.active_count() == threads
