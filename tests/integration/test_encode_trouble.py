"""Videos that move, change or come back while a dataset is encoded, and settings that only seem to fit."""

import math
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latte import storage
from latte.config import build
from latte.data import encode_plan, encoding
from latte.data.latents import LatentClips, digests_of
from latte.errors import LatteError, StorageError, UserError
from latte.steps import encode
from latte.storage import manifest
from latte.video import decoders
from latte.video.decoders import Limits
from latte.video.sources import VideoSource
from tests import small_vae, video_files


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_vae.publish(tmp_path_factory.mktemp("vae").as_uri())


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for number in range(3):
        video_files.write(tmp_path / "videos" / f"v{number}.mp4", video_files.moving(6, seed=number))
    return tmp_path / "videos"


def config(root: str, vae: str, videos: Path | str, **settings: object) -> encode.EncodeConfig:
    dataset = {"videos": str(videos), **settings.pop("dataset", {})}
    values = {"root": root, "name": "small", "vae": vae, "image_size": 32, "dataset": dataset, **settings}
    return build(encode.EncodeConfig, values, "test")


def in_steps(settings: encode.EncodeConfig, between: object) -> manifest.Manifest:
    """Plan, let something happen, encode and merge."""
    planned = storage.join(encode.plan(settings).uri, "manifest.json")
    between()
    encode.encode_shards(settings, planned, 0, 1)
    return encode.merge(settings, planned)


def test_a_video_that_moved_after_the_plan_is_encoded_by_the_next_run(vae: str, videos: Path, tmp_path: Path) -> None:
    settings = config((tmp_path / "root").as_uri(), vae, videos)
    done = in_steps(settings, lambda: (videos / "v1.mp4").rename(videos / "moved.mp4"))
    assert [(r.item, r.reason) for r in done.rejects] == [("v1.mp4", "it vanished after it was listed; run again")]
    again = encode.run(settings)
    assert again.rejects == []
    assert again.counts["videos"] == 3
    assert encode.run(settings) == again


def test_what_is_tried_again_leaves_every_published_object_as_it_was(vae: str, videos: Path, tmp_path: Path) -> None:
    settings = config((tmp_path / "root").as_uri(), vae, videos, max_reject_share=0.7)
    planned = storage.join(encode.plan(settings).uri, "manifest.json")
    gone = [videos / "v1.mp4", videos / "v2.mp4"]
    away = [path.rename(tmp_path / path.name) for path in gone]
    seen: list[manifest.Manifest] = []
    for back in range(3):
        if back:
            away[back - 1].rename(gone[back - 1])
        encode.encode_shards(settings, planned, 0, 1)  # the same plan: a task that is retried
        seen.append(encode.merge(settings, planned))
        assert seen[-1].counts["videos"] == 1 + back
    seen.append(encode.run(settings))
    for done in seen:
        for shard in done.shards:
            assert storage.sha256_bytes(storage.read_bytes(shard.uri)) == shard.sha256
        clips = LatentClips(done, tmp_path / "cache")
        assert [clips.clip(index, 0, 1, 6)[0].shape[0] for index in range(done.counts["videos"])] == [6] * len(
            clips.videos
        )
    encode.encode_shards(settings, planned, 0, 1)
    assert encode.run(settings) == seen[-1], "nothing is left to do"


def test_a_folder_that_was_away_is_encoded_when_it_is_back(vae: str, videos: Path, tmp_path: Path) -> None:
    settings = config((tmp_path / "root").as_uri(), vae, videos)
    with pytest.raises(LatteError, match="3 of 3 videos are rejected, so none is left"):
        in_steps(settings, lambda: videos.rename(tmp_path / "away"))
    (tmp_path / "away").rename(videos)
    assert encode.run(settings).counts["videos"] == 3


def test_a_found_dataset_is_made_again_when_a_limit_is_raised(vae: str, videos: Path, tmp_path: Path) -> None:
    still = Image.new("P", (6000, 6000))
    still.save(videos / "vast.gif", save_all=True, append_images=[Image.new("P", still.size, 1)])
    settings = config((tmp_path / "root").as_uri(), vae, videos, decode_memory_gb=0.5)
    done = encode.run(settings)
    assert [r.reason for r in done.rejects] == ["decoding took more than 0.5 GB of memory; raise decode_memory_gb"]
    assert encode.plan(settings).metrics["shards_to_encode"] == 0
    more = settings.model_copy(update={"decode_memory_gb": 4})
    assert encode.plan(more).metrics["shards_to_encode"] == 1
    again = encode.run(more)
    assert again.counts["videos"] == 4
    assert again.fingerprint != done.fingerprint, "training would take it for the dataset without that video"


def test_what_is_stored_under_a_digest_is_of_that_content(s3_root: str, vae: str, videos: Path, tmp_path: Path) -> None:
    where = storage.join(s3_root, "videos")
    for path in videos.iterdir():
        storage.upload(path, f"{where}/{path.name}")
    settings = config(s3_root, vae, where, max_reject_share=1)
    other = video_files.write(tmp_path / "other.mp4", video_files.moving(6, seed=9))

    def change() -> None:
        storage.upload(other, f"{where}/v1.mp4")
        storage.delete(f"{where}/v2.mp4")

    done = in_steps(settings, change)
    assert [(r.item, r.reason) for r in done.rejects] == [
        ("v1.mp4", "its content changed after it was listed; run again"),
        ("v2.mp4", "it vanished after it was listed; run again"),
    ]
    for name in ("v1.mp4", "v2.mp4"):
        storage.upload(videos / name, f"{where}/{name}")
    found = LatentClips(encode.run(settings), tmp_path / "cache")
    fresh = LatentClips(encode.run(config((tmp_path / "fresh").as_uri(), vae, videos)), tmp_path / "cache")
    for index in range(3):
        for one, two in zip(found.clip(index, 0, 1, 6), fresh.clip(index, 0, 1, 6), strict=True):
            assert (one == two).all()


def test_an_upload_that_fails_ends_the_work_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []
    for number in range(2):
        path = video_files.write(tmp_path / f"v{number}.mp4", video_files.moving(200, seed=number))
        video = encoding.Planned(path.name, path.as_uri(), f"digest-{number}", None, path.stat().st_size)
        planned.append(encoding.PlannedShard((tmp_path / f"{number}.safetensors").as_uri(), (video,)))
    failed = threading.Event()
    late = []

    def refuse(*_: object, **facts: object) -> manifest.Shard:
        failed.set()
        raise StorageError("no space left in the store")

    def encode_frames(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if failed.is_set():
            late.append(len(frames))
            time.sleep(0.05)
        return np.zeros((len(frames), 4, 2, 2), np.float32), np.zeros((len(frames), 4, 2, 2), np.float32)

    monkeypatch.setattr(manifest, "publish_shard", refuse)
    settings = encoding.Settings(16, 16, "float16", (2, 4, 2, 2), None, 1, Limits())
    with pytest.raises(StorageError, match="no space left in the store"):
        encoding.encode_all(planned, settings, encode_frames)
    assert len(late) <= 6  # of 13


@pytest.mark.parametrize("name", ["my data", "ünï", "run#2", "100%"])
def test_any_name_will_do(vae: str, videos: Path, tmp_path: Path, name: str) -> None:
    settings = config(f"file://{tmp_path}/my root", vae, videos, name=name)
    done = encode.run(settings)
    assert done.counts["videos"] == 3
    assert encode.plan(settings).metrics["shards_to_encode"] == 0


def test_each_split_keeps_its_manifest(vae: str, videos: Path, tmp_path: Path) -> None:
    made = {}
    for split, names in (("train", "v0\nv1"), ("test", "v2")):
        (tmp_path / f"{split}.txt").write_text(names)
        settings = config((tmp_path / "root").as_uri(), vae, videos, dataset={"split": str(tmp_path / f"{split}.txt")})
        state = encode.plan(settings).uri
        made[storage.join(state, encode_plan.STATE)] = encode.run(settings)
    assert len(made) == 2
    for uri, done in made.items():
        kept = manifest.read(uri, "latents")
        assert kept.model_copy(update={"seconds": done.seconds}) == done
        assert len(LatentClips(kept, tmp_path / "cache").videos) == done.counts["videos"]


def test_a_merge_that_was_killed_leaves_no_state_without_its_manifest(
    vae: str, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config((tmp_path / "root").as_uri(), vae, videos)
    state = storage.join(encode.plan(settings).uri, encode_plan.STATE)
    write = manifest.write

    def killed(made: manifest.Manifest, uri: str, *more: Any) -> None:
        write(made, uri, *more)
        if made.kind == "latents" and uri == storage.join(made.uri, "manifest.json"):
            raise KeyboardInterrupt

    with monkeypatch.context() as ended:
        ended.setattr(manifest, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            encode.run(settings)
    done = encode.run(settings)
    assert manifest.read(state) == done.model_copy(update={"seconds": 0.0})


def test_a_found_dataset_is_judged_by_the_settings_of_now(vae: str, videos: Path, tmp_path: Path) -> None:
    (videos / "empty.mp4").touch()
    root = (tmp_path / "root").as_uri()
    assert encode.run(config(root, vae, videos)).counts["videos"] == 3
    with pytest.raises(LatteError, match="1 of 4 videos are rejected, more than max_reject_share=0 allows"):
        encode.run(config(root, vae, videos, max_reject_share=0))


def test_a_found_dataset_follows_the_records_of_now(
    vae: str, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config((tmp_path / "root").as_uri(), vae, videos)

    def hopeless(sources: Sequence[VideoSource], *args: object, **options: object) -> Iterator[object]:
        for event in decoders.decode_all(sources, *args, **options):
            hangs = isinstance(event, decoders.End) and sources[event.index].uri.endswith("v1.mp4")
            yield decoders.End(event.index, 0, None, "decoding took longer than 1 s") if hangs else event

    with monkeypatch.context() as slow:
        slow.setattr("latte.data.encoding.decode_all", hopeless)
        done = encode.run(settings)
    assert [reject.item for reject in done.rejects] == ["v1.mp4"]
    assert encode.run(settings) == done
    alone = [
        shard
        for shard, record in manifest.read_records(storage.join(done.uri, "shards"))
        if not record["videos"] and record["rejects"]
    ]
    assert alone, "the reject was to be the only one in its shard, which no manifest lists"
    storage.delete(alone[0].uri + manifest.RECORD_SUFFIX)
    again = encode.run(settings)
    assert (again.counts["videos"], again.rejects) == (3, [])

    # Other hardware or another batch rounds otherwise: a lost shard is made again with other bytes, but as many.
    lost = again.shards[0]
    data = bytearray(storage.read_bytes(lost.uri))
    data[-1] ^= 1
    record = storage.read_json(lost.uri + manifest.RECORD_SUFFIX)
    del record["shard"]
    row_bytes = math.prod(record["row_shape"]) * np.dtype(record["dtype"]).itemsize
    for video in record["videos"]:
        rows = data[video["offset"] : video["offset"] + video["num_frames"] * row_bytes]
        video["digests"] = digests_of(bytes(rows), row_bytes)
    manifest.publish_shard(bytes(data), lost.uri, lost.items, **record)
    index = storage.local_path(again.shards[-1].uri)
    index.write_text(index.read_text().replace("v2.mp4", "v3.mp4"))
    clips = LatentClips(encode.run(settings), tmp_path / "cache")
    assert [(video.id, len(clips.clip(i, 0, 1, 6)[0])) for i, video in enumerate(clips.videos)] == [
        ("v0.mp4", 6), ("v1.mp4", 6), ("v2.mp4", 6)
    ]  # fmt: skip


def test_a_limit_does_not_make_the_share_of_rejects_larger(vae: str, videos: Path, tmp_path: Path) -> None:
    for number in range(3):
        (videos / f"empty{number}.mp4").touch()
    done = encode.run(config((tmp_path / "root").as_uri(), vae, videos, dataset={"limit": 1}))
    assert (done.counts["videos"], len(done.rejects)) == (1, 3)


def test_several_captions_of_a_video_are_no_rejected_videos(vae: str, videos: Path, tmp_path: Path) -> None:
    rows = [f"v{number}.mp4,caption {each}" for number in range(3) for each in range(3)]
    (tmp_path / "c.csv").write_text("\n".join(["path,caption", *rows]))
    done = encode.run(config((tmp_path / "root").as_uri(), vae, videos, dataset={"csv": str(tmp_path / "c.csv")}))
    assert (done.counts["videos"], len(done.rejects)) == (3, 6)
    (table,) = manifest.reject_rows(done.rejects)
    assert "6  CSV line …: the path is listed twice; the first row counts" in table


@pytest.mark.parametrize(
    "settings",
    [
        {"root": "s3:/bucket"},
        {"root": "https://host/x"},
        {"shard_mb": float("inf")},
        {"image_size": 1_000_000},
        {"batch_size": 1_000_000_000},
        {"min_frames": 30, "max_frames": 10},
        {"dataset": {"videos": ""}},
        {"dataset": {"videos": "x" * 300}},
        {"dataset": {"csv": "a\0b"}},
    ],
)
def test_settings_that_cannot_be_are_refused(
    vae: str, videos: Path, tmp_path: Path, settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError):
        encode.plan(config(settings.pop("root", (tmp_path / "root").as_uri()), vae, videos, **settings))
    assert set(tmp_path.iterdir()) == before


def test_one_video_in_many_places_is_found_in_any(vae: str, videos: Path, tmp_path: Path) -> None:
    shutil.copy(videos / "v0.mp4", videos / "copy.mp4")
    settings = config((tmp_path / "root").as_uri(), vae, videos)
    in_steps(settings, (videos / "copy.mp4").unlink)
    assert encode.run(settings).counts["videos"] == 3
