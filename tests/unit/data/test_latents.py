import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from latte import storage
from latte.data.catalog import Catalog, CatalogEntry
from latte.data.encode_plan import (
    Known,
    Published,
    fits,
    is_done,
    make,
    merge,
    published,
    read,
    shard_uri,
    task_shards,
    write,
    write_index,
)
from latte.data.encoding import Planned, PlannedShard, Settings, ShardWriter
from latte.data.latents import LatentClips, _make_room
from latte.errors import LatteError, StorageError, UserError
from latte.storage import manifest
from latte.training.batches import BatchPlan, make_batch
from latte.video.decoders import End, Limits

ROW_SHAPE = (2, 4, 2, 2)
FRAMES = {"a": 5, "b": 1, "c": 40, "d": 17}


def encode(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Says which frame it saw: the mean is the frame's first pixel, the log-variance minus that."""
    assert len(frames) <= 8
    mean = np.broadcast_to(frames[:, 0, 0, 0].astype(np.float32)[:, None, None, None], (len(frames), 4, 2, 2))
    return mean, -mean


def frames_of(name: str) -> np.ndarray:
    count = FRAMES[name]
    return np.broadcast_to(
        (np.arange(count) + 50 * (ord(name) - 97)).astype(np.uint8)[:, None, None, None], (count, 16, 16, 3)
    )


def settings(dtype: str = "float16") -> Settings:
    return Settings(16, 8, dtype, ROW_SHAPE, None, 1, Limits())


def entry(name: str, label: int | None = 0) -> CatalogEntry:
    return CatalogEntry(f"{name}.mp4", f"file:///videos/{name}.mp4", f"digest-{name}", label, None, 100)


def write_shard(
    place: str, number: int, names: str, rejected: str = "", dtype: str = "float16", passing: bool = False
) -> manifest.Shard:
    videos = tuple(Planned(f"{n}.mp4", f"file:///videos/{n}.mp4", f"digest-{n}", None, 100) for n in names)
    writer = ShardWriter(PlannedShard(shard_uri(place, f"{number:016x}"), videos), settings(dtype), encode)
    for video in videos:
        name = video.id[0]
        for start in range(0, FRAMES[name], 16):
            writer.add(frames_of(name)[start : start + 16])
        reject = "broken at its end" if name in rejected else None
        writer.end_video(video, End(0, FRAMES[name], 25.0, reject, passing))
    writer.flush()
    return writer.publish()


def dataset(root: str, dtype: str = "float16") -> manifest.Manifest:
    place = storage.join(root, "datasets", "x")
    write_shard(place, 1, "ab", dtype=dtype)
    write_shard(place, 2, "cd", dtype=dtype)
    merged = merge(Catalog([entry(n) for n in FRAMES], ["one"], []), published(place, Limits()), min_frames=1)
    index = write_index(merged, place, storage.join(place, "catalogs", "0"), ROW_SHAPE, dtype, place)
    return manifest.Manifest(
        kind="latents", name="x", uri=place, fingerprint="f", shards=[*merged.shards, index],
        config={"scaling_factor": 0.5, "image_size": 16},
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_clip_of_every_video(root: str, tmp_path: Path, dtype: str) -> None:
    clips = LatentClips(dataset(root, dtype), tmp_path / "cache")
    assert [(video.id, video.num_frames, video.fps) for video in clips.videos] == [
        (f"{name}.mp4", count, 25.0) for name, count in FRAMES.items()
    ]
    assert clips.scaling_factor == 0.5
    for index, name in enumerate(FRAMES):
        for start, stride, count in [(0, 1, 1), (0, 1, FRAMES[name]), (2, 3, 5), (1, 2, 2)]:
            if start + (count - 1) * stride >= FRAMES[name]:
                with pytest.raises(UserError, match=f"{name}.mp4: has {FRAMES[name]} frames, not {count} from {start}"):
                    clips.clip(index, start, stride, count)
                continue
            mean, logvar = clips.clip(index, start, stride, count)
            assert mean.dtype == logvar.dtype == np.float32
            assert mean.shape == logvar.shape == (count, 4, 2, 2)
            wanted = frames_of(name)[start::stride][:count, 0, 0, 0].astype(np.float32)
            np.testing.assert_array_equal(mean[:, 3, 1, 1], wanted)
            np.testing.assert_array_equal(logvar, -mean)


def test_shards_are_safetensors_files_without_the_rejected(tmp_path: Path) -> None:
    place = (tmp_path / "x").as_uri()
    shard = write_shard(place, 1, "abcd", rejected="ac")
    tensors = load(storage.read_bytes(shard.uri))
    assert sorted(tensors) == ["digest-b", "digest-d"]
    assert tensors["digest-d"].shape == (17, *ROW_SHAPE)
    assert tensors["digest-d"].dtype == np.float16
    np.testing.assert_array_equal(tensors["digest-d"][:, 0, 0, 0, 0], frames_of("d")[:, 0, 0, 0])
    done = published(place, Limits())
    assert done.known["digest-c"].reject == "broken at its end"
    assert write_shard(place, 1, "abcd", rejected="ac") == shard
    nothing = write_shard(place, 2, "a", rejected="a")
    assert load(storage.read_bytes(nothing.uri)) == {}


def test_the_cache_stays_within_its_bound_and_drops_foreign_copies(s3_root: str, tmp_path: Path) -> None:
    latents = dataset(s3_root)
    sizes = [shard.bytes for shard in latents.shards]
    cache = tmp_path / "cache"
    cache.mkdir()
    old = [f"{number:064x}.safetensors" for number in range(3)]
    for number, name in enumerate([*old, "model.safetensors"]):
        (cache / name).write_bytes(b"x" * 1000)
        os.utime(cache / name, (number % 3, number % 3))
    killed, under_way = (f".tmp-{digit * 32}" for digit in "ab")
    for name in (killed, f"{killed}.0a1B2c3D", ".tmp-of others"):
        (cache / name).write_bytes(b"x" * 1000)
        os.utime(cache / name, (1, 1))
    (cache / under_way).write_bytes(b"x")
    clips = LatentClips(latents, cache, cache_bytes=sizes[0] + 2500)
    assert sizes[1] > 2500
    clips.clip(0, 0, 1, 5)
    kept = sorted(path.name for path in cache.iterdir())
    copies = [*old[1:], f"{latents.shards[0].sha256}.safetensors"]
    assert kept == sorted([under_way, ".tmp-of others", "model.safetensors", *copies])
    mean, _ = clips.clip(2, 0, 1, 40)  # its shard does not fit any more, so it is read by ranges
    np.testing.assert_array_equal(mean[:, 0, 0, 0], frames_of("c")[:, 0, 0, 0])
    assert sorted(path.name for path in cache.iterdir()) == kept
    (cache / f"{latents.shards[0].sha256}.safetensors").unlink()  # somebody else made room
    np.testing.assert_array_equal(clips.clip(0, 0, 1, 5)[0][:, 0, 0, 0], frames_of("a")[:, 0, 0, 0])


def test_a_cache_is_found_again_and_a_damaged_copy_is_replaced(s3_root: str, tmp_path: Path) -> None:
    latents = dataset(s3_root)
    LatentClips(latents, tmp_path).clip(0, 0, 1, 5)
    copy = tmp_path / f"{latents.shards[0].sha256}.safetensors"
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1] + b"?")
    LatentClips(latents, tmp_path).clip(0, 0, 1, 5)
    assert copy.read_bytes() == whole


def test_a_cache_of_somebody_elses_is_read_but_not_cleared(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = dataset(s3_root)
    LatentClips(latents, tmp_path).clip(0, 0, 1, 5)
    (tmp_path / f"{0:064x}.safetensors").write_bytes(b"x" * 1000)

    def refuse(*_: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert len(LatentClips(latents, tmp_path).clip(0, 0, 1, 5)[0]) == 5
    with pytest.raises(UserError, match=r"0\.safetensors: Operation not permitted"):
        LatentClips(latents, tmp_path, latents.shards[0].bytes).clip(0, 0, 1, 5)


def test_others_that_share_a_cache_may_make_room_at_any_moment(s3_root: str, tmp_path: Path) -> None:
    latents = dataset(s3_root)
    readers = [LatentClips(latents, tmp_path, cache_bytes=1 << 20) for _ in range(2)]
    ended = threading.Event()

    def make_room() -> None:
        while not ended.wait(0.0005):
            _make_room(tmp_path, [], 0)

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(make_room) for _ in range(2)]
        try:
            for number in range(200):
                start = number % 24
                mean, _ = readers[number % 2].clip(2, start, 1, 16)
                np.testing.assert_array_equal(mean[:, 0, 0, 0], frames_of("c")[start : start + 16, 0, 0, 0])
        finally:
            ended.set()
    assert [other.result() for other in others] == [None, None]


def test_processes_that_share_a_cache_keep_its_bound_and_each_others_copies(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = dataset(s3_root)
    limit = max(shard.bytes for shard in latents.shards[:2])
    copied = []
    download = storage.download

    def count(uri: str, path: Path, sha256: str) -> Path:
        copied.append(uri)
        return download(uri, path, sha256)

    monkeypatch.setattr(storage, "download", count)
    readers = [LatentClips(latents, tmp_path / "cache", limit) for _ in range(2)]
    for number in range(6):
        for reader, name in zip(readers, "ac" if number % 2 else "ca", strict=True):
            mean, _ = reader.clip("abcd".index(name), 0, 1, 5)
            np.testing.assert_array_equal(mean[:, 0, 0, 0], frames_of(name)[:5, 0, 0, 0])
    assert len(copied) == 1
    (tmp_path / "cache" / f"{latents.shards[0].sha256}.safetensors").unlink()
    (tmp_path / "cache" / "another.safetensors").write_bytes(b"x" * limit)
    for reader in readers:
        np.testing.assert_array_equal(reader.clip(0, 0, 1, 5)[0][:, 0, 0, 0], frames_of("a")[:, 0, 0, 0])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["another.safetensors"]


def test_a_damaged_shard_or_index_is_an_error(root: str, tmp_path: Path) -> None:
    latents = dataset(root)
    for shard in (latents.shards[1], latents.shards[-1]):
        whole = storage.read_bytes(shard.uri)
        storage.write_bytes(shard.uri, whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(StorageError, match="damaged"):
            LatentClips(latents, tmp_path / "cache").clip(2, 0, 1, 16)
        storage.write_bytes(shard.uri, whole)
    with pytest.raises(UserError, match="a manifest of weights, expected latents"):
        LatentClips(latents.model_copy(update={"kind": "weights"}), tmp_path / "cache")


def test_threads_share_a_reader(s3_root: str, tmp_path: Path) -> None:
    clips = LatentClips(dataset(s3_root), tmp_path)
    wrong = []

    def read(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(30):
            start = int(draw.integers(24))
            mean, _ = clips.clip(2, start, 1, 16)
            if not (mean[:, 0, 0, 0] == frames_of("c")[start : start + 16, 0, 0, 0]).all():
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def looked_at(*digests: str) -> Published:
    return Published({}, dict.fromkeys(digests, Known("shard")))


def test_plans_cover_what_is_new_once_and_are_spread_over_tasks() -> None:
    entries = [CatalogEntry(f"{i}.mp4", f"file:///{i}.mp4", f"digest-{i % 50}", None, None, 100) for i in range(100)]
    plan = make(Catalog(entries, [], []), looked_at("digest-0", "digest-1"), shard_bytes=1000, num_tasks=4)
    planned = [entry.digest for _, members in plan.shards for entry in members]
    assert planned == [f"digest-{i}" for i in range(2, 50)]
    assert {len(members) for _, members in plan.shards} <= {8, 10}
    assert len({name for name, _ in plan.shards}) == len(plan.shards) == 5
    spread = make(Catalog(entries, [], []), looked_at(), shard_bytes=1 << 30, num_tasks=4)
    assert len(spread.shards) == 4
    assert make(Catalog(entries, [], []), looked_at(*(e.digest for e in entries)), 1000, 4).shards == []


def test_merging_follows_the_catalog(tmp_path: Path) -> None:
    place = tmp_path.as_uri()
    write_shard(place, 1, "ab")
    write_shard(place, 2, "cd", rejected="d")
    copy = CatalogEntry("copy of a.mp4", "file:///copy.mp4", "digest-a", 1, "text", 100)
    merged = merge(Catalog([entry("a"), copy, entry("d")], ["x", "y"], []), published(place, Limits()), min_frames=1)
    assert [(v.id, v.label, v.caption) for v in merged.videos] == [("a.mp4", 0, None), ("copy of a.mp4", 1, "text")]
    assert [shard.uri for shard in merged.shards] == [shard_uri(place, f"{1:016x}")]
    assert [(r.item, r.reason) for r in merged.rejects] == [("d.mp4", "broken at its end")]
    short = merge(Catalog([entry("a"), entry("b")], [], []), published(place, Limits()), min_frames=2)
    assert [(r.item, r.reason) for r in short.rejects] == [("b.mp4", "too short: 1 frames, min_frames is 2")]
    with pytest.raises(LatteError, match=r"1 videos are not encoded yet, for example 'a\.mp4'"):
        merge(Catalog([entry("a")], [], []), Published({}, {}), 1)
    storage.delete(shard_uri(place, f"{1:016x}"))
    assert "digest-a" not in published(place, Limits()).known


def test_plans_hold_mirrored_copies_as_contents_of_their_own(tmp_path: Path) -> None:
    catalog = Catalog([entry("a"), entry("b"), entry("c")], ["one"], [])
    done = looked_at("digest-a", "digest-b", "digest-b-mirrored")
    plan = make(catalog, done, shard_bytes=1000, num_tasks=1, mirrored=True)
    assert [e.digest for _, members in plan.shards for e in members] == [
        "digest-c", "digest-a-mirrored", "digest-c-mirrored"
    ]  # fmt: skip
    uri = (tmp_path / "plan.json").as_uri()
    write(plan, uri, tmp_path.as_uri())
    assert read(uri) == plan
    (shard,) = task_shards(read(uri), tmp_path.as_uri(), 0, 1, by_etag=False)
    assert [(v.id, v.content, v.mirrored) for v in shard.videos] == [
        ("c.mp4", "digest-c", False), ("a.mp4", "digest-a", True), ("c.mp4", "digest-c", True)
    ]  # fmt: skip
    assert fits(plan, catalog, done, mirrored=True)
    assert not fits(plan, catalog, looked_at("digest-a"), mirrored=True)


def test_what_was_rejected_for_passing_trouble_is_planned_again(tmp_path: Path) -> None:
    place = tmp_path.as_uri()
    write_shard(place, 1, "ab", rejected="b", passing=True)
    catalog = Catalog([entry("a"), entry("b")], ["one"], [])
    done = published(place, Limits())
    plan = make(catalog, done, shard_bytes=1000, num_tasks=1)
    assert [[e.id for e in entries] for _, entries in plan.shards] == [["b.mp4"]]
    assert not is_done(shard_uri(place, f"{1:016x}"), Limits())
    assert [r.item for r in merge(catalog, done, 1).rejects] == ["b.mp4"]
    write_shard(place, 2, "b")
    assert not any(known.again for known in published(place, Limits()).known.values())
    assert [v.id for v in merge(catalog, published(place, Limits()), 1).videos] == ["a.mp4", "b.mp4"]


def test_a_video_without_its_mirrored_copy_is_left_out() -> None:
    shards = {"s": manifest.Shard(uri="file:///place/shards/s.safetensors", bytes=1, sha256="0")}
    known = {
        "digest-a": Known("s", 5), "digest-a-mirrored": Known("s", 5, 100),
        "digest-b": Known("s", 5), "digest-b-mirrored": Known("s", reject="its decoder ended by SIGKILL"),
        "digest-c": Known("s", 5), "digest-c-mirrored": Known("s", 4),
    }  # fmt: skip
    catalog = Catalog([entry("a"), entry("b"), entry("c")], ["one"], [])
    merged = merge(catalog, Published(shards, known), 1, mirrored=True)
    assert [(video.id, video.mirrored) for video in merged.videos] == [("a.mp4", (0, 100))]
    assert [(r.item, r.reason) for r in merged.rejects] == [
        ("b.mp4", "mirrored copy: its decoder ended by SIGKILL"),
        ("c.mp4", "its content changed while it was encoded; run again"),
    ]
    assert len(merge(catalog, Published(shards, known), 1).videos) == 3


def test_training_draws_either_copy_and_changes_nothing_else(tmp_path: Path) -> None:
    place = storage.join(tmp_path.as_uri(), "datasets", "x")
    write_shard(place, 1, "c")
    mirrored = Planned("c.mp4", "file:///videos/c.mp4", "digest-c-mirrored", None, 100, mirrored=True)
    writer = ShardWriter(PlannedShard(shard_uri(place, f"{2:016x}"), (mirrored,)), settings(), encode)
    writer.add(frames_of("c") + np.uint8(100))
    writer.end_video(mirrored, End(0, FRAMES["c"], 25.0))
    writer.flush()
    writer.publish()
    plan = BatchPlan(
        seed=0, batch_size=64, num_frames=4, frame_stride=3, num_timesteps=1000, scaling_factor=1.0, num_classes=0,
        class_dropout_prob=0.1,
    )  # fmt: skip
    batches = []
    for both in (False, True):
        merged = merge(Catalog([entry("c")], ["one"], []), published(place, Limits()), min_frames=1, mirrored=both)
        index = write_index(merged, place, storage.join(place, "catalogs", str(both)), ROW_SHAPE, "float16", place)
        facts = {"scaling_factor": 1.0, "image_size": 16}
        latents = manifest.Manifest(
            kind="latents", name="x", uri=place, fingerprint="f", shards=[*merged.shards, index], config=facts
        )
        batches.append(make_batch(LatentClips(latents, tmp_path / "cache"), [0], plan, 0, range(64)))
    firsts = [batch.x0[:, 0, 0, 0, 0].round() for batch in batches]  # the posterior is narrow: exp(-50)
    assert set(firsts[1] - firsts[0]) == {0, 100}
    assert 16 < np.sum(firsts[1] != firsts[0]) < 48
    np.testing.assert_array_equal(batches[0].t, batches[1].t)
