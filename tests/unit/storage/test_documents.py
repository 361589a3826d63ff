"""Small JSON carries a digest of itself: a flipped bit is noticed wherever it lies, and what is older is still read."""

import json
from pathlib import Path

import pytest

from latte import storage
from latte.errors import DamagedError, UserError
from latte.storage import documents, manifest
from tests.fault_proxy import flipped


def score(root: str) -> manifest.Manifest:
    return manifest.finish(
        manifest.Manifest(
            kind="score", name="s", uri=storage.join(root, "scores/s/1"), fingerprint="f",
            shards=[manifest.publish_shard(b"x" * 9, storage.join(root, "scores/s/1/a.safetensors"))],
            config={"scaling_factor": 0.18215, "num_frames": 16, "videos": storage.join(root, "videos/v/1")},
            metrics={"fvd": 567.8},
        ),
        root,
    )  # fmt: skip


def test_no_flipped_bit_of_a_manifest_is_read_as_another_value(tmp_path: Path) -> None:
    made = score(tmp_path.as_uri())
    path = storage.local_path(made.file)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in (0, 1, 4):
            changed = bytearray(whole)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            try:
                read = manifest.read(made.file)
            except (DamagedError, UserError):
                continue
            # The same values laid out otherwise are no damage, nor is how long it took.
            assert read.model_copy(update={"seconds": made.seconds}) == made, (at, bit)
    path.write_bytes(whole.replace(b"567.8", b"167.8"))
    with pytest.raises(DamagedError, match=r"damaged: its content does not have the SHA-256 that it carries; .*verify"):
        manifest.read(made.file)
    path.write_bytes(whole)
    assert manifest.read(made.file) == made


def test_documents_of_versions_before_are_read(tmp_path: Path) -> None:
    made = score(tmp_path.as_uri())
    path = storage.local_path(made.file)
    value = json.loads(path.read_bytes())
    del value[documents.SEAL]
    path.write_text(json.dumps(value))
    assert manifest.read(made.file) == made == manifest.find(made.uri, "score")


def test_the_digest_is_of_what_is_stored_so_that_a_root_can_move(tmp_path: Path) -> None:
    made = score((tmp_path / "a").as_uri())
    (tmp_path / "a").rename(tmp_path / "b")
    moved = manifest.read(tmp_path / "b/scores/s/1")
    assert moved.config["videos"] == (tmp_path / "b/videos/v/1").as_uri()
    assert moved.fingerprint == made.fingerprint


def test_the_same_work_done_twice_has_the_same_digest_however_long_it_took() -> None:
    quick, slow = (documents.encode("file:///a.json", {"seconds": s, "b": {2: 1.0, 10: None}}) for s in (1.5, 20))
    assert json.loads(quick)[documents.SEAL] == json.loads(slow)[documents.SEAL]
    assert documents.decode(slow, "file:///a.json") == {"seconds": 20, "b": {"2": 1.0, "10": None}}


@pytest.mark.parametrize("damage", [lambda data: flipped(data, data.index(b"567.8")), lambda data: data[:-20]])
def test_a_manifest_or_record_that_cannot_be_read_counts_as_not_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage
) -> None:
    made = score(tmp_path.as_uri())
    path = storage.local_path(made.file)
    path.write_bytes(damage(path.read_bytes()))
    assert manifest.find(made.uri, "score") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(made.file)
    assert line.endswith("it counts as not done and is made again")
    uri = made.shards[0].uri
    record = storage.local_path(uri + manifest.RECORD_SUFFIX)
    record.write_bytes(record.read_bytes().replace(b'"bytes": 9', b'"bytes": 8'))
    assert manifest.read_record(uri) is None
    assert manifest.read_records(made.uri) == []
    assert "it counts as not done" in capsys.readouterr().err
    assert manifest.publish_shard(b"x" * 9, uri) == made.shards[0] == manifest.published(uri)


def test_a_manifest_of_another_version_is_not_taken_for_damaged(tmp_path: Path) -> None:
    made = score(tmp_path.as_uri())
    storage.write_json(made.file, {**made.model_dump(), "newer": 1}, tmp_path.as_uri())
    with pytest.raises(UserError, match="not a manifest: Extra inputs"):
        manifest.find(made.uri, "score")
