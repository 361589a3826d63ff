"""What a manifest names stays as it is when a dataset changes or a rejected video is tried again."""

from pathlib import Path

from latte import storage
from latte.data.catalog import Catalog
from latte.data.encode_plan import EncodePlan, left_to_encode, merge, published, task_shards, write, write_index
from latte.storage import manifest
from latte.video.decoders import Limits
from tests.unit.data.test_latents import ROW_SHAPE, entry, write_shard


def number_of(uri: str) -> int:
    return int(manifest.shard_name(uri), 16)


def test_what_is_tried_again_goes_to_a_shard_of_its_own(tmp_path: Path) -> None:
    place = tmp_path.as_uri()
    plan = EncodePlan(Catalog([entry("a"), entry("b")], ["one"], []), [(f"{1:016x}", [entry("a"), entry("b")])])
    planned = task_shards(plan, place, 0, 1, by_etag=False)
    assert left_to_encode(planned, place, Limits()) == planned
    made = [write_shard(place, 1, "ab", rejected="b", passing=True)]
    for trouble in (True, True, False):
        (again,) = left_to_encode(planned, place, Limits())
        assert [video.id for video in again.videos] == ["b.mp4"]
        assert again.uri not in {shard.uri for shard in made}
        made.append(write_shard(place, number_of(again.uri), "b", rejected="b" if trouble else "", passing=trouble))
    assert left_to_encode(planned, place, Limits()) == []
    for shard in made:
        assert storage.sha256_bytes(storage.read_bytes(shard.uri)) == shard.sha256
    assert [video.id for video in merge(plan.catalog, published(place, Limits()), 1).videos] == ["a.mp4", "b.mp4"]


def test_a_later_plan_and_index_leave_those_of_before(tmp_path: Path) -> None:
    place = storage.join(tmp_path.as_uri(), "datasets", "x")
    uri = storage.join(place, "catalogs", "0")
    catalog = Catalog([entry("a"), entry("b")], ["one"], [])
    write_shard(place, 1, "ab", rejected="b", passing=True)
    named: list[manifest.Shard] = []
    for _ in range(2):
        merged = merge(catalog, published(place, Limits()), 1)
        named.append(write_index(merged, place, uri, ROW_SHAPE, "float16", place))
        plan = EncodePlan(catalog, [(f"{len(named):016x}", [entry("b")])])
        named.append(write(plan, storage.join(uri, "plan.json"), place))
        write_shard(place, 2, "b")
    assert len({shard.uri for shard in named}) == 4
    for shard in named:
        assert storage.sha256_bytes(storage.read_bytes(shard.uri)) == shard.sha256
    assert [Path(shard.uri).name for shard in named] == ["index.json", "plan.json"] * 2
    assert write_index(merged, place, uri, ROW_SHAPE, "float16", place) == named[2], "the same again is the same object"
