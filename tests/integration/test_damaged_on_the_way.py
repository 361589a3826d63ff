"""PUTs that arrive damaged, twice or not at all although they are answered, and reads that are damaged on their way."""

from pathlib import Path

import numpy as np
import pytest

from latte import storage
from latte.data.latents import LatentClips
from latte.errors import StorageError
from latte.steps.promote import PromoteConfig, run
from latte.storage import manifest, registry
from tests import fault_proxy
from tests.unit.data import test_latents
from tests.unit.steps.promotions import make

pytestmark = pytest.mark.parametrize("s3_root", ["seaweedfs"], indirect=True)
LARGE = np.random.default_rng(0).bytes(20 << 20)


@pytest.mark.parametrize("fault", ["flip", "swallow", "twice"])
def test_what_is_put_is_there_as_it_was_sent(
    s3_root: str, proxy: fault_proxy.Proxy, tmp_path: Path, fault: str
) -> None:
    small, large = storage.join(s3_root, "small"), storage.join(s3_root, "large")
    (tmp_path / "large").write_bytes(LARGE)
    proxy.planned = [("PUT", "/small", fault)]
    assert storage.write_bytes(small, b"some bytes").sha256 == storage.sha256_bytes(storage.read_bytes(small))
    # The same size as before: only the content tells that the second was not stored.
    proxy.planned = [("PUT", "/small", fault)]
    storage.write_bytes(small, b"other byte")
    assert storage.read_bytes(small) == b"other byte"
    proxy.planned = [("PUT", "partNumber=2", fault if fault != "swallow" else "twice")]
    ref = storage.upload(tmp_path / "large", large)
    assert not proxy.planned
    assert storage.sha256_bytes(storage.read_bytes(large)) == ref.sha256


def test_a_store_that_keeps_nothing_is_told(s3_root: str, proxy: fault_proxy.Proxy) -> None:
    proxy.planned = [("PUT", "/small", "swallow")] * 9
    with pytest.raises(StorageError, match="answered that it was written, but does not have it so"):
        manifest.publish_shard(b"x", storage.join(s3_root, "small"))
    assert not storage.list_uris(s3_root)


def test_a_range_that_is_damaged_on_its_way_is_read_again(
    s3_root: str, proxy: fault_proxy.Proxy, tmp_path: Path
) -> None:
    made = test_latents.dataset(s3_root)
    clips = LatentClips(made, tmp_path, cache_bytes=0)
    whole = clips.clip(2, 3, 1, 16)
    proxy.planned = [("GET", "/shards/", "flip")]
    np.testing.assert_array_equal(clips.clip(2, 3, 1, 16), whole)
    assert not proxy.planned


# As a promotion's own write goes: the answer is lost, it arrives twice, it is answered and not kept.
@pytest.mark.parametrize("fault", ["reset after", "twice", "stall", "swallow"])
def test_a_promotion_or_rollback_happens_once_whatever_becomes_of_its_write(
    s3_root: str, proxy: fault_proxy.Proxy, fault: str
) -> None:
    made = [make(s3_root, f"v{value}", float(value)) for value in (500, 400, 300, 200)]
    for number, candidate in enumerate(made, start=1):
        proxy.planned = [("PUT", "current.json", fault)]
        decided = run(PromoteConfig(root=s3_root, name="m", checkpoint=candidate.checkpoint, score=candidate.score))
        assert not proxy.planned
        assert (decided.metrics["promoted"], decided.metrics["number"]) == (1, number)
    proxy.planned = [("PUT", "current.json", fault), ("PUT", "history/", fault)]
    decided = run(PromoteConfig(root=s3_root, name="m", rollback=True))
    assert not proxy.planned
    now, _ = registry.read_current(s3_root, "m")
    assert now is not None
    assert (now.value, now.number, decided.metrics["number"]) == (300.0, 5, 5)
    assert [entry.value for entry in registry.history(s3_root, "m")] == [500, 400, 300, 200]
