"""SIGTERM and Ctrl-C, handled for a while; the end of another process, as if it were a signal to this one."""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def handled_by(handler: Callable[[int, object], None]) -> Iterator[None]:
    """While it lasts, SIGTERM and SIGINT call `handler(number, frame)` instead of what they would do.

    Python handles signals in the main thread only: in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in _STOPPING}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def end_with(pid: int) -> None:
    """From now on this process ends, with exit code 1, when another one does, even if that is killed."""
    try:
        other = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)

    def wait() -> None:
        select.select([other], [], [])
        os._exit(1)

    threading.Thread(target=wait, name="end-with", daemon=True).start()


def ignore() -> None:
    """Let no further SIGTERM or SIGINT disturb the way out; the end of `handled_by` puts back what was there before."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
