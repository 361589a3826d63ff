import json
import re
from pathlib import Path

import pytest

from latte import storage
from latte.errors import UserError
from latte.storage import manifest, s3


def published(root: str, count: int = 2) -> manifest.Manifest:
    uri = storage.join(root, "place")
    shards = [manifest.publish_shard(b"data %d" % i, storage.join(uri, f"shard-{i}"), items=3) for i in range(count)]
    return manifest.Manifest(kind="latents", name="n", uri=uri, fingerprint="f" * 64, shards=shards, metrics={"x": 1.5})


def test_a_place_counts_as_done_only_while_all_its_objects_are_whole(root: str) -> None:
    made = published(root)
    assert manifest.find(made.uri, "latents") is None
    manifest.finish(made)
    assert manifest.find(made.uri, "latents") == made
    storage.write_bytes(made.shards[1].uri, b"other size")
    assert manifest.find(made.uri, "latents") is None
    storage.delete(made.shards[1].uri)
    assert manifest.find(made.uri, "latents") is None


@pytest.mark.parametrize("s3_root", ["seaweedfs"], indirect=True)
def test_a_place_of_many_objects_is_found_by_a_listing(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = storage.join(s3_root, "videos")
    refs = [storage.write_bytes(storage.join(uri, f"{n}.mkv"), b"x" * n) for n in range(1, 41)]
    elsewhere = storage.write_bytes(storage.join(s3_root, "elsewhere"), b"y")
    shards = [manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256) for ref in [*refs, elsewhere]]
    made = manifest.Manifest(kind="video_set", name="n", uri=uri, fingerprint="f", shards=shards)
    manifest.finish(made, s3_root)
    asked: list[str] = []
    call = s3.call
    monkeypatch.setattr(s3, "call", lambda operation, *a, **k: (asked.append(operation), call(operation, *a, **k))[1])
    assert manifest.find(uri, "video_set") == made
    assert asked == ["get_object", "list_objects_v2", "head_object"]
    storage.write_bytes(refs[7].uri, b"cut")
    assert manifest.find(uri, "video_set") is None
    storage.delete(refs[7].uri)
    assert manifest.find(uri, "video_set") is None


def test_a_record_counts_only_with_its_object(root: str) -> None:
    made = published(root, 1)
    uri = made.shards[0].uri
    assert manifest.read_record(uri)["shard"]["items"] == 3
    storage.delete(uri)
    assert manifest.read_record(uri) is None
    assert manifest.read_record(uri + "-never") is None


def test_the_record_of_an_object_that_is_gone_does_not_vouch_for_the_next(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = published(root, 1).shards[0].uri
    storage.delete(uri)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as ended:
        ended.setattr(storage, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            manifest.publish_shard(b"DATA 0", uri, items=3)
    assert storage.read_bytes(uri) == b"DATA 0"
    assert manifest.read_record(uri) is None


def test_reading_something_else_is_a_user_error(root: str) -> None:
    made = published(root)
    manifest.finish(made)
    uri = storage.join(made.uri, "manifest.json")
    with pytest.raises(UserError, match=rf"^real {re.escape(uri)}: a manifest of latents, expected score$"):
        manifest.read(uri, "score", "real")
    with pytest.raises(UserError, match=r"^real .*/none\.json: no such object$"):
        manifest.read(storage.join(root, "none.json"), "score", "real")
    with pytest.raises(UserError, match="a manifest of latents, expected score"):
        manifest.read(uri, "score")
    storage.write_json(uri, {"kind": "latents"})
    with pytest.raises(UserError, match="not a manifest"):
        manifest.read(uri)


def test_a_manifest_is_meant_by_its_uri_its_folder_and_their_paths(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = manifest.finish(published(root))
    named = [made.uri, f"{made.uri}/", f"{made.uri}/manifest.json"]
    if storage.path(root) is not None:
        monkeypatch.chdir(tmp_path)
        named += [str(storage.local_path(each)) for each in named] + ["root/place", "root/../root/place/manifest.json"]
        with pytest.raises(UserError, match=r"^real root: no manifest\.json in this folder; name a manifest"):
            manifest.read("root", key="real")
    for each in named:
        assert manifest.read(each) == made
    with pytest.raises(UserError, match=r"^real .*/nothing.*: no such object$"):
        manifest.read(f"{made.uri}/nothing", key="real")


def test_weights_are_meant_by_the_file_that_the_convert_step_says_it_wrote(root: str) -> None:
    uri = storage.join(root, "weights", "vae", "f" * 16)
    shard = manifest.publish_shard(b"weights", storage.join(uri, "model.safetensors"))
    made = manifest.Manifest(kind="weights", name="vae", uri=uri, fingerprint="f" * 64, shards=[shard])
    manifest.finish(made, root)
    assert made.file == storage.join(uri, "manifest.json")
    assert manifest.read(shard.uri) == made
    target = storage.join(root, "mine", "vae.safetensors")
    shard = manifest.publish_shard(b"weights", target)
    mine = made.model_copy(update={"uri": target, "shards": [shard]})
    assert mine.file == f"{target}.manifest.json"
    manifest.write(mine, mine.file)
    assert manifest.read(target) == manifest.read(mine.summary()["uri"]) == mine


def test_one_shard_by_its_ending(root: str) -> None:
    made = published(root)
    assert made.shard("shard-1").uri.endswith("shard-1")
    with pytest.raises(UserError, match="found 0"):
        made.shard("shard-9")


def test_fingerprints_depend_on_values_not_on_order() -> None:
    assert manifest.fingerprint({"a": 1, "b": 2}) == manifest.fingerprint({"b": 2, "a": 1})
    assert manifest.fingerprint({"a": 1}) != manifest.fingerprint({"a": 2})
    assert manifest.fingerprint("ab", "c") != manifest.fingerprint("a", "bc")


def test_the_summary_is_flat_and_json(root: str) -> None:
    summary = published(root).summary()
    assert summary["bytes"] == 12
    assert summary["x"] == 1.5
    json.dumps(summary)
