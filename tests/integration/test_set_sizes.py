"""A set never shrinks, and jobs that make one set at once do not disturb each other."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latte import storage
from latte.sampling import generation
from latte.steps import sample
from latte.storage import manifest
from latte.video import clip_files
from tests.small_set import IMAGE_SIZE, sampling


def names(done: manifest.Manifest) -> list[tuple[int, str]]:
    return [(item["index"], item["sha256"]) for item in manifest.items(done)]


STORES = pytest.mark.parametrize("root", ["file", "seaweedfs"], indirect=True)


@STORES
def test_a_smaller_number_reads_the_first_videos_and_leaves_the_larger_set(
    world: SimpleNamespace, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = sample.run(sampling(world, root))
    before = storage.read_bytes(large.file)
    monkeypatch.setattr(generation, "sampler", lambda recipe: pytest.fail("nothing is to be generated"))
    small = sample.run(sampling(world, root, num_videos=2))
    assert storage.read_bytes(large.file) == before
    assert manifest.read(large.uri).counts == {"videos": 7}
    assert (small.counts, small.uri) == ({"videos": 2}, large.uri)
    assert names(small) == names(large)[:2]
    assert all(map(manifest.is_whole, [*small.shards, *large.shards]))
    assert sample.run(sampling(world, root)) == large


@STORES
@pytest.mark.parametrize("order", ["large first", "small first", "large while small looks", "small while large looks"])
def test_jobs_of_two_sizes_on_one_set_leave_the_larger_one(
    world: SimpleNamespace, root: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"small": sampling(world, root, num_videos=2), "large": sampling(world, root, num_videos=4)}
    plans = {size: sample.plan(config).file for size, config in sizes.items()}
    for size, config in sizes.items():
        sample.sample_shards(config, plans[size], 0, 1)

    def merge(size: str) -> manifest.Manifest:
        return sample.merge(sizes[size], plans[size])

    first, _, rest = order.partition(" ")
    second = "small" if first == "large" else "large"
    if rest == "first":
        done = {first: merge(first), second: merge(second)}
    else:
        done, swap = {}, storage.swap

        def late(uri: str, data: bytes, etag: str | None) -> bool:
            if uri.endswith("/" + manifest.NAME):
                monkeypatch.setattr(storage, "swap", swap)
                done[first] = merge(first)
            return swap(uri, data, etag)

        monkeypatch.setattr(storage, "swap", late)
        done[second] = merge(second)
    assert {size: made.counts["videos"] for size, made in done.items()} == {"small": 2, "large": 4}
    assert manifest.read(done["large"].uri).model_dump() == done["large"].model_dump()
    assert names(done["small"]) == names(done["large"])[:2]
    assert all(map(manifest.is_whole, [*done["small"].shards, *done["large"].shards]))


@STORES
def test_of_two_jobs_with_batches_of_their_own_the_first_record_counts(
    world: SimpleNamespace, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (np.full((16, IMAGE_SIZE, IMAGE_SIZE, 3), level, np.uint8) for level in (90, 91))
    config = sampling(world, root, num_videos=1)
    made, write_unless = sample._resolve(config), sample.publishing.write_unless

    def second(*arguments: Any) -> bool:
        monkeypatch.setattr(sample.publishing, "write_unless", write_unless)
        sample._publish(config, made, 0, theirs, 1.0)
        return write_unless(*arguments)

    monkeypatch.setattr(sample.publishing, "write_unless", second)
    sample._publish(config, made, 0, ours, 1.0)
    done = sample.merge(config, sample.plan(config).file)
    (item,) = manifest.items(done)
    with storage.as_local_file(item["video"], item["sha256"]) as path:
        assert (clip_files.read_lossless(path) == 91).all()
    assert all(map(manifest.is_whole, done.shards))
    uri = storage.join(done.uri, "clip-00000.mkv")
    assert uri != item["video"], "what the other had published under this name stays"
    assert storage.exists(uri)
