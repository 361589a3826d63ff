"""What the steps ask of a dataset is refused once that is known, with a value that works when it is set."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latte.config import _put
from latte.data import frame_bounds
from latte.data.catalog import Catalog, DatasetConfig, scan
from latte.errors import UserError
from latte.metrics import protocol as protocols
from latte.metrics.protocol import Available
from latte.steps import dataset_demands
from latte.steps.dataset_demands import Dataset
from tests import video_files
from tests.unit.steps.test_demands import DEMO, TEXT, Given, asked_of, refused

AUTO = {"num_clips": "auto", "clips_per_video": "auto", "frame_stride": 1}


def check(dataset: Dataset, sections: Given) -> None:
    dataset_demands.check(dataset, asked_of(sections))


def count(videos: Path, sections: Given, known: dict[str, int] | None = None, whole: bool = False) -> Dataset:
    catalog = scan(DatasetConfig(videos=str(videos)), read_contents=known is not None)
    return dataset_demands.counted(catalog, asked_of({"encode": {}, **sections}), known, whole)


@pytest.mark.parametrize(
    ("dataset", "sections", "line"),
    [
        (
            Dataset(["a", "b"], False, 4),
            {"score": {"protocol": DEMO}},
            "score.protocol.num_clips=48: the 4 videos give 16 real clips (clips_per_video 4); "
            "score.protocol.num_clips=16 works, or score.protocol.clips_per_video=12 works",
        ),
        (
            Dataset([], False, 4, [100, 15, 15, 15]),
            {"score": {"protocol": DEMO}},
            "score.protocol.num_clips=48: the only video of 16 frames or more gives 4 real clips (clips_per_video 4); "
            "score.protocol.num_clips=4 works, or score.protocol.clips_per_video=48 works",
        ),
        (
            Dataset([], False, 900),
            {"score": {}},
            "score.protocol.num_real_clips=2048: the 900 videos give 900 real clips (clips_per_video 1); "
            "score.protocol.num_real_clips=900 works, or score.protocol.clips_per_video=3 works",
        ),
        (
            Dataset([], False, 1),
            {"score": {"protocol": {**AUTO, "clips_per_video": 1}}},
            "score.protocol.num_clips=auto: the only video gives 1 real clips (clips_per_video 1); "
            "score.protocol.clips_per_video=2 works",
        ),
        (
            Dataset([], False, 1),
            {"score": {"protocol": {**AUTO, "clips_per_video": 1, "start": "first"}}},
            "score.protocol.num_clips=auto: the only video gives 1 real clips (clips_per_video 1); 2 videos are needed",
        ),
        (
            Dataset([], False, 3, [40, 40, 40]),
            {"score": {"protocol": {**DEMO, "frame_stride": 3}}},
            "score.protocol.frame_stride=3: a real clip needs videos of 48 frames, the longest video has 40; "
            "score.protocol.frame_stride=2 works",
        ),
        (
            Dataset([], False, 3, [12, 12], at_most=True),
            {"score": {"protocol": DEMO}, "encode": {"frame_stride": 4}},
            "score.protocol.frame_stride=1: a real clip needs videos of 16 frames, the longest video has at most 12; "
            "encode.frame_stride=2 works",
        ),
        (
            Dataset([], False, 1),
            {"train": {"model": {"condition": "class"}}},
            "train.model.condition=class: the dataset has no classes; train.model.condition=none works",
        ),
        (
            Dataset(["a"], False, 1),
            {"train": {"model": {"condition": "text"}}, "encode": TEXT},
            "encode.text_encoder: the dataset has no captions; name a CSV file with some in encode.dataset.csv, or "
            "leave text_encoder and tokenizer out",
        ),
        (
            Dataset(["a"], False, 1),
            {"train": {"model": {"condition": "text"}}},
            "train.model.condition=text: the dataset has no captions; train.model.condition=class works",
        ),
        (
            Dataset(["a", "b", "c"], False, 3),
            {"train": {"model": {"num_classes": 2}}},
            "train.model.num_classes=2: the dataset has 3 classes; train.model.num_classes=3 works",
        ),
        (
            Dataset(["a"], False, 1),
            {"train": {}, "sample": {"labels": ["b"]}},
            "sample.labels: no class 'b' (known: a)",
        ),
        (
            Dataset(["a"], False, 1),
            {"train": {}, "sample": {"labels": [1]}},
            "sample.labels: 1 is not a class; 0 to 0 work",
        ),
        (
            Dataset([], False, 1),
            {"train": {}, "sample": {"labels": [0]}},
            "sample.labels: the dataset has no classes; leave it out",
        ),
        (
            Dataset([], False, 1),
            {"train": {}, "sample": {"labels": "dataset", "latents": "l"}},
            "sample.labels: the dataset has no classes; leave it out",
        ),
        (
            Dataset([], False, 1, [20]),
            {"train": {"frame_stride": 3}},
            "train.frame_stride=3: a clip of 16 frames at stride 3 needs 46, the longest video has 20; "
            "train.frame_stride=1 works",
        ),
        (
            Dataset([], False, 1, [9]),
            {"train": {"frame_stride": 1}},
            "train.frame_stride=1: a clip of 16 frames at stride 1 needs 16, the longest video has 9; "
            "train.model.num_frames=9 with train.frame_stride=1 works",
        ),
        (
            Dataset([], False, 1, [9]),
            {"train": {"frame_stride": 1}, "score": {"protocol": AUTO}},
            "train.frame_stride=1: a clip of 16 frames at stride 1 needs 16, the longest video has 9; "
            "longer videos are needed",
        ),
    ],
)
def test_a_dataset_that_has_less_than_is_asked_for(dataset: Dataset, sections: Given, line: str) -> None:
    assert refused(check, dataset, sections) == line


def with_advice(sections: Given, line: str) -> list[Given]:
    """The settings with each of the values that a line says to work; what is joined by "with" belongs together."""
    changed = []
    for advice in re.findall(r"(?:; |or )(\S+=\S+(?: with \S+=\S+)*) works", line):
        copy: Any = {name: {**keys} for name, keys in sections.items()}
        for setting in advice.split(" with "):
            key, _, value = setting.partition("=")
            for path in (("score", "protocol"), ("train", "model")):
                keys = copy.get(path[0], {})
                if isinstance(keys.get(path[1]), dict):
                    keys[path[1]] = {**keys[path[1]]}
            _put(copy, key.split("."), int(value), key)
        changed.append(copy)
    return changed


@given(
    frames=st.lists(st.integers(1, 100), min_size=1, max_size=6),
    model=st.fixed_dictionaries({"num_frames": st.integers(16, 20)}),
    strides=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4)),
    protocol=st.one_of(
        st.sampled_from(["demo", "ucf101", "taichi-hd"]),
        st.fixed_dictionaries({"num_clips": st.integers(2, 60), "clips_per_video": st.integers(1, 6)}),
    ),
)
@settings(max_examples=60, deadline=None)
def test_what_is_said_to_work_works(
    frames: list[int], model: dict[str, int], strides: tuple[int, int, int], protocol: Any
) -> None:
    train, encode, real = strides
    if isinstance(protocol, dict):
        protocol = {**protocol, "frame_stride": real}
    waiting: list[Given] = [
        {
            "train": {"model": model, "frame_stride": train},
            "score": {"protocol": protocol},
            "encode": {"frame_stride": encode},
        }
    ]
    for _ in range(8):  # one mistake after the other is mended
        refusals = []
        for sections in waiting:
            encoded = [-(-number // sections["encode"]["frame_stride"]) for number in frames]
            try:
                check(Dataset([], False, len(frames), encoded), sections)
            except UserError as error:
                refusals.append((sections, str(error)))
        waiting = [changed for sections, line in refusals for changed in with_advice(sections, line)]
        for _, line in refusals:
            assert " works" in line or line.endswith(("longer videos are needed", "2 videos are needed"))
    assert not waiting


@given(
    frames=st.lists(st.integers(1, 100), min_size=1, max_size=20),
    clips=st.integers(2, 60),
    per_video=st.integers(1, 6),
    stride=st.integers(1, 3),
)
@settings(deadline=None)
def test_what_is_let_through_gives_as_many_clips_as_are_asked_for(
    frames: list[int], clips: int, per_video: int, stride: int
) -> None:
    fields = {"num_clips": clips, "clips_per_video": per_video, "frame_stride": stride}
    videos = [(f"v{i}", count) for i, count in enumerate(frames)]
    protocol = protocols.resolve(fields)
    enough = len(protocols.choose_real_clips(videos, protocol)) == clips
    try:
        check(Dataset([], False, len(frames), frames), {"score": {"protocol": fields}})
        let_through = True
    except UserError:
        let_through = False
    assert let_through == enough


@given(
    frames=st.lists(st.integers(1, 200), min_size=1, max_size=20),
    num_videos=st.integers(2, 60),
    per_video=st.sampled_from(["auto", 1, 2]),
)
@settings(deadline=None)
def test_an_automatic_number_of_clips_is_one_that_both_sides_give_or_is_refused(
    frames: list[int], num_videos: int, per_video: Any
) -> None:
    fields = {"num_clips": "auto", "clips_per_video": per_video, "frame_stride": 1}
    protocol = protocols.resolve(fields, Available(num_videos, frames))
    assert 2 <= protocol.num_clips <= num_videos
    chosen = protocols.choose_real_clips([(f"v{i}", count) for i, count in enumerate(frames)], protocol)
    try:
        check(Dataset([], False, len(frames), frames), {"score": {"protocol": fields}})
    except UserError:
        assert len(chosen) < 2
    else:
        assert len(chosen) == protocol.num_clips


def test_only_single_fields_adapt_and_the_rest_of_the_protocol_stays() -> None:
    there = Available(48, [16] * 30 + [40])
    adapted = protocols.resolve({"preset": "demo", "num_clips": "auto", "clips_per_video": 2}, there)
    assert adapted == protocols.resolve({"preset": "demo", "num_clips": 32, "clips_per_video": 2})
    assert protocols.resolve("ucf101", there).num_clips == 2048
    assert protocols.resolve({"num_clips": 30}, there).num_clips == 30


@pytest.mark.parametrize("name", video_files.KINDS)
def test_a_file_gives_no_more_frames_than_it_has_packets(tmp_path: Path, name: str) -> None:
    codec, pixels, *options = video_files.KINDS[name]
    path = video_files.write(tmp_path / name, video_files.moving(13), codec, pixels, *options)
    entry = scan(DatasetConfig(videos=str(tmp_path)), read_contents=False).entries[0]
    (_, end), *_ = video_files.decode(path)
    with frame_bounds.counter(100) as to_100, frame_bounds.counter(5) as to_5:
        assert end.num_frames <= (to_100(entry) or 0) <= 14
        assert to_5(entry) == 5


def test_frames_of_a_folder_are_counted_and_what_is_no_video_has_none(tmp_path: Path) -> None:
    video_files.write_frames(tmp_path / "frames" / "a", video_files.moving(4))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "text.mp4").write_text("no video")
    video_files.write_gif(tmp_path / "files" / "z.gif", 4)
    frames = scan(DatasetConfig(videos=str(tmp_path / "frames"), layout="frames"), read_contents=False).entries
    files = scan(DatasetConfig(videos=str(tmp_path / "files")), read_contents=False).entries
    with frame_bounds.counter(100) as bound:
        assert [bound(entry) for entry in (*frames, *files)] == [4, 0, 4]


def write(folder: Path, *lengths: int) -> Path:
    for number, frames in enumerate(lengths):
        clip = video_files.moving(frames, 24, 32, number)
        video_files.write(folder / f"{number}.mp4", clip, options={"preset": "ultrafast"})
    return folder


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"train": {"frame_stride": 3}},
            "train.frame_stride=3: a clip of 16 frames at stride 3 needs 46, the longest video has at most 20; "
            "train.frame_stride=1 works",
        ),
        (
            {"train": {"frame_stride": 1}, "encode": {"frame_stride": 2}},
            "train.frame_stride=1: a clip of 16 frames at stride 1 needs 16, the longest video has at most 10; "
            "encode.frame_stride=1 works",
        ),
        (
            {"score": {"protocol": {**DEMO, "frame_stride": 2}}},
            "score.protocol.frame_stride=2: a real clip needs videos of 32 frames, the longest video has at most 20; "
            "score.protocol.frame_stride=1 works",
        ),
        (
            {"score": {"protocol": {**DEMO, "num_clips": 10}}},
            "score.protocol.num_clips=10: the 2 videos of 16 frames or more give 8 real clips (clips_per_video 4); "
            "score.protocol.num_clips=8 works, or score.protocol.clips_per_video=5 works",
        ),
        (
            {"encode": {"min_frames": 30}},
            "encode.min_frames=30: the longest video has at most 20 frames; encode.min_frames=20 works",
        ),
    ],
)
def test_videos_that_are_too_short_are_told_before_they_are_encoded(tmp_path: Path, sections: Given, line: str) -> None:
    assert refused(count, write(tmp_path, 20, 9, 17), sections) == line


def test_counting_ends_at_the_first_video_that_is_long_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 20, 9)
    looked_at: list[str] = []
    decode_one = frame_bounds.decode_one
    monkeypatch.setattr(
        frame_bounds, "decode_one", lambda *a: looked_at.append(a[2].uri.rpartition("/")[2]) or decode_one(*a)
    )
    assert count(tmp_path, {"train": {"frame_stride": 1}}).frames is None
    assert looked_at == ["0.mp4"]
    assert count(tmp_path, {"train": {"frame_stride": 1}}, whole=True).frames == [16, 9]


def test_what_is_encoded_already_is_not_counted_again(tmp_path: Path) -> None:
    entries = scan(DatasetConfig(videos=str(write(tmp_path, 20)))).entries
    words = "the longest video has at most 7; "
    assert words in refused(count, tmp_path, {"train": {"frame_stride": 1}}, {entries[0].digest: 7})


def test_nothing_is_refused_where_counting_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 9)
    monkeypatch.setattr(frame_bounds, "_LIMIT_S", -1.0)
    assert count(tmp_path, {"train": {"frame_stride": 1}}).frames is None


def test_files_that_are_no_videos_are_left_to_encoding_which_says_why(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    assert count(tmp_path, {"train": {"frame_stride": 1}}).frames is None


@pytest.mark.parametrize(
    ("dataset", "sections", "lines"),
    [
        (
            Dataset([], False, 3, [16, 40, 9], at_most=True),
            {"train": {}, "sample": {"cfg_scale": 1.5}, "score": {"protocol": AUTO}},
            [
                "train.model.condition: none, the dataset has no classes",
                "sample.cfg_scale 1.5 is left out: the model has no condition to guide by",
                "score.protocol.num_clips 3, by the 16 generated videos and the 2 of 3 real ones that have 16 frames",
            ],
        ),
        (
            Dataset(["a"], False, 3),
            {"train": {}, "sample": {"cfg_scale": 1.5}, "score": {"protocol": AUTO}},
            [
                "train.model.condition: class, by the dataset's 1 class",
                "score.protocol.num_clips: as many as both sides give, 16 at most",
            ],
        ),
        (
            Dataset([], False, 3),
            {"train": {"model": {"condition": "none"}}, "sample": {}, "score": {"protocol": DEMO}},
            [],
        ),
        (
            Dataset([], False, 3),
            {"encode": {"curate": {"doubles": {}, "black": {}}}},
            ["encode.curate: black, doubles; `latte curate` shows what they leave out, and counts it"],
        ),
    ],
)
def test_what_will_follow_from_the_dataset_is_said_in_a_line_each(
    dataset: Dataset, sections: Given, lines: list[str]
) -> None:
    assert dataset_demands.notes(dataset, asked_of(sections)) == lines


def test_a_catalog_says_what_is_known_of_a_dataset() -> None:
    assert dataset_demands.listed(Catalog([], ["a"], [])) == Dataset(["a"], False, 0)
