"""Ctrl-C gives exit code 130 and one line, whatever a command is doing, from its first imports on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latte import storage
from latte.steps import STEPS
from tests import small_latents

BIN = Path(sys.executable).parent
COMMANDS = [
    *(["latte", name, "root=/nowhere"] for name, step in STEPS.items() if step.help and name != "convert"),
    ["latte", "convert", "--kind", "vae", "--source", "none", "--target", "none.ckpt"],
    ["latte", "ls", "/nowhere"],
    ["latte", "--help"],
    ["latte-pipeline", "run", "-c", "none.yaml"],
    ["latte-pipeline", "check", "-c", "none.yaml"],
    ["latte-pipeline", "compile", "--output", "nowhere"],
    ["latte-pipeline", "status", "some-run"],
]


def interrupt_at(command: list[str], library: str, folder: Path) -> tuple[int, str]:
    """Send SIGINT as soon as a library is loaded into the process; its exit code and what it said."""
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while process.poll() is None and library not in maps.read_text():
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate()
    return process.returncode, said


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_while_a_command_starts(command: list[str], tmp_path: Path) -> None:
    code, said = interrupt_at([str(BIN / command[0]), *command[1:]], "_pydantic_core", tmp_path)
    assert code == 130, said
    assert said.split() == ["interrupted;", "run", "the", "same", "command", "again", "to", "go", "on"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["latte.cli", "pipelines.cli"])
def test_while_a_module_is_started_as_a_command(module: str, tmp_path: Path) -> None:
    code, said = interrupt_at([sys.executable, "-m", module, "--help"], "_pydantic_core", tmp_path)
    assert code == 130, said
    assert "Traceback" not in said


def test_while_a_step_loads_mindspore(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    latents = small_latents.once(tmp_path_factory)
    settings = ["name=x", f"latents={latents}", "model={patch_size: 2, hidden_size: 32, depth: 2, num_heads: 2}"]
    command = [str(BIN / "latte"), "train", f"root={tmp_path}/root", *settings, "frame_stride=1"]
    code, said = interrupt_at(command, "libmindspore", tmp_path)
    assert code == 130, said
    assert "interrupted; run the same command again to go on" in said
    assert "Traceback" not in said
    assert storage.list_uris((tmp_path / "root").as_uri()) == []


def test_where_it_is_to_be_ignored_it_is(tmp_path: Path) -> None:
    command = f"trap '' INT; exec {BIN / 'latte'} --version"
    code, said = interrupt_at(["sh", "-c", command], "_pydantic_core", tmp_path)
    assert code == 0, said
