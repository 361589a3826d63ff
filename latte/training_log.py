"""What a training run tells: `metrics.jsonl`, the same bytes however often it was stopped, and TensorBoard files."""

import json
import tempfile
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from latte import storage


class TrainingLog:
    """The losses of a run, kept in memory and published with each checkpoint.

    `metrics.jsonl` has one line of JSON per logged step. Wall-clock figures are left out of it, so that a resumed run
    writes the same bytes as one that was never stopped; they are in the TensorBoard files under `tensorboard/`, one
    for each time the run was started.
    """

    def __init__(self, run_uri: str) -> None:
        self._run_uri = run_uri
        self._uri = storage.join(run_uri, "metrics.jsonl")
        self._folder = tempfile.TemporaryDirectory(prefix="latte-tensorboard-")
        self._writer = SummaryWriter(self._folder.name, flush_secs=3600)
        self.lines: list[str] = []

    @property
    def last(self) -> dict[str, Any]:
        """The newest line, empty at the start."""
        return json.loads(self.lines[-1]) if self.lines else {}

    def restore(self, count: int) -> None:
        """Take the first `count` lines of the published log."""
        self.lines = storage.read_bytes(self._uri).decode().splitlines()[:count] if count else []

    def add(self, metrics: dict[str, Any], steps_per_s: float) -> None:
        """Append one line; `metrics` has the key "step"."""
        self.lines.append(json.dumps(metrics, sort_keys=True))
        for name, value in {**metrics, "steps_per_s": steps_per_s}.items():
            if name != "step":
                self._writer.add_scalar(f"train/{name}", value, metrics["step"])

    def publish(self) -> None:
        """Write the whole log to object storage."""
        storage.write_bytes(self._uri, "".join(line + "\n" for line in self.lines).encode())
        self._writer.flush()
        for path in sorted(Path(self._folder.name).glob("*tfevents*")):
            storage.upload(path, storage.join(self._run_uri, "tensorboard", path.name))
