"""Manifests handed on from task to task, and what a plan leaves to do for the tasks of a loop."""

from pathlib import Path
from typing import Any

import pytest

from components import runtime, stage, work
from components.work import Work
from latte import storage
from latte.places import Place
from latte.storage import manifest


def made(root: str, videos: int) -> manifest.Manifest:
    place = Place.under("video_set", "0123456789abcdef" * 4, root, "videos", "trained")
    return manifest.finish(place.manifest("trained", counts={"videos": videos}), root)


def times(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*.json") if "used" not in path.parts}


def test_what_is_handed_on_stays_what_it_was_and_is_written_once(tmp_path: Path) -> None:
    root = tmp_path.as_uri()
    small = made(root, 4)
    uri = runtime.handed_on("sample", root, small)
    before = times(tmp_path)
    assert runtime.handed_on("sample", root, small) == uri
    assert times(tmp_path) == before
    large = made(root, 8)  # another run has grown the set meanwhile
    assert manifest.read(small.uri) == large
    assert manifest.read(uri) == small
    assert runtime.handed_on("sample", root, large) != uri
    path = storage.local_path(uri)
    path.write_bytes(path.read_bytes()[:-9])
    assert runtime.handed_on("sample", root, small) == uri
    assert manifest.read(uri) == small, "a damaged copy is made anew"


def test_the_manifest_of_another_root_is_named_itself(tmp_path: Path) -> None:
    other = made((tmp_path / "other").as_uri(), 4)
    assert runtime.handed_on("checkpoint", (tmp_path / "oth").as_uri(), other) == other.file
    assert not list(tmp_path.rglob("handed-on"))


def left(root: str, **arguments: Any) -> str:
    wired = {"root": root, "name": "trained"}
    settings = {"num_videos": 4, "labels": [1, 2]}
    return stage._left(Work("sample trained", "sample", settings, wired, "", {"plan_uri": f"{root}/p", **arguments}))


def test_what_a_plan_leaves_to_do_is_found_by_its_uri_and_written_once(tmp_path: Path) -> None:
    root = tmp_path.as_uri()
    uri = left(root)
    before = times(tmp_path)
    assert left(root) == uri
    assert times(tmp_path) == before
    assert left(root, sections={"train": {}}) != uri
    found = work.read(uri)
    assert (found.step, found.settings["labels"], found.arguments["plan_uri"]) == ("sample", [1, 2], f"{root}/p")
    assert work.root_of(uri) == root


def test_a_task_whose_work_is_gone_ends_with_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    uri = f"{tmp_path.as_uri()}/launched/0123456789abcdef/0123456789abcdef/work.json"
    with pytest.raises(SystemExit):
        stage.part(f"0/2 {uri}")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: shards 1 of 2: {uri}")
