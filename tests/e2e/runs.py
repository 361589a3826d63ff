"""Starting `latte-pipeline run` as a user does, watching it, and looking at what it left."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines import processes

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Whatever a run imports, PyTorch is not among it: the one that comes first here does not load.
BROKEN = Path(__file__).parent / "broken"

# The demo's pipeline with the smallest sizes that still go through every step.
TINY = {
    "pretrained": {},
    "train.model.hidden_size": 32,
    "train.model.depth": 2,
    "train.model.num_heads": 2,
    "train.steps": 6,
    "train.batch_size": 2,
    "train.checkpoint_every": 2,
    "sample.num_videos": 4,
    "sample.num_sampling_steps": 4,
    "score.protocol.num_clips": 4,
}


@dataclass
class Run:
    """One `latte-pipeline run` in the background."""

    run_dir: Path
    process: subprocess.Popen[str]
    output: str = ""
    events: list[dict] = field(default_factory=list)

    def wait_for(self, *tasks: str, within_s: float = 300.0) -> str:
        """Wait until one of these tasks has started and tell which; fail with the output of a run that ended before."""
        deadline = time.monotonic() + within_s
        while True:
            for event in self.read_events():
                for task in tasks:
                    if event["event"] == "started" and event["task"].startswith(task):
                        return task
            assert self.process.poll() is None, f"ended before {tasks}: {self.process.communicate()[0]}"
            assert time.monotonic() < deadline, f"{tasks} did not start; {self.read_events()}"
            time.sleep(0.02)

    def read_events(self) -> list[dict]:
        """What the tasks have told so far."""
        path = self.run_dir / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def finish(self, within_s: float = 420.0) -> int:
        """Wait for the end; the exit code."""
        self.output = self.process.communicate(timeout=within_s)[0]
        return self.process.returncode

    def gone(self, within_s: float = 15.0) -> bool:
        """Whether all of its processes have ended."""
        deadline = time.monotonic() + within_s
        while processes.members(self.run_dir):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def start(
    run_dir: Path,
    *arguments: str,
    settings: dict | None = None,
    env: dict | None = None,
    config: str = "configs/demo/pipeline.yaml",
    program: Sequence[str | Path] = (BIN / "latte-pipeline",),
) -> Run:
    """Start `latte-pipeline run` on the demo's settings with overrides, beside a PyTorch that does not load."""
    overrides = [f"{key}={json.dumps(value)}" for key, value in (settings or {}).items()]
    command = [*program, "run", "-c", config, "--run-dir", run_dir]
    path = os.pathsep.join([str(BROKEN), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [str(part) for part in (*command, *arguments, *overrides)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path, "TORCH_IMPORTS": str(torch_imports(run_dir)), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Run(run_dir, process)


def torch_imports(run_dir: Path) -> Path:
    """The file that names the processes of a run that tried to import PyTorch; there is none where none tried."""
    return run_dir / "torch-imports.txt"


def error_lines(output: str) -> list[str]:
    """The lines that tell what went wrong; a traceback's lines are none of them."""
    return [line for line in output.splitlines() if line.startswith("error: ")]
