"""`make` with a Python that MindSpore has no wheels for: one line, exit code 2, nothing installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make setup` reads, in a folder of its own."""
    (tmp_path / "latte").mkdir()
    shutil.copy(REPOSITORY / "latte" / "__init__.py", tmp_path / "latte")
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copytree(REPOSITORY / "requirements", tmp_path / "requirements")
    return tmp_path


def python_of_version(path: Path, version: str) -> Path:
    """A program that answers as that Python when it is asked for its version, and fails at anything else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec echo {version}\ntouch {path.parent}/was-started\nexit 1\n')
    path.chmod(0o755)
    return path


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-C", str(checkout), *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("target", [(), ("setup",), ("demo",), ("test",), ("lint",)], ids=str)
@pytest.mark.parametrize("version", ["3.12", "3.10", "3.110"])
def test_another_python_is_refused(checkout: Path, target: tuple[str, ...], version: str) -> None:
    other = python_of_version(checkout / "bin" / "python", version)
    done = make(checkout, f"PYTHON={other}", *target)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"{other} is Python {version}; MindSpore needs Python 3.11: make PYTHON=python3.11" in line
    assert not (checkout / ".venv").exists()
    assert not (checkout / "bin" / "was-started").exists()


def test_a_python_that_is_not_there_is_refused(checkout: Path) -> None:
    done = make(checkout, "PYTHON=no-such-python", "demo")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no-such-python does not run" in line


@pytest.mark.parametrize("complete", [False, True])
def test_an_environment_of_another_python_is_refused(checkout: Path, complete: bool) -> None:
    python_of_version(checkout / ".venv" / "bin" / "python", "3.12")
    if complete:
        (checkout / ".venv" / ".run").touch()
    done = make(checkout, f"PYTHON={sys.executable}", "setup")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert ".venv was made with Python 3.12; MindSpore needs Python 3.11: rm -r .venv" in line
    assert not (checkout / ".venv" / "bin" / "was-started").exists()


def test_the_right_python_is_taken(checkout: Path) -> None:
    done = make(checkout, f"PYTHON={sys.executable}", "--dry-run", "setup")
    assert done.returncode == 0, done.stderr
    assert f"{sys.executable} -m venv .venv" in done.stdout
