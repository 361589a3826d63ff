"""Generated sets and their scores, with tiny networks: who made a set, and how often it was stopped, does not show."""

import io
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from latte import storage
from latte.errors import StorageError, UserError
from latte.kinds import inception
from latte.metrics import feature_distance, kernel_distance
from latte.metrics.names import values_of
from latte.models.detector_configs import InceptionConfig
from latte.sampling import generation
from latte.steps import sample, score
from latte.storage import manifest
from latte.video import clip_files
from tests.fault_proxy import flipped
from tests.small_set import CLASSES, IMAGE_SIZE, files, publish, sampling
from tests.soak import scaled


@pytest.fixture(scope="module")
def whole(world: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> manifest.Manifest:
    """The set made at once, by one task."""
    return sample.run(sampling(world, tmp_path_factory.mktemp("whole").as_uri()))


def test_a_set_is_what_its_manifest_says(whole: manifest.Manifest) -> None:
    items = storage.read_json(storage.join(whole.uri, "items.json"))
    assert [(item["index"], item["label"], item["class"]) for item in items] == [
        (i, i % 2, CLASSES[i % 2]) for i in range(7)
    ]
    assert whole.counts == {"videos": 7}
    assert whole.config["step"] == 7
    for item in items:
        frames = clip_files.read_lossless(item["video"])
        assert frames.shape == (16, IMAGE_SIZE, IMAGE_SIZE, 3)
        assert frames.std() > 1
        assert storage.sha256_bytes(storage.read_bytes(item["video"])) == item["sha256"]
        assert storage.sha256_bytes(storage.read_bytes(item["preview"])) == item["preview_sha256"]
    assert len({item["sha256"] for item in items}) == 7
    sheet = Image.open(io.BytesIO(storage.read_bytes(whole.shard(sample.CONTACT_SHEET).uri)))
    assert sheet.format == "PNG"
    assert sheet.size == (4 * 4 * IMAGE_SIZE + 12, 2 * (15 + IMAGE_SIZE) + 4)
    assert np.asarray(sheet)[:15, : 4 * IMAGE_SIZE].min() < 128, "the class of the first video stands above it"


@pytest.mark.parametrize("num_tasks", [3, 8])  # the last of 8 has nothing to do
def test_any_number_of_tasks_makes_the_same_bytes(
    world: SimpleNamespace, whole: manifest.Manifest, tmp_path: Path, num_tasks: int
) -> None:
    config = sampling(world, tmp_path.as_uri())
    plan_uri = storage.join(sample.plan(config).uri, "manifest.json")
    for task in reversed(range(num_tasks)):
        sample.sample_shards(config, plan_uri, task, num_tasks)
    done = sample.merge(config, plan_uri)
    assert done.fingerprint == whole.fingerprint
    assert files(done) == files(whole)


def test_an_interrupted_and_a_grown_set_are_the_same_set(
    world: SimpleNamespace, whole: manifest.Manifest, tmp_path: Path
) -> None:
    small = sample.run(sampling(world, tmp_path.as_uri(), num_videos=2))
    assert small.counts == {"videos": 2}
    # As after a kill: a video without its record, and one whose preview did not arrive.
    first = storage.join(small.uri, "clip-00000.mkv")
    storage.delete(first + manifest.RECORD_SUFFIX)
    storage.delete(storage.join(small.uri, "clip-00001.mp4"))
    config = sampling(world, tmp_path.as_uri())
    plan_uri = storage.join(sample.plan(config).uri, "manifest.json")
    assert sample.sample_shards(config, plan_uri, 0, 3).counts == {"videos": 3, "generated": 3}
    with pytest.raises(UserError, match=r"clip-00003\.mkv: not generated yet"):
        sample.merge(config, plan_uri)
    assert sample.sample_shards(config, plan_uri, 0, 1).counts["generated"] == 4
    assert files(sample.merge(config, plan_uri)) == files(whole)
    assert sample.sample_shards(config, plan_uri, 0, 1).counts["generated"] == 0


def test_a_video_is_always_made_in_its_own_batch(
    world: SimpleNamespace, whole: manifest.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a CPU the last bits of a video depend on its place in the batch, which shows in one of many videos only.
    batches = []
    real_sampler = generation.sampler

    def sampler(recipe: generation.Recipe, states: Any) -> Any:
        make = real_sampler(recipe, states)

        def watched(indices: list[int], on_step: Any) -> list[np.ndarray]:
            batches.append(indices)
            return make(indices, on_step)

        return watched

    monkeypatch.setattr(generation, "sampler", sampler)
    copy = tmp_path / "videos" / "set" / whole.uri.rsplit("/", 1)[1]
    shutil.copytree(storage.local_path(whole.uri), copy)
    for path in copy.glob("*.json"):
        path.write_text(path.read_text().replace(whole.uri, copy.as_uri()))
    for index in (1, 6):
        (copy / f"clip-{index:05d}.mkv.record.json").unlink()
    config = sampling(world, tmp_path.as_uri())
    plan_uri = storage.join(sample.plan(config).uri, "manifest.json")
    for task, (wanted, made) in enumerate([(3, 1), (3, 0), (1, 1)]):
        assert sample.sample_shards(config, plan_uri, task, 3).counts == {"videos": wanted, "generated": made}
    assert batches == [[0, 1, 2], [6, 7, 8]]
    assert {path.name: path.read_bytes() for path in copy.glob("clip-*.mkv")} == {
        name: data for name, data in files(whole).items() if name.endswith(".mkv")
    }


@pytest.mark.soak
def test_a_set_killed_over_and_over_is_byte_equal(world: SimpleNamespace, tmp_path: Path) -> None:
    never_killed = sample.run(sampling(world, (tmp_path / "never").as_uri(), num_videos=24))
    folder = tmp_path / "killed"
    config = sampling(world, folder.as_uri(), num_videos=24)
    code = (
        "import sys; from latte.steps import sample; sample.run(sample.SampleConfig.model_validate_json(sys.argv[1]))"
    )
    draw = np.random.default_rng(0)
    for _ in range(scaled(10)):
        kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mkv.record.json")}
        run = subprocess.Popen([sys.executable, "-c", code, config.model_dump_json()], stderr=subprocess.DEVNULL)
        # Videos, previews, records and half-written files all count: the kill comes anywhere between two of them.
        wanted = len(list(folder.rglob("clip-*"))) + int(draw.integers(2, 7))
        deadline = time.monotonic() + 300
        while run.poll() is None and time.monotonic() < deadline and len(list(folder.rglob("clip-*"))) < wanted:
            time.sleep(0.002)
        run.kill()
        assert run.wait() == -signal.SIGKILL
        assert all(path.stat().st_mtime_ns == modified for path, modified in kept.items())
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mkv.record.json")}
    assert 0 < len(list(folder.rglob("clip-*"))) < 3 * 24
    assert files(sample.run(config)) == files(never_killed)
    assert all(path.stat().st_mtime_ns == modified for path, modified in kept.items())


def test_seed_step_and_labels_change_the_videos(world: SimpleNamespace, whole: manifest.Manifest) -> None:
    root = whole.uri.rsplit("/videos/", 1)[0]
    before = files(whole)
    for changes in (
        {"seed": 6}, {"step": 0}, {"labels": ["dark"]}, {"weights": "model"}, {"cfg_channels": "all"},
    ):  # fmt: skip
        changed = files(sample.run(sampling(world, root, num_videos=1, **changes)))
        assert changed["clip-00000.mkv"] != before["clip-00000.mkv"], changes


def test_labels_are_drawn_as_often_as_the_dataset_has_them(world: SimpleNamespace, tmp_path: Path) -> None:
    config = sampling(world, tmp_path.as_uri(), labels="dataset", latents=world.latents, num_videos=200)
    conditions = sample._resolve(config).conditions
    assert conditions.class_counts == [3, 3]
    labels = [conditions.label(index) for index in range(200)]
    assert 70 < sum(label == 0 for label in labels) < 130
    assert labels != [index % 2 for index in range(200)]
    place = sample._resolve(sampling(world, tmp_path.as_uri())).place.uri
    assert sample._resolve(config).place.uri != place
    with pytest.raises(UserError, match=r"a manifest of checkpoint, expected latents"):
        sample.plan(sampling(world, tmp_path.as_uri(), labels="dataset", latents=world.checkpoint))


PROTOCOL = {"num_clips": 6, "frame_stride": 1, "clips_per_video": None, "jackknife_groups": 3}


def scoring(world: SimpleNamespace, videos: manifest.Manifest, root: str, **changes: Any) -> score.ScoreConfig:
    values = {
        "root": root,
        "name": "score",
        "videos": storage.join(videos.uri, "manifest.json"),
        "real": world.latents,
        "detector": world.detector,
        "protocol": PROTOCOL,
        "batch_size": 2,
        "clips_per_shard": 4,
    }
    return score.ScoreConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def scored(
    world: SimpleNamespace, whole: manifest.Manifest, tmp_path_factory: pytest.TempPathFactory
) -> manifest.Manifest:
    return score.run(scoring(world, whole, tmp_path_factory.mktemp("scored").as_uri()))


def test_a_score_carries_everything_that_made_it(scored: manifest.Manifest, whole: manifest.Manifest) -> None:
    value = scored.metrics["frechet_random_i3d"]
    assert "fvd" not in scored.metrics
    assert value > 0
    assert scored.metrics["interval_low"] < value < scored.metrics["interval_high"]
    assert scored.metrics["clips"] == 6
    assert scored.config["protocol"]["num_clips"] == 6
    assert scored.inputs["videos"] == whole.fingerprint
    assert any("singular" in note for note in scored.config["notes"])


def test_a_score_of_a_larger_set_is_that_of_its_first_videos(
    world: SimpleNamespace, scored: manifest.Manifest, tmp_path: Path
) -> None:
    root = tmp_path.as_uri()
    large = sample.run(sampling(world, root, num_videos=9))
    assert score.run(scoring(world, large, root)).metrics == scored.metrics
    protocol = {**PROTOCOL, "num_clips": 10}
    with pytest.raises(UserError, match="9 videos, the protocol needs num_clips=10"):
        score.run(scoring(world, large, root, protocol=protocol))


def test_a_stopped_score_goes_on_and_heals_and_ends_with_the_same_value(
    world: SimpleNamespace,
    whole: manifest.Manifest,
    scored: manifest.Manifest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old_root = storage.local_path(scored.uri.rsplit("/scores/", 1)[0])
    shutil.copytree(old_root / "features", tmp_path / "features")
    lost = [*(tmp_path / "features").glob("*/manifest.json"), *(tmp_path / "features").glob("*/features-00001*")]
    assert len(lost) == 6
    for path in lost:
        path.unlink()
    harmed = sorted((tmp_path / "features").glob("*/features-00000.safetensors"))[0]
    whole_bytes = harmed.read_bytes()
    harmed.write_bytes(flipped(whole_bytes))
    again = score.run(scoring(world, whole, tmp_path.as_uri()))
    assert again.metrics == scored.metrics
    assert again.fingerprint == scored.fingerprint
    assert harmed.read_bytes() == whole_bytes
    assert "features-00000.safetensors: damaged" in capsys.readouterr().err


def test_real_features_are_shared_between_scores_without_starting_mindspore(
    world: SimpleNamespace, whole: manifest.Manifest, scored: manifest.Manifest
) -> None:
    # Another protocol with the same clips: nothing is left for the detector to do.
    root = scored.uri.rsplit("/scores/", 1)[0]
    config = scoring(world, whole, root, protocol={**PROTOCOL, "covariance_divisor": "n-1"})
    code = (
        "import sys; from latte.steps import score\n"
        "done = score.run(score.ScoreConfig.model_validate_json(sys.argv[1]))\n"
        "assert 'mindspore' not in sys.modules, 'MindSpore was started'\n"
        "print(done.metrics['frechet_random_i3d'])\n"
    )
    command = [sys.executable, "-c", code, config.model_dump_json()]
    value = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert value > scored.metrics["frechet_random_i3d"]


def test_the_same_clips_go_through_a_detector_of_frames_too(
    world: SimpleNamespace, whole: manifest.Manifest, scored: manifest.Manifest
) -> None:
    root = scored.uri.rsplit("/scores/", 1)[0]
    config = InceptionConfig(width=0.03125, image_size=75, num_classes=8)
    weights = {"model.safetensors": inception.random_weights(1, config)}
    told = {"kind": "inception", "model": config.model_dump(), "random": True}
    frames = publish(root, "weights", "weights/inception", weights, config=told)
    done = score.run(scoring(world, whole, root, name="both", detectors=[frames]))
    values = values_of(done)
    names = ["frechet_random_i3d", "frechet_random_inception", "kernel_random_i3d", "kernel_random_inception"]
    assert sorted(values) == names
    assert done.metrics["frechet_random_i3d"] == scored.metrics["frechet_random_i3d"]
    sides = []
    for role in ("generated", "real"):
        prints = done.inputs[f"features_{role}_frechet_random_inception"]
        kept = manifest.read(storage.join(root, "features", prints[:16]))
        assert [shard.items for shard in kept.shards] == [4, 2]
        rows = [load_file(storage.local_path(shard.uri))["features"] for shard in kept.shards]
        sides.append(np.concatenate(rows))
        assert sides[-1].shape == (96, config.channels)  # 6 clips x 16 frames
    by_frames = values["frechet_random_inception"]
    assert by_frames.value == pytest.approx(feature_distance(*sides, "n-1"), rel=1e-5)
    assert (by_frames.clips, by_frames.protocol["resolution"], by_frames.kind) == (6, 75, "inception")
    assert values["kernel_random_inception"].value == pytest.approx(kernel_distance(*sides).value)
    assert (by_frames.interval_low or 0) < by_frames.value


def test_a_set_and_its_score_in_s3_are_those_of_a_folder(
    world: SimpleNamespace, whole: manifest.Manifest, s3_root: str
) -> None:
    videos = sample.run(sampling(world, s3_root, num_videos=2))
    in_folder = files(whole)
    in_s3 = files(videos, ("items.json", sample.CONTACT_SHEET))  # the picture of two videos is another one
    assert len(in_s3) == 4
    assert in_s3 == {name: in_folder[name] for name in in_s3}
    values = [
        score.run(scoring(world, given, root, protocol={**PROTOCOL, "num_clips": 2})).metrics
        for given, root in ((videos, s3_root), (whole, whole.uri.rsplit("/videos/", 1)[0]))
    ]
    assert values[0] == values[1]


def test_a_damaged_side_is_refused(world: SimpleNamespace, whole: manifest.Manifest, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    shutil.copytree(storage.local_path(whole.uri), copy)
    text = (copy / "items.json").read_text().replace(whole.uri, copy.as_uri())
    (copy / "items.json").write_text(text)
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text().replace(whole.uri, copy.as_uri()))
    clip = copy / "clip-00002.mkv"
    clip.write_bytes(clip.read_bytes()[:-1] + b"x")
    damaged = manifest.read(copy / "manifest.json")
    with pytest.raises(StorageError, match=r"clip-00002\.mkv: damaged"):
        score.run(scoring(world, damaged, (tmp_path / "root").as_uri()))
