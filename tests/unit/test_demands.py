"""What the steps ask of each other and of a dataset is refused before work, with a key and a value that works."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latte.errors import UserError
from latte.metrics import protocol as protocols
from latte.metrics.protocol import Available, Protocol
from latte.models.configs import LatteConfig
from latte.steps import demands
from latte.steps.demands import Dataset
from latte.steps.encode import EncodeConfig
from latte.steps.sample import SampleConfig
from latte.steps.score import ScoreConfig
from latte.steps.train import TrainConfig

DEMO = {"num_clips": 48, "frame_stride": 1, "clips_per_video": 4}


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    assert "://" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"sample": {"num_videos": 16}, "score": {"protocol": DEMO}},
            "sample.num_videos=16: score.protocol.num_clips is 48; sample.num_videos=48 works, "
            "or score.protocol.num_clips=16 works",
        ),
        (
            {"sample": {"num_videos": 1}, "score": {"protocol": DEMO}},
            "sample.num_videos=1: score.protocol.num_clips is 48; sample.num_videos=48 works",
        ),
        (
            {"train": {"model": {"condition": "none"}}, "sample": {"cfg_scale": 1.5}},
            "sample.cfg_scale=1.5: train.model.condition is none; sample.cfg_scale=1 works",
        ),
        (
            {"train": {"model": {"class_dropout_prob": 0}}, "sample": {"cfg_scale": 7}},
            "sample.cfg_scale=7: train.model.class_dropout_prob is 0, so that there is nothing to guide from; "
            "sample.cfg_scale=1 works",
        ),
        (
            {"train": {"model": {"condition": "text"}}, "sample": {"labels": ["a"]}},
            "sample.labels: train.model.condition is text; leave sample.labels out",
        ),
        (
            {"train": {"model": {"condition": "class"}}, "sample": {"captions": "a.txt"}},
            "sample.captions: train.model.condition is class; leave sample.captions out",
        ),
        (
            {
                "train": {"model": {"num_frames": 8}},
                "sample": {"num_videos": 48},
                "score": {"protocol": DEMO},
            },
            "train.model.num_frames=8: score.protocol compares clips of 16 frames; train.model.num_frames=16 works",
        ),
    ],
)
def test_settings_that_contradict_each_other(sections: dict[str, Any], line: str) -> None:
    assert refused(demands.check_settings, sections) == line


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
            "score.protocol.num_clips=48: the 1 videos of 16 frames or more give 4 real clips (clips_per_video 4); "
            "score.protocol.num_clips=4 works, or score.protocol.clips_per_video=48 works",
        ),
        (
            Dataset([], False, 900),
            {"score": {}},
            "score.protocol.num_real_clips=2048: the 900 videos give 900 real clips (clips_per_video 1); "
            "score.protocol.num_real_clips=900 works, or score.protocol.clips_per_video=3 works",
        ),
        (
            Dataset([], False, 3, [40, 40, 40]),
            {"score": {"protocol": {**DEMO, "frame_stride": 3}}},
            "score.protocol.frame_stride=3: a real clip needs videos of 48 frames, the longest has 40; "
            "score.protocol.frame_stride=2 works",
        ),
        (
            Dataset([], False, 1),
            {"train": {"model": {"condition": "class"}}},
            "train.model.condition=class: the dataset has no classes; train.model.condition=none works",
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
            Dataset([], False, 1),
            {"train": {}, "sample": {"labels": [0]}},
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
    ],
)
def test_a_dataset_that_has_less_than_is_asked_for(dataset: Dataset, sections: dict[str, Any], line: str) -> None:
    assert refused(demands.check, dataset, sections) == line


@given(
    frames=st.lists(st.integers(1, 100), min_size=1, max_size=20),
    clips=st.integers(2, 60),
    per_video=st.integers(1, 6),
    stride=st.integers(1, 3),
)
def test_what_is_let_through_gives_as_many_clips_as_are_asked_for(
    frames: list[int], clips: int, per_video: int, stride: int
) -> None:
    fields = {"num_clips": clips, "clips_per_video": per_video, "frame_stride": stride}
    videos = [(f"v{i}", count) for i, count in enumerate(frames)]
    protocol = protocols.resolve(fields)
    enough = len(protocols.choose_real_clips(videos, protocol)) == clips
    try:
        demands.check(Dataset([], False, len(frames), frames), {"score": {"protocol": fields}})
        let_through = True
    except UserError:
        let_through = False
    assert let_through == enough


@given(frames=st.lists(st.integers(1, 200), min_size=1, max_size=20), num_videos=st.integers(2, 60))
def test_an_automatic_number_of_clips_is_one_that_both_sides_give(frames: list[int], num_videos: int) -> None:
    fields = {"num_clips": "auto", "clips_per_video": "auto", "frame_stride": 1}
    protocol = protocols.resolve(fields, Available(num_videos, frames))
    assert 2 <= protocol.num_clips <= num_videos
    chosen = protocols.choose_real_clips([(f"v{i}", count) for i, count in enumerate(frames)], protocol)
    assert len(chosen) == (protocol.num_clips if max(frames) >= 16 else 0)


def test_only_single_fields_adapt_and_the_rest_of_the_protocol_stays() -> None:
    there = Available(48, [16] * 30 + [40])
    adapted = protocols.resolve({"preset": "demo", "num_clips": "auto", "clips_per_video": 2}, there)
    assert adapted == protocols.resolve({"preset": "demo", "num_clips": 32, "clips_per_video": 2})
    assert protocols.resolve("ucf101", there).num_clips == 2048
    assert protocols.resolve({"num_clips": 30}, there).num_clips == 30
    with pytest.raises(UserError, match="num_clips"):
        protocols.resolve({"num_clips": "automatic"}, there)


SECTIONS: dict[str, dict[str, Any]] = {
    "encode": EncodeConfig.model_fields,
    "train": {**TrainConfig.model_fields, **dict.fromkeys(LatteConfig.model_fields)},
    "sample": SampleConfig.model_fields,
    "score": {**ScoreConfig.model_fields, **dict.fromkeys(Protocol.model_fields)},
}
# Keys of two sections by the same name. Filled in by the pipeline, the same for all of them:
FILLED_IN = {"root", "name", "vae", "latents", "videos"}
# Each section's own business: how its own work is shared out, drawn or computed.
OWN = {
    "batch_size", "num_tasks", "workers", "precision", "seed",
    # Encoded frames are counted from then on, so that strides multiply and never have to be equal.
    "frame_stride",
    # Sampling with text is refused by the checkpoint's own digest of its encoder.
    "text_encoder", "tokenizer",
}  # fmt: skip
# Keys of different names that speak of the same thing, each with a mistake that is refused.
RELATED = {
    ("sample.num_videos", "score.num_clips"),
    ("train.condition", "sample.cfg_scale"),
    ("train.class_dropout_prob", "sample.cfg_scale"),
    ("train.condition", "sample.labels"),
    ("train.condition", "sample.captions"),
    ("train.num_frames", "score.clip_frames"),
    ("train.num_classes", "encode.dataset"),
    ("train.frame_stride", "encode.dataset"),
    ("score.clips_per_video", "encode.dataset"),
}


def test_every_key_that_two_sections_share_is_filled_in_or_their_own_business() -> None:
    shared = {key for a in SECTIONS for b in SECTIONS if a < b for key in SECTIONS[a] if key in SECTIONS[b]}
    assert shared == FILLED_IN & shared | OWN & shared, "say of the new key whether it is checked"
    assert shared >= OWN
    for pair in RELATED:
        for name in pair:
            section, _, key = name.partition(".")
            assert key in SECTIONS[section], name
