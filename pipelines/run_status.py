"""A run's status from the command line, a notebook or Python: asked for once, or until it has ended.

client = Client(host="https://kubeflow.example.com/pipeline")
print(status(client).headline())  # of the newest run
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from latte.errors import LatteError, UserError
from pipelines import reasons, run_logs, runs, step_log, task_states
from pipelines.client import Client
from pipelines.dag import DagStep
from pipelines.status import (
    CANCELED,
    CANCELING,
    ENDED,
    FAILED,
    PENDING,
    RUNNING,
    SKIPPED,
    UNKNOWN,
    WAITING,
    Status,
    TaskPod,
    TaskStatus,
)

T = TypeVar("T")
# How long a server or a network that fails may be away while a run is watched.
OUTAGE_S = 600.0
_DETAILS_ALONE = "from KFP's task details alone: no reasons, and late where a run is large"


def _nothing(_: str) -> None:
    """Whoever watches may have nobody to tell."""


def status(client: Client, run_id: str | None = None, steps: Sequence[DagStep] | None = None) -> Status:
    """Status of a run, task by task, with reasons and the progress of what is running.

    Args:
        client: the connection.
        run_id: the run; the newest when None.
        steps: the pipeline's, where they are known already; asked for when None.

    Raises:
        UserError: there is no such run in the experiment, or the token has expired.
        LatteError: the server or the network fails, or the run's workflow cannot be read.
    """
    found, roots = _without_logs(client, run_id or runs.newest(client), steps)
    tasks = tuple(_told(client, found.run_id, task) for task in found.tasks)
    reason = found.reason
    at_the_root = found.state == FAILED and not any(task.state == FAILED for task in tasks)
    if at_the_root and roots and reasons.only_code(roots[-1].message):
        reason = _from_log(client, found.run_id, roots[-1], reason)
    return replace(found, tasks=tasks, reason=reason)


def brief(client: Client, run_id: str, steps: Sequence[DagStep] | None = None) -> Status:
    """The same without looking into any log, which is quicker; no reasons that only a log tells."""
    return _without_logs(client, run_id, steps)[0]


def watch(client: Client, run_id: str, poll_s: float = 10.0, say: Callable[[str], None] = _nothing) -> Iterator[Status]:
    """The run's status again and again, without logs, until it has ended; the last one is whole, as from `status`.

    Args:
        client: the connection.
        run_id: the run.
        poll_s: pause between two looks, in seconds.
        say: called with a line when the server does not answer.

    Raises:
        LatteError: as `status`, an outage only after OUTAGE_S.
    """
    steps = steadily(lambda: runs.steps_of(client, runs.find(client, run_id)), poll_s, say)
    while True:
        found = steadily(lambda: brief(client, run_id, steps), poll_s, say)
        if found.ended:
            yield steadily(lambda: status(client, run_id, steps), poll_s, say)
            return
        yield found
        time.sleep(poll_s)


def steadily(look: Callable[[], T], poll_s: float, say: Callable[[str], None] = _nothing) -> T:
    """Result of `look`; while the server or the network fails it is tried again, for OUTAGE_S at most.

    Raises:
        UserError: at once; trying again would change nothing.
        LatteError: the outage lasts.
    """
    started, last_error = time.monotonic(), ""
    while True:
        try:
            return look()
        except UserError:
            raise
        except LatteError as error:
            if time.monotonic() - started > OUTAGE_S:
                raise
            if str(error) != last_error:
                last_error = str(error)
                say(f"{error}; trying again")
        time.sleep(poll_s)


def changes(before: Status | None, now: Status) -> list[str]:
    """Changes from one status to the next, a line a task."""
    old = {task.name: replace(task, seconds=None, pods=()) for task in before.tasks} if before else {}
    lines = []
    for task in now.tasks:
        if task.state in (WAITING, SKIPPED) or replace(task, seconds=None, pods=()) == old.get(task.name):
            continue
        share = f" {task.share}" if task.share else ""
        attempt = f", try {task.tries}" if task.tries > 1 else ""
        lines.append(f"{task.name}: {task.state.lower()}{share}{attempt}{f': {task.reason}' if task.reason else ''}")
    return lines


def _without_logs(client: Client, run_id: str, steps: Sequence[DagStep] | None) -> tuple[Status, tuple[TaskPod, ...]]:
    """The status without what only logs tell, and the pods that prepared the whole."""
    run = runs.find(client, run_id)
    steps = runs.steps_of(client, run) if steps is None else steps
    now, state = datetime.now(UTC), runs.state_of(run)
    found = runs.workflow_of(client, run_id)
    if state == FAILED and found is not None and found.stopped:
        state = CANCELED
    line = replace(runs.line_of(run), state=state)
    failure = step_log.one_line(getattr(run.error, "message", "") or "")
    details = runs.details_of(run)
    if found is None or found.offloaded or (not found.nodes and details):
        tasks = _settled(task_states.of_details(steps, details, now), state, UNKNOWN)
        reason = reasons.explained(found.message) if found is not None else ""
        reason = reason or failure or (_DETAILS_ALONE if details else "")
        return Status(run_id, line.name, state, reason, tasks, line.seconds), ()
    tasks, reason, roots = task_states.of_workflow(steps, found, state in (CANCELED, CANCELING), now)
    reason = reason or failure
    if not steps and tasks:
        reason = reason or "its pipeline version is gone: tasks by KFP's names, in order of their start"
    tasks = _settled(tasks, state, SKIPPED)
    return Status(run_id, line.name, state, reason, tasks, line.seconds, found.namespace, found.uid), roots


def _settled(tasks: tuple[TaskStatus, ...], state: str, waiting: str) -> tuple[TaskStatus, ...]:
    """In a run that has ended nothing goes on any more; `waiting` is what became of tasks that seem to wait."""
    if state not in ENDED:
        return tasks
    under_way = CANCELED if state == CANCELED else UNKNOWN
    became = {WAITING: waiting, PENDING: under_way, RUNNING: under_way}
    return tuple(
        replace(task, state=became[task.state], seconds=None) if task.state in became else task for task in tasks
    )


def _told(client: Client, run_id: str, task: TaskStatus) -> TaskStatus:
    """The task with what its log tells: why it failed, or how far it is."""
    if task.state == FAILED:
        failing = [pod for pod in task.pods if pod.state == FAILED]
        if failing and (not task.reason or reasons.only_code(failing[-1].message)):
            return replace(task, reason=_from_log(client, run_id, failing[-1], task.reason))
    if task.state == RUNNING:
        running = [pod for pod in task.pods if pod.state == RUNNING and not pod.driver]
        if running:
            try:
                text = run_logs.text_of(client, run_id, running[0])
            except LatteError as error:
                return replace(task, reason=f"no log: {error}")
            return replace(task, reason=step_log.one_line(step_log.progress(text)))
    return task


def _from_log(client: Client, run_id: str, pod: TaskPod, known: str) -> str:
    try:
        last_words = step_log.one_line(step_log.last_words(run_logs.text_of(client, run_id, pod)))
    except LatteError as error:
        return f"{known or FAILED.lower()} (no log: {error})"
    return last_words or known
