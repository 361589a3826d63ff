"""Programs that run beside the tests: each with a log of its own, none outlives the tests."""

import ctypes
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class Daemons:
    """Those of one cluster, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[list[str], dict[str, str] | None]] = {}

    def start(self, name: str, command: Sequence[Any], environment: Mapping[str, str] | None = None) -> None:
        """Start it; `<name>.log` has what it says."""
        self._commands[name] = [str(part) for part in command], dict(environment) if environment is not None else None
        self.again(name)

    def again(self, name: str) -> None:
        """Start it as it was started before."""
        command, environment = self._commands[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests, which end it in order
                preexec_fn=_ends_with_us,
            )

    def stop(self, name: str, number: int = signal.SIGTERM, within_s: float = 20.0) -> None:
        """End it; SIGKILL where it does not leave in time."""
        process = self.running.pop(name, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End all, the last that was started first; there is nothing that they would have to save."""
        for name in reversed(list(self.running)):
            self.stop(name, within_s=2)

    def wait(self, name: str, ready: Callable[[], Any], within_s: float = 60.0) -> Any:
        """What `ready` returns once that is true; an error with the end of the log where it never is."""
        deadline = time.monotonic() + within_s
        while not (found := ready()):
            code = self.running[name].poll()
            if code is not None or time.monotonic() > deadline:
                state = f"ended with code {code}" if code is not None else f"not ready after {within_s:.0f} s"
                end = "\n".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-15:])
                raise AssertionError(f"{name} {state}:\n{end}")
            time.sleep(0.1)
        return found


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _ends_with_us() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
