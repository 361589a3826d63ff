"""A step that launches a Volcano Job and waits for it, in a thread or as a process of its own."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from components.placement import LAUNCH_ENV, Launch, Pod, Volcano
from components.volcano import launcher, worker
from components.work import Work
from latte.storage import manifest
from tests.e2e.runs import REPOSITORY

LAUNCH = Launch(image="latte-pipelines:0.1.0", pod=Pod(deadline_s=3600), volcano=Volcano())
# A step that takes no time, as a component starts it.
_STEP = """
from components.runtime import run_step
run_step("promoted", "promoted", {}, {"root": ROOT, "name": "m"}, function="look_up")
"""


class Waiting:
    """A launching step in a thread of its own."""

    def __init__(self, work: Work, launch: Launch = LAUNCH) -> None:
        self.result: manifest.Manifest | BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work, launch), daemon=True)
        self._thread.start()

    def _run(self, work: Work, launch: Launch) -> None:
        try:
            self.result = launcher.run(work, launch)
        except BaseException as error:
            self.result = error

    def end(self, within_s: float = 30.0) -> Any:
        """What it returned or raised."""
        self._thread.join(within_s)
        assert not self._thread.is_alive()
        return self.result


def start_step(
    root: str, environment: Mapping[str, str], launch: Launch = LAUNCH, code: str = _STEP
) -> "subprocess.Popen[str]":
    """The same as a process, with a pipe to its standard input; in the code ROOT stands for the root."""
    given = {LAUNCH_ENV: launch.model_dump_json(), "PATH": "/usr/bin", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code.replace("ROOT", repr(root))]
    variables, pipe = {**environment, **given}, subprocess.PIPE
    return subprocess.Popen(command, env=variables, stdin=pipe, stderr=pipe, text=True)


def promoted(folder: Path) -> Work:
    """Work that takes no time."""
    return Work("promoted", "promoted", {}, {"root": (folder / "root").as_uri(), "name": "m"}, "look_up")


def done_by_hand(job: Mapping[str, Any], work: Work) -> manifest.Manifest:
    """What the Job's only pod would do."""
    made = work.run()
    command = job["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["command"]
    manifest.write(made, worker.result_uri(command[-1].rsplit("/", 1)[0], 0))
    return made


def until(there: Callable[[], Any], within_s: float = 15.0) -> Any:
    """What it returns once that is true."""
    deadline = time.monotonic() + within_s
    while not (found := there()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found
