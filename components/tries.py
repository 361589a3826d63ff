"""Trying a task's work again in its own pod, and the last word of a task that has failed.

KFP's own retries do not tell a mistake of the user's from an outage: its launcher leaves with exit code 1 whatever the
step left with, and within a loop they are ignored (Decision 19). So on a cluster the process that KFP starts only
watches: it has the work done by another one, the same command again, and starts that anew when it fails. A user's
mistake (exit code 2) is never tried again, nor is what was asked to stop. What has failed for good leaves its last
word under the root; a pod that KFP starts anew all the same says it again and ends.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from latte import signals
from latte.config import Config
from latte.errors import LatteError, StoppedByUserError, UserError
from latte.steps import tell
from latte.terminal import shown

# Set on a cluster by `pipelines.cluster`: the settings of tries, the run's id, the name of the pod's node in Argo.
RETRY_ENV, RUN_ENV, NODE_ENV = "LATTE_RETRY", "LATTE_RUN_ID", "LATTE_NODE"
# The number of the try, for the process that does the work.
TRY_ENV = "LATTE_TRY"
# Exit codes after which there is nothing to try again.
_FINAL = (0, UserError.exit_code, StoppedByUserError.exit_code, 128 + signal.SIGTERM)
_ATTEMPT = re.compile(r"\((\d+)\)$")


class Retry(Config):
    """Number of tries of what failed, and the waits before them."""

    tries: int = Field(
        default=3, ge=1, le=20, description="tries of a task in its pod, the first one included; 1: no other"
    )
    pods: int = Field(
        default=2, ge=0, le=20, description="new pods for a task whose pod was lost, or that KFP tries again"
    )
    wait_s: int = Field(default=30, ge=0, description="seconds before the second try")
    factor: int = Field(default=2, ge=1, le=100, description="by which each further wait is longer")
    longest_s: int = Field(default=600, ge=0, description="the longest wait, in seconds")

    def wait_before_s(self, number: int) -> float:
        """Seconds to wait before try `number`, 2 for the first one that is a repetition."""
        return float(min(self.longest_s, self.wait_s * self.factor ** (number - 2)))


def of_this_step() -> Retry | None:
    """Settings of the tries; None where this process is to do the work itself.

    Raises:
        UserError: the variable holds something else; another version compiled the pipeline.
    """
    text = os.environ.get(RETRY_ENV)
    if not text or os.environ.get(TRY_ENV):
        return None
    try:
        return Retry.model_validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"{RETRY_ENV}: {error.errors()[0]['msg']}; compile the pipeline with the version that is in the image"
        ) from None


def supervise(task: str, root: str, retry: Retry, events_env: str, command: Sequence[str] | None = None) -> int:
    """Have the work done, again where it fails; leaves the last word under the root.

    Args:
        task: name of the task in messages.
        root: that its last word goes under.
        retry: how often.
        events_env: variable that names the file in which the working process tells of its failure.
        command: of the working process; that of this one when None.

    Returns:
        The exit code of the last try.
    """
    run_id, key = os.environ.get(RUN_ENV, ""), key_of(os.environ.get(NODE_ENV, "")) or task
    if attempt_of(os.environ.get(NODE_ENV, "")) and (word := _told_before(root, run_id, key)) is not None:
        _say(f"error: {task}: {word.get('error', 'failed')} (as in the try before; not tried again)")
        return int(word.get("exit_code", 1))
    stopped: list[int] = []
    with tempfile.TemporaryDirectory(prefix="latte-tries-") as scratch:
        for number in range(1, retry.tries + 1):
            events = Path(scratch) / f"try-{number}.jsonl"
            code = _try(command or [sys.executable, *sys.orig_argv[1:]], number, {events_env: str(events)}, stopped)
            if code == 0:
                _quietly(lambda: tell.forget_failure(root, run_id, key))
                return 0
            named, error = _said(events, code)
            if code in _FINAL or stopped or number == retry.tries:
                break
            wait_s = retry.wait_before_s(number + 1)
            _say(f"{named or task}: try {number} of {retry.tries} failed: {error}; again in {wait_s:g} s")
            time.sleep(wait_s)
        if not stopped:
            tries = f" ({number} tries)" if number > 1 else ""
            _quietly(lambda: tell.leave_failure(root, run_id, key, named or task, error + tries, code))
    return code


def key_of(node: str) -> str:
    """The name of an Argo node without the number of its own try: the same for every pod of one task or loop item."""
    return _ATTEMPT.sub("", node)


def attempt_of(node: str) -> int:
    """The number of a node's own try, 0 for the first: `run(0).root(0).train(0).executor(1)` is 1."""
    found = _ATTEMPT.search(node)
    return int(found[1]) if found else 0


def _try(command: Sequence[str], number: int, environment: dict[str, str], stopped: list[int]) -> int:
    """Exit code of one try, 128 and the number where a signal ended it; SIGTERM and Ctrl-C are passed on."""
    started: list[subprocess.Popen[bytes]] = []

    def pass_on(signum: int, _frame: object) -> None:
        stopped.append(signum)
        for process in started:
            process.send_signal(signal.SIGTERM)

    with signals.handled_by(pass_on):
        process = subprocess.Popen(command, env={**os.environ, **environment, TRY_ENV: str(number)})
        started.append(process)
        if stopped:
            process.send_signal(signal.SIGTERM)
        code = process.wait()
    return code if code >= 0 else 128 - code


def _said(events: Path, code: int) -> tuple[str, str]:
    """Name of what failed, as the working process has told it last, and the error in one line.

    A task may do several things one after the other, each with a name of its own.
    """
    lines = events.read_text(encoding="utf-8").splitlines() if events.exists() else []
    told: list[dict[str, Any]] = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the process was killed, or the disk was full, in the middle of it
            told.append(json.loads(line))
    named = shown(str(told[-1].get("task", ""))) if told else ""
    for event in reversed(told):
        if event.get("event") == "failed":
            return named, shown(" ".join(str(event.get("message", "")).split()))
    if code > 128:
        return named, f"its process was ended by signal {code - 128}, as for want of memory"
    return named, f"its process ended with exit code {code} and without a word"


def _told_before(root: str, run_id: str, key: str) -> dict[str, Any] | None:
    return tell.failure(root, run_id, key) if run_id else None


def _quietly(write: Callable[[], None]) -> None:
    """A store that is down is what failed, as a rule: it must not hide the error itself."""
    try:
        write()
    except LatteError as error:
        _say(f"the last word of this task is not kept: {error}")


def _say(line: str) -> None:
    print(shown(line), file=sys.stderr, flush=True)
