"""Clips of real videos, as the encoder sees them, and the files that generated clips are kept in."""

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latte import storage
from latte.errors import UserError
from latte.video import clip_files
from tests import video_files
from tests.video_files import decode

# ------------------------------------------------------------------------------------------------------- real clips


def test_a_clip_of_a_real_video_is_what_the_encoder_sees(tmp_path: Path, root: str) -> None:
    path = video_files.write(tmp_path / "a.mp4", video_files.moving(40))
    uri = storage.join(root, "videos", "a b.mp4")
    storage.upload(path, uri)
    ((whole, _),) = decode(path)
    np.testing.assert_array_equal(clip_files.load_real_clip(uri, 7, 3, 10, 32), whole[7:37:3])
    with pytest.raises(clip_files.DecodeError, match="wanted 5 frames from 38 at stride 1, got 2"):
        clip_files.load_real_clip(uri, 38, 1, 5, 32)
    with pytest.raises(UserError, match=r"none\.mp4: no such video"):
        clip_files.load_real_clip(storage.join(root, "videos", "none.mp4"), 0, 1, 5, 32)


def test_a_clip_of_a_folder_of_frames(tmp_path: Path, root: str) -> None:
    frames = video_files.moving(12, 32, 32)
    folder = video_files.write_frames(tmp_path / "video", frames)
    uri = storage.join(root, "sky", "video")
    for path in folder.iterdir():
        storage.upload(path, storage.join(uri, path.name))
    np.testing.assert_array_equal(clip_files.load_real_clip(uri, 1, 2, 5, 32), frames[1:11:2])


def test_clips_may_be_loaded_by_threads_that_end(tmp_path: Path) -> None:
    path = video_files.write(tmp_path / "a.mp4", video_files.moving(5))
    loaded: list[np.ndarray] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: loaded.append(clip_files.load_real_clip(path.as_uri(), 0, 1, 5, 32)))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(*loaded)


# ------------------------------------------------------------------------------------------------------ written clips


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40), st.sampled_from([8, 12.5, 25, 29.97]))
@settings(max_examples=15, deadline=None)
def test_lossless_clips_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, count: int, height: int, width: int, fps: float
) -> None:
    frames = np.random.default_rng(height).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("clip") / "no-ending"
    clip_files.write_lossless(path, frames, fps)
    first = path.read_bytes()
    np.testing.assert_array_equal(clip_files.read_lossless(path), frames)
    np.testing.assert_array_equal(clip_files.read_lossless(path.as_uri()), frames)
    clip_files.write_lossless(path, frames, fps)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.mp4", ("libx264", "yuv420p")), ("b.mkv", ("libx264", "yuv420p")), ("c.avi", ("ffv1", "bgr0"))],
)
def test_what_is_not_ffv1_in_matroska_is_no_lossless_clip(tmp_path: Path, name: str, kind: tuple[str, str]) -> None:
    path = video_files.write(tmp_path / name, video_files.moving(2), *kind).rename(tmp_path / "clip.mkv")
    with pytest.raises(UserError, match=r"clip\.mkv: not a video that can be read"):
        clip_files.read_lossless(path)


def test_previews_are_h264_that_browsers_play_and_always_the_same_bytes(tmp_path: Path) -> None:
    import av

    frames = video_files.moving(16, 63, 65)
    path = tmp_path / "preview.mp4"
    written = set()
    for _ in range(5):
        clip_files.write_preview(path, frames, 8)
        written.add(path.read_bytes())
    assert len(written) == 1
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        facts = (stream.codec_context.name, stream.pix_fmt, stream.width, stream.height, float(stream.average_rate))
        assert facts == ("h264", "yuv420p", 66, 64, 8.0)
        got = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert np.abs(got[:, :63, :65].astype(int) - frames).mean() < 5
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mkv").write_text("no video")
    with pytest.raises(UserError, match=r"text\.mkv: not a video"):
        clip_files.read_lossless(tmp_path / "text.mkv")
    with pytest.raises(UserError, match="no such object"):
        clip_files.read_lossless(tmp_path / "none.mkv")
    with pytest.raises(ValueError, match="expected uint8"):
        clip_files.write_lossless(tmp_path / "a.mkv", np.zeros((2, 8, 8, 3), np.float32), 8)
