"""The logs of a run's tasks: of their pods, through the API server, and from where KFP keeps them afterwards."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from latte import storage
from latte.errors import LatteError, UserError
from pipelines import kfp_errors, step_log
from pipelines.client import Client
from pipelines.status import FAILED, PENDING, RUNNING, WAITING, Status, TaskPod, TaskStatus

# Of a longer log the end is read.
_MOST_BYTES = 32 << 20
# Looks in a row at which the log could not be read, before following gives up.
_MOST_MISSES = 100
# The server answers 200 before it looks, and puts its error into the text: api.Error of v1beta1 as JSON.
_ERROR_MARK = b'{"error_message":'


@dataclass(frozen=True)
class Line:
    """One line of a log.

    Attributes:
        source: the task, with the item of its loop (from 1) and the try where there are several.
        text: the line, without control characters.
    """

    source: str
    text: str


def choose(status: Status, task: str | None) -> tuple[TaskStatus, ...]:
    """The tasks whose name is `task`, or else contains it; all of None.

    Raises:
        UserError: there is none.
    """
    if task is None:
        return status.tasks
    wanted = task.casefold()
    exact = tuple(each for each in status.tasks if each.name.casefold() == wanted)
    found = exact or tuple(each for each in status.tasks if wanted in each.name.casefold())
    if not found:
        known = ", ".join(each.name for each in status.tasks) or "none yet"
        raise UserError(f"run {status.run_id}: no task {task!r}; tasks: {known}")
    return found


def lines(client: Client, status: Status, tasks: Sequence[TaskStatus], everything: bool = False) -> Iterator[Line]:
    """Logs of these tasks so far, try by try.

    Args:
        client: the connection.
        status: of the run.
        tasks: some of its tasks.
        everything: also what KFP's launcher and its drivers wrote.

    Raises:
        UserError: none of them has begun.
        LatteError: no log of any of them can be read; of single ones a line says so.
    """
    sources = [(task, pod) for task in tasks for pod in _shown(task, everything) if pod.state != PENDING]
    if not sources:
        waiting = ", ".join(f"{task.name} is {task.state}" for task in tasks) or "it has no tasks"
        raise UserError(f"run {status.run_id}: no log yet: {waiting}{_because(tasks)}")
    problems: list[LatteError] = []
    for task, pod in sources:
        try:
            text = text_of(client, status.run_id, pod)
        except LatteError as error:
            problems.append(error)
            yield Line(_source(task, pod), f"({error})")
            continue
        yield from (Line(_source(task, pod), line) for line in _kept(text, everything, pod))
    if len(problems) == len(sources):
        raise problems[0]


def follow(
    client: Client,
    look: Callable[[], Status],
    task: str | None,
    everything: bool = False,
    poll_s: float = 3.0,
) -> Iterator[Line]:
    """The same, going on with what is written until these tasks have ended; each line comes once.

    The server's route knows no following: the log is read again, and what is new is told. A pod that has ended is read
    once more and then let be.

    Args:
        client: the connection.
        look: gives the run's status as it is now, and bridges outages where that is wanted.
        task: as with `choose`.
        everything: as with `lines`.
        poll_s: pause between two looks, in seconds.
    """
    shown: dict[str, list[str]] = {}
    closed: set[str] = set()
    waits, misses = "", 0
    while True:
        status = look()
        tasks = choose(status, task) if status.tasks else ()
        missed = False
        for each, pod in ((one, pod) for one in tasks for pod in _shown(one, everything)):
            if pod.name in closed or pod.state == PENDING:
                continue
            ended = pod.state != RUNNING
            try:
                new = list(_kept(text_of(client, status.run_id, pod), everything, pod, partial=not ended))
            except UserError as error:
                if not ended:
                    continue  # not there yet
                new = [f"({error})"]
            except LatteError:
                missed = True
                if misses >= _MOST_MISSES:
                    raise
                continue
            if ended:
                closed.add(pod.name)
            yield from (Line(_source(each, pod), line) for line in _after(shown.get(pod.name, []), new))
            shown[pod.name] = new
        misses = misses + 1 if missed else 0
        over = [one.state not in (PENDING, RUNNING, WAITING) for one in tasks]
        if not missed and (status.ended or (over and all(over))):
            return
        waiting = next((one for one in tasks if one.state == PENDING and one.reason), None)
        if waiting is not None and waiting.reason != waits:
            waits = waiting.reason
            yield Line(waiting.name, f"(waits: {waits})")
        time.sleep(poll_s)


def text_of(client: Client, run_id: str, pod: TaskPod) -> str:
    """The log of a pod, from the API server or, where it has none, from beside the step's outputs in the bucket.

    Raises:
        UserError: neither has it.
        LatteError: the server or the network fails.
    """
    what = f"log of pod {pod.name}"
    # The published API has no call for logs; the server has had this route since its first version.
    data = client.read(what, f"/apis/v1alpha1/runs/{quote(run_id, safe='')}/nodes/{quote(pod.name, safe='')}/log")
    text, problem = _split(data)
    if not problem:
        return text
    if storage.is_shared(pod.log_uri):
        try:
            return _kept_log(pod.log_uri)
        except LatteError as error:
            problem = f"{problem}; in the bucket: {error}"
    raise UserError(f"{what}: {problem}")


def _kept_log(uri: str) -> str:
    """The end of what KFP keeps beside a step's outputs; older versions keep one log without a number for all tries."""
    for candidate in (uri, uri.rpartition("-")[0]):
        stat = storage.stat(candidate)
        if stat is not None:
            return storage.read_bytes(candidate, max(0, stat.bytes - _MOST_BYTES)).decode(errors="replace")
    raise UserError(f"{uri}: not there")


def _split(data: bytes) -> tuple[str, str]:
    """The log, and the error that the server put at its end."""
    at = data.rfind(_ERROR_MARK)
    if at >= 0:
        try:
            message = json.loads(data[at:])["error_message"]
        except (ValueError, LookupError, TypeError):
            message = None
        if isinstance(message, str):
            return data[:at].decode(errors="replace"), _shortened(message)
    return data[-_MOST_BYTES:].decode(errors="replace"), ""


def _shortened(message: str) -> str:
    """One line of the errors that KFP wraps into each other."""
    line = step_log.plain(kfp_errors.first_line(message))
    return "its pod is gone" if line.endswith("not found") else line[:300]


def _shown(task: TaskStatus, everything: bool) -> list[TaskPod]:
    """Pods of the step; its drivers on demand, and where one of them is what failed."""
    steps = [pod for pod in task.pods if not pod.driver]
    if everything:
        return list(task.pods)
    return steps or [pod for pod in task.pods if pod.state == FAILED]


def _kept(text: str, everything: bool, pod: TaskPod, partial: bool = False) -> Iterator[str]:
    found = step_log.lines_of(text)
    if found and (not found[-1] or partial):
        found.pop()  # behind the last line end: nothing, or a line that is still being written
    return iter(found) if everything or pod.driver else step_log.own(found)


def _after(before: list[str], now: list[str]) -> list[str]:
    """The new part; a log that was turned over in between has lost its head, and begins in the midst of `before`."""
    for start in range(len(before)):
        both = len(before) - start
        if before[start:] == now[:both]:
            return now[both:]
    return now


def _source(task: TaskStatus, pod: TaskPod) -> str:
    mine = [each for each in task.pods if each.driver == pod.driver and each.item == pod.item]
    item = "".join(f" {number + 1}" for number in pod.item)
    of = f" of {task.total}" if item and task.total and len(pod.item) == 1 else ""
    attempt = f", try {pod.attempt}" if len(mine) > 1 else ""
    return f"{task.name}{item}{of}{' (driver)' if pod.driver else ''}{attempt}"


def _because(tasks: Sequence[TaskStatus]) -> str:
    return next((f" ({task.reason})" for task in tasks if task.reason), "")
