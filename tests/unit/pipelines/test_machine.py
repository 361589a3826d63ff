"""`doctor --here`: what a run on this machine needs."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from pipelines import machine
from pipelines.cli import cli
from tests import video_files
from tests.e2e.runs import REPOSITORY

DEMO = REPOSITORY / "configs/demo/pipeline.yaml"


def told(*arguments: str) -> tuple[int, dict[str, str]]:
    done = CliRunner().invoke(cli, ["doctor", "--here", *arguments], catch_exceptions=False)
    lines: dict[str, str] = {}
    for line in done.stdout.splitlines():
        mark, _, rest = line.strip().partition("  ")
        what, _, text = rest.partition(": ")
        lines.setdefault(what, f"{mark} {text}")
    return done.exit_code, lines


def test_what_is_fine_is_said_with_its_numbers(tmp_path: Path) -> None:
    code, lines = told("--root", str(tmp_path / "root"))
    assert code == 0
    assert list(lines) == ["machine", "MindSpore", "temporary files", "runs", "image", "settings", "store"]
    assert lines["machine"].startswith("ok ")
    assert "computes on CPU" in lines["MindSpore"]
    assert lines["settings"] == "- not looked at: name them with -c"
    assert lines["store"] == f"ok {(tmp_path / 'root').as_uri()}: written, read and deleted"


def test_settings_and_their_dataset_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    text = DEMO.read_text().replace("videos: runs/demo/videos", f"videos: {tmp_path / 'videos'}")
    mine = tmp_path / "mine.yaml"
    mine.write_text(text)
    code, lines = told("-c", str(mine))
    assert code == 1
    assert lines["settings"].startswith(f"PROBLEM {mine}: encode.dataset.videos: ")
    assert lines["store"].startswith("ok ")
    for label in ("bikes", "bunny", "carphone"):
        (tmp_path / "videos" / label).mkdir(parents=True)
        for number in range(12):
            video_files.write(tmp_path / "videos" / label / f"{number}.mp4", video_files.moving(40, seed=number))
    code, lines = told("-c", str(mine))
    assert (code, lines["settings"]) == (0, f"ok {mine}: train_and_evaluate can start")


def test_a_full_disk_and_little_memory_are_told_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 20, total=1 << 30))
    code, lines = told()
    assert code == 1
    assert "free; set TMPDIR to a folder of another disk" in lines["temporary files"]
    assert "--run-dir" in lines["runs"]
    assert lines["machine"].startswith("PROBLEM ")
