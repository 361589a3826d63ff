"""Nothing that a run started outlives it: real processes, really killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import processes

# A run that starts a shell that starts a child in a session of its own, as kfp.local and msrun do.
RUN = """
import subprocess, sys, time
from pathlib import Path
from pipelines import processes
with processes.tied_to_this_process(Path(sys.argv[1])):
    subprocess.Popen(["sh", "-c", "sleep 600 & wait"])
    subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"],
                     start_new_session=True)
    while len(processes.members(Path(sys.argv[1]))) < 3:
        time.sleep(0.01)
    print("ready", flush=True)
    if sys.argv[2] == "wait":
        time.sleep(600)
"""


def start(folder: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", RUN, str(folder), mode], stdout=subprocess.PIPE, text=True)


def gone(folder: Path, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not processes.members(folder):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    run = start(tmp_path, "wait")
    assert run.stdout.readline() == "ready\n"
    assert len(processes.members(tmp_path)) >= 3
    run.send_signal(number)
    run.wait(10)
    assert gone(tmp_path)


def test_a_run_that_ends_takes_its_processes_along(tmp_path: Path) -> None:
    run = start(tmp_path, "end")
    assert run.wait(20) == 0
    assert not processes.members(tmp_path)


def test_another_run_is_left_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    runs = [start(first, "wait"), start(second, "wait")]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    runs[0].kill()
    runs[0].wait()
    assert gone(first)
    assert len(processes.members(second)) >= 3
    runs[1].kill()
    runs[1].wait()
    assert gone(second)
