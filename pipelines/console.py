"""Display of a run: one line a step, the newest progress of what is running, and a table at the end."""

import io
import json
import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from latte.terminal import shown
from pipelines.step_log import plain

# tqdm's lines: "encode:  40%|####      | 96/240 [00:04<00:06, 23.1videos/s]"
_PROGRESS = re.compile(r"\d+%\|.*\[.*\]")


@dataclass
class RunLog(io.TextIOBase):
    """Stands in for standard output while KFP runs: everything goes to a log file, progress to the terminal.

    KFP prints from one thread for each parallel task, in pieces of lines: pieces are put together thread by thread.
    """

    log: TextIO
    terminal: TextIO | io.TextIOBase
    _pieces: dict[int, str] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock)
    _shown_width: int = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Take a piece of output."""
        with self._lock:
            whole = self._pieces.pop(threading.get_ident(), "") + text
            *lines, rest = whole.split("\n")
            if rest:
                self._pieces[threading.get_ident()] = rest
            for line in lines:
                self._take(line.rstrip())
        return len(text)

    def say(self, line: str) -> None:
        """Print a line that stays, above the progress."""
        with self._lock:
            self._clear()
            _write_line(self.terminal, shown(line))

    def _take(self, line: str) -> None:
        # What a progress bar overwrites is left as it is written.
        _write_line(self.log, "\r".join(map(plain, line.split("\r"))))
        if not _PROGRESS.search(line):
            return
        if self.terminal.isatty():
            self._clear()
            text = shown(line.strip())[:110]
            self.terminal.write(text)
            self.terminal.flush()
            self._shown_width = len(text)
        else:
            _write_line(self.terminal, shown(line.strip()))

    def _clear(self) -> None:
        if self._shown_width:
            self.terminal.write("\r" + " " * self._shown_width + "\r")
            self._shown_width = 0


class EventWatcher(threading.Thread):
    """Follows the run's event file and says when a task starts and ends."""

    def __init__(self, path: Path, log: RunLog) -> None:
        super().__init__(name="watch-events", daemon=True)
        self._path, self._log, self._done = path, log, threading.Event()
        self.events: list[dict[str, Any]] = []

    def run(self) -> None:
        """Read until `stop`."""
        while not self._done.wait(0.2):
            self._read()

    def stop(self) -> None:
        """Read what is left and end."""
        self._done.set()
        self.join()
        self._read()

    def _read(self) -> None:
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines()
        for line in lines[len(self.events) :]:
            event = json.loads(line)
            self.events.append(event)
            if event["event"] == "started":
                self._log.say(f"{time.strftime('%H:%M:%S')}  {event['task']} …")
            elif event["event"] == "note":
                self._log.say(f"          {event['task']}: {event['message']}")
            elif event["event"] == "finished":
                self._log.say(f"{time.strftime('%H:%M:%S')}  {event['task']}: {_facts(event['summary'])}")


def _write_line(file: TextIO | io.TextIOBase, line: str) -> None:
    # Not print(): kfp.local replaces it while a task runs, by one that prints to standard output as well.
    file.write(line + "\n")
    file.flush()


def time_table(events: Sequence[dict[str, Any]]) -> Table:
    """Seconds per step: those in which at least one task of the step was at work, waiting for other steps left out."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        if event["event"] == "finished":
            step = event["task"].split(":")[0]
            spans.setdefault(step, []).append((event["time"] - event["seconds"], event["time"]))
    table = Table("step", "seconds")
    table.columns[1].justify = "right"
    for step, tasks in spans.items():
        table.add_row(step, f"{_covered_s(tasks):.1f}")
    return table


def _covered_s(spans: list[tuple[float, float]]) -> float:
    """Length of the union of the spans."""
    covered, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered


def show(table: Table) -> None:
    """Print a table to standard output."""
    Console(file=sys.stdout).print(table)


def _facts(summary: dict[str, Any]) -> str:
    skip = {"kind", "name", "uri", "fingerprint", "bytes", "shards", "metrics_uri"}
    facts = [f"{key} {_number(value)}" for key, value in summary.items() if key not in skip and value not in ("", None)]
    return ", ".join(facts[:6]) or "done"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
