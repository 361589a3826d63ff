"""Ctrl-C ends a command with one line and exit code 130, from its first imports on.

A command's module imports this one before all others. It does nothing where the program is another one.
"""

import os
import signal
import sys
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
    sys.exit(EXIT_CODE)


def _leave(_number: int, _frame: FrameType | None) -> None:
    _say()
    os._exit(EXIT_CODE)


def _say() -> None:
    os.write(2, b"\ninterrupted; run the same command again to go on\n")


# `python -m` names the module's file.
_program = Path(sys.argv[0]) if sys.argv else Path()
_is_command = _program.name in _COMMANDS or str(_program).endswith(_MODULES)
if _is_command and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, _leave)  # nothing is begun while modules are imported
