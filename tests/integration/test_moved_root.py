"""A whole run, whose root is then moved: every place is found done with the same digests, and work goes on from it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import numpy as np
import pytest

from latte import storage
from latte.steps import convert, encode, promote, report, sample, score, train
from latte.storage import manifest, registry
from latte.training import resume
from latte.video import clip_files
from pipelines.store import BUCKET
from tests import small_vae

CLASSES = ("bright", "dark")
MODEL = {"hidden_size": 16, "depth": 2, "num_heads": 2}
PROTOCOL = {"num_clips": 4, "frame_stride": 1, "clips_per_video": None, "jackknife_groups": 2}


class Run:
    """Every step of a run under one root; what one step prints goes into the next."""

    def __init__(self, root: str, videos: str) -> None:
        self.root, self.videos, self.made = root, videos, {}

    def step(self, key: str, run: Callable[[Any], manifest.Manifest], config: type, **settings: Any) -> str:
        self.made[key] = run(config(root=self.root, **settings))
        return str(self.made[key].summary()["uri"])

    def all(self, steps: int = 2) -> dict[str, manifest.Manifest]:
        vae = next(uri for uri in storage.list_uris(f"{self.root}/weights/small-vae") if uri.endswith("manifest.json"))
        detector = self.step("i3d", convert.run, convert.ConvertConfig, kind="i3d", source="random", name="i3d", seed=1)
        latents = self.step(
            "latents", encode.run, encode.EncodeConfig,
            name="films", dataset={"videos": self.videos}, vae=vae, image_size=32,
        )  # fmt: skip
        run = self.step(
            "checkpoint", train.run, train.TrainConfig,
            name="films", latents=latents, model=MODEL, steps=steps, batch_size=1, frame_stride=1, checkpoint_every=1,
            log_every=1,
        )  # fmt: skip
        videos = self.step(
            "video_set", sample.run, sample.SampleConfig,
            name="films", checkpoint=run, vae=vae, num_videos=4, num_sampling_steps=2, batch_size=2,
        )  # fmt: skip
        scored = self.step(
            "score", score.run, score.ScoreConfig,
            name="films", videos=videos, real=latents, detector=detector, protocol=PROTOCOL,
        )  # fmt: skip
        self.step("promotion", promote.run, promote.PromoteConfig, name="films", checkpoint=run, score=scored)
        self.step(
            "report", report.run, report.ReportConfig,
            name="films", latents=latents, vae=vae, checkpoint=run, video_sets=[videos], scores=[scored], max_rows=2,
        )  # fmt: skip
        return self.made


def objects(root: str) -> dict[str, tuple[str, float]]:
    """Every object by its name below the root, with its content and what tells whether it was written again."""
    listed = storage.list_objects(root)
    return {
        uri.removeprefix(root): (storage.sha256_bytes(storage.read_bytes(uri)), info.modified_s)
        for uri, info in listed.items()
        if not uri.endswith(".lock")
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished run in a folder that has been renamed since; real videos beside it, and the same ones below it."""
    base = tmp_path_factory.mktemp("moved")
    folder, videos = base / "first place", base / "real"
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (videos / name).mkdir(parents=True)
        for i in range(2):
            frames = rng.integers(128 * (1 - label), 256 - 128 * label, (20 + i, 40, 48, 3), dtype=np.uint8)
            clip_files.write_lossless(videos / name / f"{i}.mkv", frames, 8)
    shutil.copytree(videos, folder / "real")
    vae = small_vae.publish(folder.as_uri())
    made = Run(str(folder), str(videos)).all()
    made["inside"] = encode.run(inside(folder.as_uri(), vae))
    for path in [*folder.rglob("*.json"), *folder.rglob("*.html")]:
        text = path.read_text()
        assert folder.name not in text and folder.as_uri() not in text, f"{path} names the place of its root"
    moved = base / "second" / "place"
    moved.parent.mkdir()
    folder.rename(moved)
    contents = {name: sha256 for name, (sha256, _) in objects(moved.as_uri()).items()}
    return SimpleNamespace(folder=moved, videos=str(videos), made=made, contents=contents)


def inside(root: str, vae: str) -> encode.EncodeConfig:
    """Settings of a dataset whose videos lie below the root."""
    dataset = {"videos": f"{root}/real"}
    return encode.EncodeConfig(root=root, name="inside", dataset=dataset, vae=vae, image_size=32)


def check_found_done(run: SimpleNamespace, root: str) -> dict[str, manifest.Manifest]:
    before = objects(root)
    again = Run(root, run.videos).all()
    for key, found in again.items():
        made = run.made[key]
        assert found.fingerprint == made.fingerprint, key
        assert [(s.sha256, s.bytes) for s in found.shards] == [(s.sha256, s.bytes) for s in made.shards], key
        assert all(shard.uri.startswith(f"{root}/") for shard in found.shards), key
    after = objects(root)
    written = {name for name in after if after[name] != before.get(name)}
    # A decision is told each time, with the seconds that it took.
    assert all(name.startswith("/registry/films/decisions/") for name in written), written
    return again


def test_a_renamed_folder_is_found_done(run: SimpleNamespace) -> None:
    root = run.folder.as_uri()
    again = check_found_done(run, root)
    found = encode.run(inside(root, storage.join(root, "weights", "small-vae", "1")))
    assert found.fingerprint == run.made["inside"].fingerprint
    assert found.uri.rsplit("/", 1)[1] == run.made["inside"].uri.rsplit("/", 1)[1]
    assert {name for name in objects(root) if name not in run.contents} == set(), "nothing was planned or encoded anew"
    assert again["video_set"].config["checkpoint"] == again["checkpoint"].file
    assert again["report"].config["latents"] == again["latents"].file
    assert again["checkpoint"].config["train"]["latents"] == again["latents"].file
    items = storage.read_json(storage.join(again["video_set"].uri, "items.json"))
    assert all(item["video"].startswith(root) and item["preview"].startswith(root) for item in items)


def test_a_moved_root_is_worked_on(run: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    root = folder.as_uri()
    longer = Run(root, run.videos).all(steps=3)
    assert longer["checkpoint"].fingerprint == run.made["checkpoint"].fingerprint, "the run was gone on with"
    assert [each.step for each in resume.committed(longer["checkpoint"].uri)] == [0, 1, 2, 3]
    assert longer["video_set"].fingerprint != run.made["video_set"].fingerprint
    assert longer["score"].inputs["features_real"] == run.made["score"].inputs["features_real"], "found"
    current, _ = registry.read_current(root, "films")
    assert current is not None
    number = current.number
    if number == 1:  # the longer run's score is no better: it is promoted to be rolled back
        settings = {
            "name": "films",
            "checkpoint": longer["checkpoint"].uri,
            "score": longer["score"].uri,
            "tolerance": 9.0,
        }
        promote.run(promote.PromoteConfig(root=root, **settings))
    back = promote.run(promote.PromoteConfig(root=root, name="films", rollback=True))
    assert back.metrics["promoted"] == 1
    current, _ = registry.read_current(root, "films")
    assert current is not None
    assert current.rolled_back == 2
    assert current.weights_sha256 == run.made["video_set"].inputs["weights"]
    assert manifest.read(current.checkpoint, "checkpoint").uri.startswith(root)
    started = train.run(
        train.TrainConfig(
            root=root, name="on", latents=longer["latents"].uri, model=MODEL, steps=1, batch_size=1, frame_stride=1,
            init_from=storage.local_path(current.checkpoint).parent.as_posix(),
        )
    )  # fmt: skip
    assert started.inputs["init_from"] == current.weights_sha256
    assert started.config["train"]["init_from"] == current.checkpoint


@pytest.fixture
def bucket(store: Any) -> str:
    client = boto3.session.Session().client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="renamed")
    return "renamed"


def test_a_folder_that_was_copied_to_a_bucket_and_from_there_to_another_is_found_done(
    run: SimpleNamespace, bucket: str
) -> None:
    first, second = f"s3://{BUCKET}/moved/here", f"s3://{bucket}/x"
    for name in run.contents:
        storage.upload(f"{run.folder}{name}", first + name)
    check_found_done(run, first)
    client = boto3.session.Session().client("s3", region_name="us-east-1")
    for uri in storage.list_uris(first):
        source = {"Bucket": BUCKET, "Key": uri.removeprefix(f"s3://{BUCKET}/")}
        client.copy(source, bucket, "x" + uri.removeprefix(first))
        storage.delete(uri)
    check_found_done(run, second)
    contents = {name: sha256 for name, (sha256, _) in objects(second).items()}
    assert {name for name, sha256 in contents.items() if run.contents.get(name) != sha256} <= {
        name for name in contents if name.startswith("/registry/films/decisions/")
    }


def test_a_set_that_was_copied_alone_is_a_set(run: SimpleNamespace, tmp_path: Path) -> None:
    made = run.made["video_set"]
    place = run.folder / "videos" / "films" / made.uri.rsplit("/", 1)[1]
    shutil.copytree(place, tmp_path / "set")
    found = manifest.read(tmp_path / "set", "video_set")
    assert found.uri == (tmp_path / "set").as_uri()
    assert all(manifest.is_whole(shard) for shard in found.shards)
