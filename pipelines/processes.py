"""No process of a run outlives it, even when the run itself is killed.

Every process of a run inherits one environment variable that names the run's folder. A small reaper, started beside the
run, waits for the run's end and then kills whatever still carries that name: KFP's shells, steps, decoders, the store.
The same goes for containers, which carry the name in a label. Linux only.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from latte import processes
from pipelines import containers

RUN_ENV = "LATTE_RUN_DIR"
# Docker may still be making a container for a run that has just been killed.
SETTLE_S = 1.0


def members(run_dir: Path) -> list[int]:
    """Process ids, other than this one, that carry the run's name in their environment."""
    return processes.carrying({RUN_ENV: str(run_dir)})


def end(run_dir: Path, grace_s: float, keep: frozenset[int] = frozenset()) -> None:
    """Ask the run's processes to end, and kill those that have not ended after `grace_s`."""
    deadline = time.monotonic() + grace_s
    if grace_s > 0:
        processes.send(set(members(run_dir)) - keep, signal.SIGTERM)
    while left := set(members(run_dir)) - keep:
        if time.monotonic() >= deadline:
            processes.send(left, signal.SIGKILL)
        time.sleep(0.05)


@contextlib.contextmanager
def tied_to_this_process(run_dir: Path, in_containers: bool = False) -> Iterator[None]:
    """While it lasts, processes and containers that are started belong to the run; none outlives this process."""
    _clear(run_dir, in_containers)  # what a killed reaper may have left
    reaper = subprocess.Popen(
        [sys.executable, "-m", "pipelines.processes", str(run_dir), str(os.getpid()), str(int(in_containers))],
        start_new_session=True,  # Ctrl-C in the terminal is for the run, not for its reaper
        stdin=subprocess.DEVNULL,
    )
    # Threads of the run read os.environ when they start processes; nobody reads it before.
    os.environ[RUN_ENV] = str(run_dir)
    try:
        yield
    finally:
        del os.environ[RUN_ENV]
        _clear(run_dir, in_containers)
        reaper.kill()
        reaper.wait()


def _clear(run_dir: Path, in_containers: bool) -> None:
    end(run_dir, grace_s=0)
    if in_containers:
        containers.end(run_dir, grace_s=0)


def _reap(run_dir: Path, pid: int, in_containers: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        select.select([handle], [], [])
    _clear(run_dir, in_containers)
    if in_containers:
        time.sleep(SETTLE_S)
        _clear(run_dir, in_containers)


if __name__ == "__main__":
    _reap(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1")
