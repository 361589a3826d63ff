"""A root whose documents hold absolute URIs, as versions before this one wrote them, is read where it lies.

`tests/data/absolute_root.json` holds the documents that commit 5283f48 wrote for a small run below /old/root: encode,
train, sample, score and promote with networks of a few thousand weights. The objects themselves are left out.
"""

import json
from pathlib import Path

import pytest

from latte import storage
from latte.data import encode_plan
from latte.storage import manifest, registry
from latte.training import resume
from latte.video.decoders import Limits

DOCUMENTS = json.loads((Path(__file__).parents[2] / "data" / "absolute_root.json").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The documents, as they would have been written here, and objects of the sizes that they record."""
    folder = tmp_path_factory.mktemp("absolute")
    for name, document in DOCUMENTS.items():
        text = json.dumps(document).replace("file:///old/", f"{folder.as_uri()}/")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        pieces = [json.loads(text)]
        while pieces:
            piece = pieces.pop()
            if isinstance(piece, dict) and {"uri", "bytes"} <= piece.keys():
                path = storage.local_path(piece["uri"])
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(bytes(piece["bytes"]))
            pieces += piece.values() if isinstance(piece, dict) else piece if isinstance(piece, list) else ()
    return (folder / "root").as_uri()


def test_every_finished_place_counts_as_done(root: str) -> None:
    places = [uri for uri in storage.list_uris(root) if uri.endswith("/manifest.json")]
    kinds = {uri: json.loads(storage.read_bytes(uri))["kind"] for uri in places}
    assert set(kinds.values()) >= {"weights", "latents", "checkpoint", "video_set", "score", "features", "promotion"}
    for uri, kind in kinds.items():
        # plan.json and items.json have lost or gained a few bytes with the length of the root's name.
        found = manifest.read(uri, kind)
        assert found.uri == uri.removesuffix("/manifest.json")
        whole = [manifest.is_whole(shard) for shard in found.shards if not shard.uri.endswith(".json")]
        assert all(whole), uri
        if not any(shard.uri.endswith(".json") for shard in found.shards):
            assert manifest.find(found.uri, kind) == found


def test_shards_plans_checkpoints_and_the_pointer_are_read(root: str) -> None:
    place = next(uri for uri in storage.list_uris(root) if uri.endswith("/plan.json")).rsplit("/catalogs/", 1)[0]
    known = encode_plan.published(place, Limits(300, 4))
    assert len(known.shards) == 6
    assert all(shard.uri.startswith(f"{place}/shards/") for shard in known.shards.values())
    plan = encode_plan.read(next(uri for uri in storage.list_uris(place) if uri.endswith("/plan.json")))
    assert [entry.id for entry in plan.catalog.entries][:2] == ["bright/0.mkv", "bright/1.mkv"]
    run = next(uri for uri in storage.list_uris(f"{root}/runs/old") if uri.endswith("/manifest.json"))
    assert [checkpoint.step for checkpoint in resume.committed(run.removesuffix("/manifest.json"))] == [0, 1, 2]
    current, _ = registry.read_current(root, "old")
    assert current is not None
    assert manifest.read(current.checkpoint, "checkpoint").metrics["step"] == 2
    assert manifest.read(current.videos, "video_set").counts == {"videos": 4}
    items = storage.read_json(current.videos.removesuffix("manifest.json") + "items.json")
    assert all(storage.exists(item["video"]) and storage.exists(item["preview"]) for item in items)
