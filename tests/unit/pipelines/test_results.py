"""`latte-pipeline ls | show | get` find a run by its name, its folder or what it printed; here its root is a folder."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from latte import storage
from latte.storage import manifest
from pipelines import local
from pipelines.cli import cli
from tests.unit.inventory.test_inventory import clip_set
from tests.unit.steps import promotions


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs/demo and runs/older, as `latte-pipeline run` leaves them; their roots lie beside it."""
    for age, name in enumerate(("demo", "older")):
        root = (tmp_path / f"root of {name}").as_uri()
        promotions.make(root, name, 2.0)
        made = clip_set(root, f"{name}-set")
        storage.write_json(f"{made.uri}/contact-sheet.png", "a picture")
        folder = tmp_path / "home" / "runs" / name
        folder.mkdir(parents=True)
        storage.write_json(str(folder / local.PLACE), {"root": root, "own_store": False})
        os.utime(folder, (1e9 - age, 1e9 - age))
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def call(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def test_a_run_is_copied_into_its_folder_by_its_name(home: Path) -> None:
    done = call("get", "demo")
    assert done.exit_code == 0, done.output
    results = home / "runs" / "demo" / "results"
    assert len(list(results.glob("videos/demo-set/*/clip-*.mp4"))) == 2
    assert "1 contact sheet, 2 clips (MP4), 2 clips (lossless)" in done.output
    assert "0 of them new" in call("get", "runs/demo").output
    (copied,) = results.glob("videos/demo-set/*")
    assert manifest.read(copied, "video_set").uri == copied.as_uri()


def test_what_the_newest_run_made_is_meant_by_its_name_and_a_printed_uri_by_itself(home: Path, tmp_path: Path) -> None:
    assert call("get", "demo-set", "out", "--only", "*.mp4").exit_code == 0
    assert len([path for path in (home / "out").rglob("*") if path.suffix == ".mp4"]) == 2
    items = json.loads(call("ls", "--json", "older").output)
    uri = next(item["uri"] for item in items if item["name"] == "older-set")
    assert "older-set" in call("show", uri).output, "a run is found by the root that it wrote to"
    assert call("get", uri, "by-uri").exit_code == 0
    assert call("get", f"{uri}/manifest.json", str(tmp_path / "by-uri-2"), "--only", "*.mkv").exit_code == 0
    (home / "runs" / "older" / local.PLACE).unlink()
    assert call("get", uri, "by-store").exit_code == 0, "a URI names its root too"
    assert len(list((home / "by-store").glob("videos/older-set/*/clip-*.mkv"))) == 2
    root = str(tmp_path / "root of older")
    assert call("ls", "--root", root).output == call("ls", "--root", (tmp_path / "root of older").as_uri()).output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("get", "demo-sat"), "demo-sat: nothing of this name under file:"),
        (("get", "demo-sat"), "there are demo-set, "),
        (("ls", "dmo"), "dmo: no run of this name and no folder of one; runs/ has demo"),
        (("show", "x", "--run-dir", "runs"), "runs: not the folder of a run"),
        (("get", "x", "--run-dir", "runs/demo", "--root", "s3://b/x"), "--run-dir and --root: give one of them"),
        (("get", "x", "--root", "none"), "none: no such folder"),
        (("get", "demo", "runs/demo/root.json"), "root.json: File exists"),
    ],
)
def test_a_mistake_is_one_line(home: Path, words: tuple[str, ...], said: str) -> None:
    done = call(*words)
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert said in done.output


def test_without_any_run_the_way_on_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (("ls",), ("get", "trained"), ("show", "trained")):
        done = call(*words)
        assert done.exit_code == 2
        assert done.output == "error: no run in runs/; name its folder with --run-dir, or another store with --root\n"
