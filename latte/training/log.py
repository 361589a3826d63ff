"""Log of a training run: `metrics.jsonl`, the same bytes however often it was stopped, and TensorBoard files."""

import contextlib
import json
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from latte import owners, storage, tracking
from latte.errors import NotThereError
from latte.training.resume import METRICS

T = TypeVar("T")


@contextlib.contextmanager
def _torch_hidden() -> Iterator[None]:
    """While it lasts, PyTorch counts as not installed.

    tensorboardX imports it where it finds it: a second runtime for the same device, or one that does not load.
    """
    found = sys.modules.get("torch")
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
        if found is not None:
            sys.modules["torch"] = found


with _torch_hidden():
    from tensorboardX import SummaryWriter


class TrainingLog:
    """The losses of a run, kept in memory and published with each checkpoint.

    `metrics.jsonl` has one line of JSON per logged step. Wall-clock figures are left out of it, so that a resumed run
    writes the same bytes as one that was never stopped; they are in the TensorBoard files under `tensorboard/`, one
    for each time the run was started.
    """

    def __init__(self, run_uri: str) -> None:
        self._run_uri = run_uri
        self._uri = storage.join(run_uri, METRICS)
        self._folder = owners.Folder("tensorboard")
        # Two that start in one second must not have the same name.
        suffix = f".{uuid.uuid4().hex[:8]}"
        self._writer = SummaryWriter(self._folder.name, flush_secs=3600, filename_suffix=suffix)
        self.lines: list[str] = []
        self._tracker = tracking.of_environment()

    @property
    def last(self) -> dict[str, Any]:
        """The newest line, empty at the start."""
        return json.loads(self.lines[-1]) if self.lines else {}

    def restore(self, kept: bytes | None, count: int) -> str:
        """Take the first `count` lines: those that a checkpoint kept, or of the published log where it kept none.

        Returns:
            What is wrong with the published log, or "".
        """
        try:
            published = storage.read_bytes(self._uri).decode(errors="replace").splitlines()[:count] if count else []
        except NotThereError:
            published = []
        self.lines = published if kept is None else kept.decode().splitlines()
        if published == self.lines and len(self.lines) == count:
            return ""
        what = f"{self._uri}: {len(published)} of the {count} lines up to the checkpoint were there"
        if kept is None:
            return f"{what}; the others are lost"
        return (
            f"{what if len(published) < count else f'{self._uri}: lines had changed'}; written anew from the checkpoint"
        )

    def add(self, metrics: dict[str, Any], rates: dict[str, float]) -> None:
        """Append one line; `metrics` has the key "step"; `rates` depend on the clock and go to TensorBoard alone."""
        self.lines.append(json.dumps(metrics, sort_keys=True))
        for name, value in {**metrics, **rates}.items():
            if name != "step":
                self._writer.add_scalar(f"train/{name}", value, metrics["step"])

    @property
    def content(self) -> bytes:
        """All lines, as they are stored."""
        return "".join(line + "\n" for line in self.lines).encode()

    def publish(self, put: storage.Put) -> None:
        """Write the whole log to object storage by `put`; MLflow gets what is new, where it is asked for."""
        put(self._uri, self.content)
        if self._tracker is not None:
            self._tracker.curve(self.lines)

    def publish_events(self) -> None:
        """Write the TensorBoard file of this start to object storage."""
        self._writer.flush()
        for path in sorted(Path(self._folder.name).glob("*tfevents*")):
            storage.upload(path, storage.join(self._run_uri, "tensorboard", path.name))


class Clock:
    """Times of the parts of a run. The first step, which compiles, is kept apart."""

    def __init__(self) -> None:
        self._started = self._compiled = self._last = time.monotonic()
        self._steps, self._waited_s = 0, 0.0

    def waiting(self, read: Iterator[T]) -> Iterator[T]:
        """The items of `read`; notes how long each kept the loop waiting."""
        while True:
            before = time.monotonic()
            try:
                item = next(read)
            except StopIteration:
                return
            if self._steps:
                self._waited_s += time.monotonic() - before
            yield item

    def step_done(self) -> None:
        """Note the end of a step."""
        self._last = time.monotonic()
        self._steps += 1
        if self._steps == 1:
            self._compiled = self._last

    def rates(self) -> dict[str, float]:
        """Steps per second after the first, seconds of the first, share of the time spent waiting for data."""
        if not self._steps:
            return {}
        first_step_s = self._compiled - self._started
        if self._steps == 1:
            return {"steps_per_s": round(1 / first_step_s, 5), "first_step_s": round(first_step_s, 3)}
        later_s = self._last - self._compiled
        return {
            "steps_per_s": round((self._steps - 1) / later_s, 5),
            "first_step_s": round(first_step_s, 3),
            "data_wait_share": round(self._waited_s / later_s, 4),
        }
