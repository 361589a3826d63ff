"""A dataset whose stored objects are damaged: found, removed and made again, to the same bytes."""

import pytest

from latte import storage
from latte.config import build
from latte.errors import DamagedError
from latte.inventory.verify import verify
from latte.steps import encode
from latte.storage import manifest
from tests import small_vae, video_files
from tests.fault_proxy import flipped


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> encode.EncodeConfig:
    """Four videos, in two shards."""
    folder = tmp_path_factory.mktemp("encode")
    for number in range(4):
        video_files.write(folder / "videos" / f"{number}.mp4", video_files.moving(18 + number, seed=number))
    root = (folder / "root").as_uri()
    values = {"root": root, "name": "small", "vae": small_vae.publish(root), "image_size": 32, "num_tasks": 2}
    return build(encode.EncodeConfig, {**values, "dataset": {"videos": str(folder / "videos")}}, "test")


def objects(config: encode.EncodeConfig) -> dict[str, bytes]:
    """Every object of the dataset but those that say how long it took, and the plan, which is of what is lacking."""
    listed = storage.list_uris(storage.join(config.root, "datasets", config.name))
    return {uri: storage.read_bytes(uri) for uri in listed if not uri.endswith(("/manifest.json", "/plan.json"))}


def flip(uri: str) -> None:
    path = storage.local_path(uri)
    path.write_bytes(flipped(path.read_bytes()))


def test_whatever_is_damaged_the_next_run_makes_it_again(
    config: encode.EncodeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    made = encode.run(config)
    whole = objects(config)
    assert len(made.shards) == 3
    assert not verify(config.root).damages
    planned = encode.plan(config)
    # The plan last: without it, what is lacking is planned again, into other shards.
    for uri in [*(uri for uri in whole if "/parts/" not in uri), made.file, planned.shards[0].uri, planned.file]:
        flip(uri)
        found = verify(config.root, repair=True)
        assert [(damage.uri, damage.remedy, damage.done) for damage in found.damages] == [
            (uri, "latte encode", "removed")
        ]
        encode.run(config)
        assert objects(config) == whole
        assert not verify(config.root).damages
    assert manifest.read(made.file).model_copy(update={"seconds": made.seconds}) == made
    capsys.readouterr()


def test_a_damaged_plan_is_not_encoded_by_but_planned_again(
    config: encode.EncodeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    made = encode.run(config)
    planned = encode.plan(config)
    flip(planned.shard("/plan.json").uri)
    for step in (lambda: encode.encode_shards(config, planned.file, 0, 1), lambda: encode.merge(config, planned.file)):
        with pytest.raises(DamagedError, match=r"plan\.json: damaged.*latte verify ROOT --repair"):
            step()
    assert encode.merge(config, encode.plan(config).file).shards == made.shards
    assert "plan.json: damaged: its content does not have the recorded SHA-256" in capsys.readouterr().err


def test_damaged_manifests_and_records_need_no_repair(
    config: encode.EncodeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config.model_copy(update={"name": "again"})
    made = encode.run(config)
    whole = objects(config)
    for uri in (made.file, made.shards[0].uri + manifest.RECORD_SUFFIX, encode.plan(config).file):
        flip(uri)
        encode.run(config)
        assert objects(config) == whole
        assert "made again" in capsys.readouterr().err
    assert manifest.read(made.file).shards == made.shards
