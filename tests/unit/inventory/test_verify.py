"""What `latte verify` finds under a root, and how it heals it."""

import json
from pathlib import Path

import pytest

from latte import storage
from latte.errors import StorageError, UserError
from latte.inventory.verify import Damage, verify
from latte.steps.promote import PromoteConfig, run
from latte.storage import documents, manifest, registry
from tests.fault_proxy import flipped
from tests.unit.steps.promotions import Candidate, make


def damage(uri: str) -> None:
    storage.write_bytes(uri, flipped(storage.read_bytes(uri)))


def promote(root: str, candidate: Candidate) -> None:
    run(PromoteConfig(root=root, name="m", checkpoint=candidate.checkpoint, score=candidate.score))


@pytest.fixture
def promoted(tmp_path: Path) -> str:
    """Three promotions in a folder."""
    root = tmp_path.as_uri()
    for value in (3.0, 2.0, 1.0):
        promote(root, make(root, f"v{value}", value))
    return root


def of_version(root: str, number: int) -> str:
    """The promoted weights of an entry."""
    entries = {entry.number: entry for entry in [*registry.history(root, "m"), registry.read_current(root, "m")[0]]}
    return manifest.read(entries[number].checkpoint).shards[0].uri


def test_what_is_whole_is_said_to_be(root: str) -> None:
    candidate = make(root, "a", 1.0)
    found = verify(root)
    assert (found.damages, found.objects, found.documents) == ((), 2, 5)
    assert found.bytes == len(b"a model") + len(b"a ema")
    with pytest.raises(UserError, match="not a root"):
        verify(storage.join(root, "runs"))
    assert manifest.read(candidate.checkpoint)


def test_every_kind_of_damage_is_named_and_removed_so_that_it_is_made_again(root: str) -> None:
    for label in "abcdef":
        make(root, label, 1.0)
    places = {label: storage.join(root, "runs/model", label) for label in "abcdef"}
    step = "checkpoints/step-00000006"
    flipped_object = storage.join(places["a"], step, "ema.safetensors")
    damage(flipped_object)
    cut = storage.join(places["b"], step, "ema.safetensors")
    storage.write_bytes(cut, b"b")
    gone = storage.join(places["c"], step, "model.safetensors")
    storage.delete(gone)
    document = storage.join(root, "scores/model/d-real-1", manifest.NAME)
    storage.write_bytes(document, storage.read_bytes(document).replace(b'"fvd": 1.0', b'"fvd": 2.0'))
    record = storage.join(places["e"], step, "model.safetensors" + manifest.RECORD_SUFFIX)
    storage.write_bytes(record, storage.read_bytes(record)[:-9])
    # Other bytes under a name that an older manifest knows, with a record of their own.
    manifest.publish_shard(b"f again", storage.join(places["f"], step, "model.safetensors"))
    wanted = {
        flipped_object: "another SHA-256 than was recorded",
        cut: "1 bytes, not 5",
        gone: "missing",
        document: "damaged: its content does not have the SHA-256 that it carries",
        storage.join(places["f"], manifest.NAME): f"names what runs/model/f/{step}/model.safetensors was before",
    }
    found = {each.uri: each for each in verify(root).damages}
    for uri, what in wanted.items():
        assert found[uri].what.startswith(what)
        assert found[uri].remedy == ("latte score" if "/scores/" in uri else "latte train")
    assert found[record].what.startswith("not JSON")
    assert set(found) == {*wanted, record}
    healed = verify(root, repair=True)
    assert {each.done for each in healed.damages} == {"removed"}
    assert healed.left == 0
    for label in "abcf":
        assert manifest.find(places[label], "checkpoint") is None
    assert manifest.published(flipped_object) is None
    assert {each.what for each in verify(root).damages} == {"missing"}


def test_promoted_weights_are_put_back_from_the_run_that_has_them(promoted: str) -> None:
    damage(of_version(promoted, 2))
    with pytest.raises(StorageError, match=r"the weights of entry 2 cannot be gone back to: `latte verify ROOT"):
        run(PromoteConfig(root=promoted, name="m", rollback=True))
    (healed,) = verify(promoted, repair=True).damages
    assert healed.done == "put back from runs/model/v2.0/checkpoints/step-00000006/ema.safetensors"
    assert run(PromoteConfig(root=promoted, name="m", rollback=True)).metrics["value"] == 2.0
    damage(storage.join(promoted, "runs/model/v2.0/checkpoints/step-00000006/ema.safetensors"))
    (healed,) = verify(promoted, repair=True).damages
    assert healed.done.startswith("put back from registry/m/versions/")
    assert not verify(promoted).damages


def test_what_nobody_has_any_more_is_left_to_a_person(promoted: str) -> None:
    uri = of_version(promoted, 2)
    damage(uri)
    for each in storage.list_uris(storage.join(promoted, "runs")):
        storage.delete(each)
    found = verify(promoted, repair=True)
    assert (found.left, found.damages[0].uri, found.damages[0].done) == (1, uri, "")
    assert storage.exists(uri)


@pytest.mark.parametrize("harm", ["gone", "flipped"])
def test_a_pointer_is_put_back_from_its_decision(promoted: str, harm: str) -> None:
    pointer = storage.join(promoted, "registry/m/current.json")
    before, _ = registry.read_current(promoted, "m")
    if harm == "gone":
        storage.delete(pointer)
    else:
        storage.write_bytes(pointer, storage.read_bytes(pointer).replace(b'"number": 3', b'"number": 2'))
    with pytest.raises((UserError, StorageError), match="latte verify"):
        registry.read_current(promoted, "m")
    (healed,) = verify(promoted, repair=True).damages
    assert (healed.uri, healed.done) == (pointer, "put back: entry 3, the newest that is known")
    assert registry.read_current(promoted, "m")[0] == before
    assert not verify(promoted).damages


def test_entries_of_the_history_and_manifests_of_versions_are_put_back(promoted: str) -> None:
    entries = registry.history(promoted, "m")
    uri = storage.join(promoted, "registry/m/history/00000001.json")
    damage(uri)
    version = entries[1].checkpoint
    kept = manifest.read(version)
    storage.write_bytes(version, b"{}")
    healed = verify(promoted, repair=True)
    assert healed.left == 0
    assert registry.history(promoted, "m") == entries
    assert manifest.read(version).shards == kept.shards
    assert not verify(promoted).damages


def test_documents_without_a_digest_are_looked_at_as_far_as_they_tell(tmp_path: Path) -> None:
    root = tmp_path.as_uri()
    make(root, "a", 1.0)
    uri = storage.join(root, "runs/model/a", manifest.NAME)
    value = json.loads(storage.read_bytes(uri))
    del value[documents.SEAL]
    storage.write_bytes(uri, json.dumps(value).encode())
    assert not verify(root).damages
    del value["fingerprint"]
    storage.write_bytes(uri, json.dumps(value).encode())
    assert verify(root).damages == (Damage(uri, "not what it is taken for: Field required", "latte train"),)


@pytest.mark.parametrize("harm", ["flipped", "gone"])
def test_the_log_of_a_finished_run_is_what_its_last_checkpoint_kept(tmp_path: Path, harm: str) -> None:
    root = tmp_path.as_uri()
    make(root, "a", 1.0)
    run_uri = storage.join(root, "runs/model/a")
    log = b'{"loss": 1.0, "step": 6}\n'
    for step, content in ((6, log), (3, log[:9])):
        folder = storage.join(run_uri, f"checkpoints/step-{step:08d}")
        kept = manifest.publish_shard(content, storage.join(folder, "log.jsonl"))
        record = {"step": step, "shards": {"log": kept.model_dump()}, "state": {}}
        storage.write_json(storage.join(folder, "checkpoint.json"), record, root=folder)
    metrics = storage.join(run_uri, "metrics.jsonl")
    storage.write_bytes(metrics, log)
    assert not verify(root).damages
    damage(metrics) if harm == "flipped" else storage.delete(metrics)
    (found,) = verify(root, repair=True).damages
    assert (found.uri, found.remedy) == (metrics, "latte train")
    assert found.done == "put back from runs/model/a/checkpoints/step-00000006/log.jsonl"
    assert storage.read_bytes(metrics) == log
    storage.write_bytes(metrics, log * 2)
    storage.delete(storage.join(run_uri, manifest.NAME))
    assert not verify(root).damages
