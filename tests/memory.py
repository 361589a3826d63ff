"""Memory of this process and of its decoders while a `with` block lasts."""

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_EVERY_S = 0.1


@dataclass
class Peaks:
    """Most memory seen: of this process, and of any one of its decoders."""

    own_bytes: int = 0
    decoder_bytes: int = 0

    def look(self) -> None:
        self.own_bytes = max(self.own_bytes, _held(Path("/proc/self"), "VmRSS"))
        for process in _decoders():
            with contextlib.suppress(OSError, TypeError):  # it has just ended
                self.decoder_bytes = max(self.decoder_bytes, _held(process, "VmHWM"))


@contextlib.contextmanager
def watched() -> Iterator[Peaks]:
    peaks, stop = Peaks(), threading.Event()
    for process in _decoders():  # what one of them held at the most for an earlier test is none of this one's
        with contextlib.suppress(OSError):
            (process / "clear_refs").write_text("5")

    def watch() -> None:
        while not stop.wait(_EVERY_S):
            peaks.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def _decoders() -> list[Path]:
    mark, found = f"latte.video.decoder_process\0{os.getpid()}\0", []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "cmdline").read_text():
                found.append(process)
    return found


def _held(process: Path, kind: str) -> int:
    return int(re.search(rf"{kind}:\s+([0-9]+)", (process / "status").read_text())[1]) * 1024
