"""Processes by a variable of their environment, which children inherit, whoever their parent is by now."""

import contextlib
import os
from collections.abc import Iterable, Mapping

import psutil


def carrying(variables: Mapping[str, str]) -> list[int]:
    """Ids of the processes, but for this one, that have all of these in their environment."""
    found = []
    for process in psutil.process_iter():
        # One may end while it is looked at, or be another user's: then it is none of those.
        with contextlib.suppress(psutil.Error, OSError):
            if (
                process.pid != os.getpid()
                and variables.items() <= process.environ().items()
                and not _has_ended(process)
            ):
                found.append(process.pid)
    return found


def send(pids: Iterable[int], number: int) -> None:
    """Send a signal to those of these processes that are there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _has_ended(process: psutil.Process) -> bool:
    return bool(process.status() == psutil.STATUS_ZOMBIE)
