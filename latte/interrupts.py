"""Ctrl-C ends a command with one line and exit code 130, from its first imports on.

A command's module imports this one before all others. It does nothing where the program is another one.

MindSpore puts a handler of its own in force whenever it runs a graph: it sends SIGTERM, which nobody could tell from a
request to stop. So no thread of `latte` takes SIGINT as a signal: one waits for it and calls Python's handler.
"""

import _thread
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

EXIT_CODE = 130
_COMMANDS = ("latte", "latte-pipeline")
_MODULES = ("latte/cli.py", "pipelines/cli.py")
_ended = False


def end_by_exception() -> None:
    """From now on Ctrl-C ends this process by SystemExit, so that what was begun is cleared away; twice, at once.

    Not where whoever started the process wants it to be ignored.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _raise)


def came() -> bool:
    """Whether Ctrl-C has ended this process already: libraries in C++ turn the exception into one of their own."""
    return _ended


def _raise(_number: int, _frame: FrameType | None) -> None:
    global _ended
    _ended = True
    signal.signal(signal.SIGINT, _leave)
    _say()
    if getattr(getattr(sys.modules.get("mindspore"), "__spec__", None), "_initializing", False):
        os._exit(EXIT_CODE)  # half imported it aborts on an orderly way out
    sys.exit(EXIT_CODE)


def _leave(_number: int, _frame: FrameType | None) -> None:
    _say()
    os._exit(EXIT_CODE)


def _say() -> None:
    os.write(2, b"\ninterrupted; run the same command again to go on\n")


def _wait_for_interrupts() -> None:
    while True:
        signal.sigwait({signal.SIGINT})
        _thread.interrupt_main(signal.SIGINT)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)  # wakes it where it waits


# `python -m` names the module's file.
_program = Path(sys.argv[0]) if sys.argv else Path()
_is_command = _program.name in _COMMANDS or str(_program).endswith(_MODULES)
if _is_command and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, _leave)  # nothing is begun while modules are imported
    if _program.name == "latte" or str(_program).endswith("latte/cli.py"):
        signal.signal(signal.SIGURG, lambda _number, _frame: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # threads that libraries start take this over
        threading.Thread(target=_wait_for_interrupts, name="interrupts", daemon=True).start()
