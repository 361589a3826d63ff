"""Whatever is read for a clip is compared with the digests of its blocks."""

import json
from pathlib import Path

import numpy as np
import pytest

from latte import storage
from latte.data.latents import LatentClips
from latte.errors import StorageError
from latte.storage import manifest
from tests.fault_proxy import flipped
from tests.unit.data.test_latents import FRAMES, ROW_SHAPE, dataset, frames_of


@pytest.mark.parametrize("s3_root", ["seaweedfs"], indirect=True)
def test_ranges_are_compared_with_the_digests_of_their_blocks(s3_root: str, tmp_path: Path) -> None:
    latents = dataset(s3_root)
    shard = latents.shards[1]
    clips = LatentClips(latents, tmp_path, cache_bytes=0)
    row_bytes = int(np.prod(ROW_SHAPE)) * 2
    offset = clips.videos[2].offset
    whole = storage.read_bytes(shard.uri)
    for row in range(0, FRAMES["c"], 7):
        storage.write_bytes(shard.uri, flipped(whole, offset + row * row_bytes + 5))
        for start, stride, count in [(row, 1, 1), (max(0, row - 3), 2, 3), (0, 1, 40)]:
            span = (count - 1) * stride + 1
            if start + span > FRAMES["c"]:
                continue
            if start <= row < start + span:
                with pytest.raises(StorageError, match=r"damaged: .* the latents of c\.mp4; .*latte verify"):
                    clips.clip(2, start, stride, count)
        clips.clip(3, 0, 1, 17)
    storage.write_bytes(shard.uri, whole)
    assert len(clips.clip(2, 0, 1, 40)[0]) == 40


@pytest.mark.parametrize("s3_root", ["seaweedfs"], indirect=True)
def test_a_local_copy_that_is_damaged_while_it_is_in_use_is_read_from_the_store(s3_root: str, tmp_path: Path) -> None:
    latents = dataset(s3_root)
    clips = LatentClips(latents, tmp_path)
    before = clips.clip(2, 0, 1, 40)
    copy = tmp_path / f"{latents.shards[1].sha256}.safetensors"
    copy.write_bytes(flipped(copy.read_bytes(), clips.videos[2].offset))
    np.testing.assert_array_equal(clips.clip(2, 0, 1, 40), before)
    assert not copy.exists()


def test_an_index_without_digests_is_of_a_version_before(root: str, tmp_path: Path) -> None:
    latents = dataset(root)
    ref = latents.shards[-1]
    index = storage.read_json(ref.uri)
    for video in index["videos"]:
        del video["digests"], video["content"]
    older = manifest.publish_shard(json.dumps(index).encode(), ref.uri)
    clips = LatentClips(latents.model_copy(update={"shards": [*latents.shards[:-1], older]}), tmp_path, cache_bytes=0)
    np.testing.assert_array_equal(clips.clip(2, 3, 1, 8)[0][:, 0, 0, 0], frames_of("c")[3:11, 0, 0, 0])
