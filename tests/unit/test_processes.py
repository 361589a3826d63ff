"""Processes that carry a variable: real ones, in a session of their own, killed and not yet waited for."""

import os
import signal
import subprocess
import time
from pathlib import Path

from latte import processes


def test_processes_are_found_by_all_of_their_variables_and_signalled(tmp_path: Path) -> None:
    mark = {"LATTE_TEST_MARK": f"{tmp_path}/ü = a\nb"}
    environment = {**os.environ, **mark, "LATTE_TEST_ROLE": "worker"}
    started = [
        subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True),
        subprocess.Popen(["sleep", "600"], env={**environment, "LATTE_TEST_ROLE": "other"}),
    ]
    pids = {process.pid for process in started}
    deadline = time.monotonic() + 10
    while set(processes.carrying(mark)) != pids and time.monotonic() < deadline:
        time.sleep(0.01)  # a fork has its parent's environment until it is the program
    assert processes.carrying({**mark, "LATTE_TEST_ROLE": "worker"}) == [started[0].pid]
    assert not processes.carrying({"LATTE_TEST_MARK": str(tmp_path)})
    processes.send(pids, signal.SIGKILL)
    while processes.carrying(mark) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not processes.carrying(mark), "what has ended counts no more, though nobody has waited for it"
    assert [process.wait() for process in started] == [-signal.SIGKILL] * 2
    processes.send(pids, signal.SIGKILL)


def test_this_process_is_not_among_them() -> None:
    name = next(iter(os.environ))
    assert os.getpid() not in processes.carrying({name: os.environ[name]})
