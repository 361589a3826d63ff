"""Anybody's folder of videos gets a report: the real steps in the order of the DAG, with the smallest sizes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latte import storage
from latte.errors import UserError
from latte.steps import convert, encode, report, sample, score, train
from latte.storage import manifest
from tests import small_vae, video_files

SIZE = 16
SECTIONS: dict[str, dict[str, Any]] = {
    "encode": {"image_size": SIZE, "shard_mb": 0.5},
    "train": {
        "model": {"patch_size": 4, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_frames": 16},
        "steps": 1, "batch_size": 2, "frame_stride": 1, "checkpoint_every": 1,
    },
    "sample": {"num_videos": 2, "num_sampling_steps": 2, "cfg_scale": 1.5, "batch_size": 2, "adapt": True},
    "score": {"protocol": {"num_clips": "auto", "clips_per_video": "auto", "frame_stride": 1}},
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A root, and the manifests of an autoencoder and of a detector there."""
    root = tmp_path_factory.mktemp("root").as_uri()
    detector = convert.run(convert.ConvertConfig(kind="i3d", source="random", seed=21, root=root, name="i3d"))
    return root, small_vae.publish(root), storage.join(detector.uri, "manifest.json")


def evaluate(
    videos: Path, weights: tuple[str, str, str], **sections: dict[str, Any]
) -> tuple[manifest.Manifest, manifest.Manifest, manifest.Manifest, str]:
    """Encode, train, sample, score, report; the dataset, the set, the score and the page."""
    root, vae, detector = weights
    keys = {name: {**given, **sections.get(name, {})} for name, given in SECTIONS.items()}
    common = {"root": root, "name": videos.name}
    encoding = encode.EncodeConfig(**common, vae=vae, dataset={"videos": str(videos)}, **keys["encode"])
    asked = {name: keys[name] for name in ("train", "sample", "score")}
    plan = storage.join(encode.plan(encoding, asked).uri, "manifest.json")
    encode.encode_shards(encoding, plan, 0, 1)
    latents = encode.merge(encoding, plan, asked)

    def place(made: manifest.Manifest) -> str:
        return storage.join(made.uri, "manifest.json")

    checkpoint = train.run(train.TrainConfig(**common, latents=place(latents), **keys["train"]))
    made = sample.run(sample.SampleConfig(**common, checkpoint=place(checkpoint), vae=vae, **keys["sample"]))
    scored = score.run(
        score.ScoreConfig(**common, videos=place(made), real=place(latents), detector=detector, **keys["score"])
    )
    page = report.run(
        report.ReportConfig(
            **common,
            vae=vae,
            latents=place(latents),
            checkpoint=place(checkpoint),
            video_sets=[place(made)],
            scores=[place(scored)],
        )
    )
    return latents, made, scored, storage.read_bytes(page.shard("/report.html").uri).decode()


def write(path: Path, seed: int = 0, num_frames: int = 18, height: int = 24, width: int = 32) -> None:
    video_files.write(path, video_files.moving(num_frames, height, width, seed), options={"preset": "ultrafast"})


def flat(folder: Path) -> None:
    for number in range(3):
        write(folder / f"{number}.mp4", number)


def one(folder: Path) -> None:
    write(folder / "only.mp4")


def four_long(folder: Path) -> None:
    for number in range(4):
        write(folder / "ab"[number % 2] / f"{number}.mp4", number, num_frames=100)


def two_thousand_short(folder: Path) -> None:
    """Of 40 contents, which are encoded once each."""
    for number in range(40):
        write(folder / "x" / f"{number}.mp4", number, num_frames=16)
    for number in range(40, 2000):
        (folder / "x" / f"{number}.mp4").hardlink_to(folder / "x" / f"{number % 40}.mp4")


def four_k_and_portrait(folder: Path) -> None:
    frames = video_files.moving(16, 90, 160).repeat(24, 1).repeat(24, 2)  # (16, 2160, 3840, 3)
    video_files.write(folder / "4k.mp4", frames, options={"preset": "ultrafast"})
    write(folder / "portrait.mp4", 1, height=64, width=36)


def one_class(folder: Path) -> None:
    for number in range(2):
        write(folder / "cats" / f"{number}.mp4", number)


def two_deep(folder: Path) -> None:
    for number in range(4):
        write(folder / "ab"[number % 2] / f"take {number}" / "x.mp4", number)


def rotten_ones_among_good_ones(folder: Path) -> None:
    flat(folder)
    whole = (folder / "0.mp4").read_bytes()
    (folder / "cut off.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.mp4").touch()
    (folder / "notes.txt").write_text("not looked at")


def spaces_and_unicode(folder: Path) -> None:
    for number, name in enumerate(("Ein Gruß", "猫 の 動画", 'a\'b "c" #1 100%')):
        write(folder / name / f"clip {number} é.mp4", number)


# folder: how many videos and classes it has, how many files it rejects, and how many clips can be compared
FOLDERS: dict[Callable[[Path], None], tuple[int, list[str], int]] = {
    flat: (3, [], 0),
    one: (1, [], 0),
    four_long: (4, ["a", "b"], 0),
    two_thousand_short: (2000, ["x"], 0),
    four_k_and_portrait: (2, [], 0),
    one_class: (2, ["cats"], 0),
    two_deep: (4, ["a", "b"], 0),
    rotten_ones_among_good_ones: (3, [], 3),
    spaces_and_unicode: (3, ["Ein Gruß", 'a\'b "c" #1 100%', "猫 の 動画"], 0),
}


@pytest.mark.parametrize("make", FOLDERS, ids=lambda make: make.__name__)
def test_it_gets_a_report(make: Callable[[Path], None], weights: tuple[str, str, str], tmp_path: Path) -> None:
    folder = tmp_path / make.__name__
    make(folder)
    latents, made, scored, page = evaluate(folder, weights)
    videos, classes, rejects = FOLDERS[make]
    assert (latents.counts["videos"], sorted(latents.config["classes"]), len(latents.rejects)) == (
        videos, sorted(classes), rejects,
    )  # fmt: skip
    # Guidance needs a condition, and says so where there is none.
    assert made.config["cfg_scale"] == (1.5 if classes else 1.0)
    note = "cfg_scale 1.5 is left out: the model has no condition to guide by"
    assert made.config["notes"] == ([] if classes else [note])
    assert (note in page) == (not classes)
    assert scored.config["protocol"]["num_clips"] == 2
    assert f"num_clips 2, by the 2 generated videos and the {videos} of {videos} real ones" in scored.config["notes"][0]
    assert "2 clips for 400 features" in page
    for reject in latents.rejects:
        assert reject.reason


def test_what_is_too_much_for_a_folder_is_said_before_any_work(weights: tuple[str, str, str], tmp_path: Path) -> None:
    four_long(tmp_path / "four")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^score\.protocol\.num_clips=48: the 4 videos give 16 real clips .* works$"):
        evaluate(
            tmp_path / "four", weights, sample={"num_videos": 48},
            score={"protocol": {"num_clips": 48, "frame_stride": 1, "clips_per_video": 4}},
        )  # fmt: skip
    with pytest.raises(UserError, match=r"^sample\.labels: no class 'c' \(known: a, b\)$"):
        evaluate(tmp_path / "four", weights, sample={"labels": ["c"]})
    assert time.monotonic() - started < 60
    root = storage.local_path(weights[0])
    assert not list((root / "datasets").glob("four/*/*.safetensors")), "nothing was encoded"


def test_videos_shorter_than_a_clip_are_told_before_they_are_encoded(
    weights: tuple[str, str, str], tmp_path: Path
) -> None:
    for number in range(2):
        write(tmp_path / "short" / f"{number}.mp4", number, num_frames=9)
    with pytest.raises(UserError, match=r"^train\.frame_stride=1: a clip of 16 frames .* has at most 9; "):
        evaluate(tmp_path / "short", weights)
    root = storage.local_path(weights[0])
    assert not list((root / "datasets").glob("short/*/*.json")), "nothing was planned"


def test_what_counting_could_not_say_is_told_once_the_frames_are_known(
    weights: tuple[str, str, str], tmp_path: Path
) -> None:
    root, vae, _ = weights
    write(tmp_path / "late" / "0.mp4", num_frames=9)
    keys: dict[str, Any] = {"dataset": {"videos": str(tmp_path / "late")}, **SECTIONS["encode"]}
    config = encode.EncodeConfig(root=root, name="late", vae=vae, **keys)
    planned = encode.plan(config).file  # nothing is asked for, as where counting takes too long
    encode.encode_shards(config, planned, 0, 1)
    with pytest.raises(UserError, match=r"^train\.frame_stride=1: a clip of 16 frames .* the longest video has 9; "):
        encode.merge(config, planned, {"train": SECTIONS["train"]})
    # What is encoded is known when it is planned again.
    with pytest.raises(UserError, match=r"the longest video has at most 9; "):
        encode.plan(config, {"train": SECTIONS["train"]})


def test_sizes_that_do_not_fit_are_told_before_the_dataset_is_listed(
    weights: tuple[str, str, str], tmp_path: Path
) -> None:
    words = r"^encode\.image_size=18: its latents of 9 x 9 cannot be cut into patches of train\.model\.patch_size=4; "
    with pytest.raises(UserError, match=words + r"encode\.image_size=16 works$"):
        evaluate(tmp_path / "nowhere", weights, encode={"image_size": 18})
    with pytest.raises(UserError, match=r"^train\.model\.in_channels=3: .*train\.model\.in_channels=4 works$"):
        evaluate(tmp_path / "nowhere", weights, train={"model": {**SECTIONS["train"]["model"], "in_channels": 3}})
