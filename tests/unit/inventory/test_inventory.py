"""What lies under a root, named by a person: listed, found by name, shown, copied."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from latte import inventory, storage
from latte.cli import cli
from latte.errors import StorageError, UserError
from latte.inventory import copying
from latte.steps import promote
from latte.storage import manifest, registry
from tests.unit.steps import promotions


def clip_set(root: str, name: str, count: int = 2) -> manifest.Manifest:
    """A set of `count` clips that are only names, as the sample step lays them out."""
    uri = storage.join(root, "videos", name, manifest.fingerprint(name)[:16])
    shards = [
        manifest.publish_shard(f"{name} {index} {ending}".encode(), storage.join(uri, f"clip-{index:05d}.{ending}"))
        for index in range(count)
        for ending in ("mkv", "mp4")
    ]
    checkpoint = storage.join(root, "runs", "model", "first", "manifest.json")
    config = {"checkpoint": checkpoint, "step": 6}
    return manifest.finish(
        manifest.Manifest(
            kind="video_set", name=name, uri=uri, fingerprint=manifest.fingerprint(name), shards=shards,
            counts={"videos": count}, config=config,
        ),
        root,
    )  # fmt: skip


@pytest.fixture
def filled(registry_root: str) -> str:
    """A root with a run, its set and score, promoted, and two sets of other names."""
    first = promotions.make(registry_root, "first", 2.0)
    settings = {"checkpoint": first.checkpoint, "score": first.score}
    promote.run(promote.PromoteConfig(root=registry_root, name="model", **settings))
    for name in ("trained", "untrained"):
        clip_set(registry_root, name)
    return registry_root


def test_a_root_is_listed_kind_by_kind(filled: str) -> None:
    items = inventory.listing(filled)
    assert [(item.kind, item.name) for item in items if item.kind != "set"] == [
        ("run", "model"), ("score", "model"), ("promoted", "model")
    ]  # fmt: skip
    trained = next(item for item in items if item.name == "trained")
    assert trained.made_by == "2 clips by runs/model/first, step 6"
    assert (trained.finished, trained.objects) == (True, 9)
    assert trained.bytes == sum(info.bytes for info in storage.list_objects(trained.uri).values())
    assert next(item for item in items if item.kind == "score").made_by == "fvd 2 of videos/model/first"
    assert items[-1].made_by == "entry 1: step 6, fvd 2"
    storage.delete(storage.join(trained.uri, "manifest.json"))
    unfinished = next(item for item in inventory.listing(filled) if item.name == "trained")
    assert (unfinished.finished, unfinished.made_by) == (False, "not finished")


def test_a_name_means_the_newest_of_each_kind_and_a_slip_is_told_names_like_it(filled: str) -> None:
    items = inventory.listing(filled)
    assert [item.kind for item in inventory.find(items, "model", filled)] == ["run", "set", "score", "promoted"]
    (trained,) = inventory.find(items, "videos/trained", filled)
    assert inventory.find(items, trained.place, filled) == [trained]
    assert inventory.find(items, trained.place[:-8], filled) == [trained]
    with pytest.raises(UserError, match=r"^traned: nothing of this name under .*; there are trained, "):
        inventory.find(items, "traned", filled)


def test_what_is_no_root_is_said_in_one_line(filled: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    above = filled.rpartition("/")[0]
    for root, words in (
        (str(tmp_path / "none"), "no such folder"),
        (str(tmp_path / "empty"), "nothing is there yet"),
        (str(tmp_path / "other"), "not a root: none of runs, videos, "),
        (f"{filled}/videos", "a part of one"),
        (f"{filled}/videos/trained", "a part of one"),
        ("s3:/slip", "expected s3://bucket/prefix"),
    ):
        done = CliRunner().invoke(cli, ["ls", root])
        assert done.exit_code == 2, root
        assert words in done.output, root
        assert done.output.count("\n") == 1
    if storage.path(filled) is not None:
        with pytest.raises(UserError, match=r"not a root, but .*/root looks like one$"):
            inventory.listing(above)


def test_the_commands_print_tables_and_json(filled: str) -> None:
    listed = CliRunner().invoke(cli, ["ls", filled])
    assert listed.exit_code == 0, listed.output
    assert "2 clips by runs/model/first, step 6" in listed.output
    items = json.loads(CliRunner().invoke(cli, ["ls", "--json", filled]).output)
    uri = next(item["uri"] for item in items if item["name"] == "trained")
    for place in (uri, uri + "/manifest.json", *([] if storage.path(uri) is None else [str(storage.local_path(uri))])):
        assert "clip-00000.mkv" in CliRunner().invoke(cli, ["show", place]).output
    assert json.loads(CliRunner().invoke(cli, ["show", "--json", uri]).output)["counts"] == {"videos": 2}
    shown = json.loads(CliRunner().invoke(cli, ["show", "--json", f"{filled}/registry/model"]).output)
    assert [entry["number"] for entry in shown] == [1]
    assert CliRunner().invoke(cli, ["show", filled]).output == listed.output


def test_a_copy_is_checked_goes_on_and_is_a_root_itself(filled: str, tmp_path: Path) -> None:
    items = inventory.find(inventory.listing(filled), "trained", filled)
    folder = tmp_path / "copy"
    places = [item.place for item in items]
    done = copying.copy(filled, places, folder)
    assert (len(done.files), done.fetched, done.checked) == (9, 9, 4)
    assert not list(folder.rglob(".tmp-*"))
    copied = manifest.find((folder / places[0]).as_uri(), "video_set")
    assert copied is not None
    assert [item.made_by for item in inventory.listing(str(folder))] == ["2 clips by runs/model/first, step 6"]
    assert copying.copy(filled, places, folder).fetched == 0
    (folder / places[0] / "clip-00000.mkv").unlink()
    # A copy that was killed in the middle of a file has left the beginning of it.
    uri = storage.join(filled, places[0], "clip-00000.mkv")
    info = storage.stat(uri)
    part = storage.sha256_bytes(f"{uri} {info.etag} {info.bytes}".encode())[:16]
    (folder / places[0] / f".tmp-{part}").write_bytes(storage.read_bytes(uri, 0, 5))
    assert copying.copy(filled, places, folder).fetched == 1
    assert (folder / places[0] / "clip-00000.mkv").read_bytes() == storage.read_bytes(uri)
    assert copying.copy(filled, places, tmp_path / "few", "*.mp4").fetched == 2
    with pytest.raises(UserError, match=r"^\*\.gif: no file of this name"):
        copying.copy(filled, places, folder, "*.gif")


def test_a_set_that_has_grown_is_copied_again_and_foreign_files_stay(filled: str, tmp_path: Path) -> None:
    place = inventory.find(inventory.listing(filled), "trained", filled)[0].place
    copying.copy(filled, [place], tmp_path)
    clip_set(filled, "trained", 3)
    assert copying.copy(filled, [place], tmp_path).fetched == 5, "two clips, their records, the manifest"
    mine = tmp_path / place / "clip-00001.mp4"
    mine.write_bytes(b"edited")
    clip_set(filled, "trained", 4)
    with pytest.raises(UserError, match=r"clip-00001\.mp4: not what this command wrote; move it away"):
        copying.copy(filled, [place], tmp_path)
    assert mine.read_bytes() == b"edited"
    assert not (tmp_path / place / "clip-00003.mkv").exists(), "told before the first file was copied"


def test_a_damaged_object_is_not_copied(filled: str, tmp_path: Path) -> None:
    item = inventory.find(inventory.listing(filled), "trained", filled)[0]
    uri = storage.join(item.uri, "clip-00000.mkv")
    storage.write_bytes(uri, storage.read_bytes(uri)[:-1] + b"X")
    with pytest.raises(StorageError, match=r"clip-00000\.mkv: damaged"):
        copying.copy(filled, [item.place], tmp_path)
    assert not (tmp_path / item.place / "clip-00000.mkv").exists()


def test_a_folder_that_cannot_be_written_is_a_user_error(filled: str, tmp_path: Path) -> None:
    place = inventory.find(inventory.listing(filled), "trained", filled)[0].place
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/below: Not a directory$"):
        copying.copy(filled, [place], tmp_path / "file" / "below")
    if os.getuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UserError, match="Permission denied"):
            copying.copy(filled, [place], tmp_path / "closed")


def test_the_registry_moves_with_its_root(filled: str, tmp_path: Path) -> None:
    for uri in storage.list_uris(filled):
        storage.write_bytes(storage.join(tmp_path.as_uri(), uri.removeprefix(filled + "/")), storage.read_bytes(uri))
    current, _ = registry.read_current(tmp_path.as_uri(), "model")
    assert current is not None
    assert all(uri.startswith(tmp_path.as_uri()) for uri in (current.checkpoint, current.score, current.videos))
    assert manifest.find(current.checkpoint.removesuffix("/manifest.json"), "checkpoint") is not None
