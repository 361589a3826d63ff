"""Progress of a run and its tasks, here or on a cluster: one object for tables, JSON and notebooks."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

# Kubeflow Pipelines' own words, and four of ours: WAITING is a task that waits for those before it, CACHED one that
# KFP's cache has answered, CANCELED what was under way when somebody stopped the run, UNKNOWN what nobody tells.
ENDED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}
WAITING, PENDING, RUNNING, CANCELING, UNKNOWN = "WAITING", "PENDING", "RUNNING", "CANCELING", "UNKNOWN"
SUCCEEDED, CACHED, SKIPPED, FAILED, CANCELED = "SUCCEEDED", "CACHED", "SKIPPED", "FAILED", "CANCELED"
HEADS = ("task", "state", "time", "done", "tries", "")


@dataclass(frozen=True)
class TaskPod:
    """One try of a task, or of one item of a loop.

    Attributes:
        name: of the pod in Kubernetes.
        item: which item of a loop, from 0; empty outside loops, several numbers inside nested ones.
        attempt: from 1.
        driver: whether it is KFP's own pod that prepares the task, not the step.
        state: PENDING, RUNNING, SUCCEEDED, FAILED or SKIPPED.
        started: when, None before.
        finished: when, None before.
        message: what Argo says of it, whole.
        exit_code: of its container, where one has ended.
        log_uri: where KFP keeps the step's log beside its outputs, once the step has ended; "" where it does not say.
    """

    name: str
    item: tuple[int, ...] = ()
    attempt: int = 1
    driver: bool = False
    state: str = UNKNOWN
    started: datetime | None = None
    finished: datetime | None = None
    message: str = ""
    exit_code: int | None = None
    log_uri: str = ""


@dataclass(frozen=True)
class TaskStatus:
    """One task of the pipeline.

    Attributes:
        name: as in the UI.
        state: one of the words above.
        seconds: it took, or has taken so far; None before it starts.
        done: items of a loop that have succeeded; None where the task is in no loop.
        total: items of the loop; None where that is not known.
        tries: most tries that it or one of its items took; 0 before the first.
        reason: why it failed or does not go on, or how far it is, in a line.
        pods: that worked on it, in order.
    """

    name: str
    state: str
    seconds: float | None = None
    done: int | None = None
    total: int | None = None
    tries: int = 0
    reason: str = ""
    pods: tuple[TaskPod, ...] = ()

    @property
    def share(self) -> str:
        """Progress of a loop, for example "12/32"; "" outside loops."""
        return "" if self.done is None else f"{self.done}/{'?' if self.total is None else self.total}"

    def row(self) -> tuple[str, ...]:
        """Cells under HEADS."""
        return (self.name, self.state, duration(self.seconds), self.share, str(self.tries or ""), self.reason)

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        plain = {key: getattr(self, key) for key in ("name", "state", "seconds", "done", "total", "tries", "reason")}
        return {**plain, "pods": [pod.name for pod in self.pods if not pod.driver]}


@dataclass(frozen=True)
class Status:
    """A run and its tasks, in the order of the pipeline.

    Attributes:
        run_id: KFP's.
        name: as in the UI.
        state: of the run: PENDING, RUNNING, SUCCEEDED, FAILED, CANCELING, CANCELED, …
        reason: why it failed before any task began, or what is worth saying of the whole, in a line.
        tasks: one a task of the pipeline.
        seconds: from its creation to its end, or until now.
        namespace: where its pods are; "" where that is not known.
        workflow_uid: of its Argo Workflow, which owns what the run made in the cluster.
    """

    run_id: str
    name: str
    state: str
    reason: str = ""
    tasks: tuple[TaskStatus, ...] = ()
    seconds: float | None = None
    namespace: str = ""
    workflow_uid: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED

    @property
    def failed(self) -> TaskStatus | None:
        """The first task that failed."""
        return next((task for task in self.tasks if task.state == FAILED), None)

    @property
    def failure(self) -> str:
        """End of a run that did not succeed: how, where and why, in words."""
        failed = self.failed
        where, why = (f" in {failed.name}", failed.reason) if failed else ("", self.reason)
        return f"{self.state.lower()}{where}: {why or 'no reason given'}"

    def headline(self) -> str:
        """The run in a line."""
        facts = [self.state, self.name, duration(self.seconds), f"run {self.run_id}"]
        return "  ".join(fact for fact in facts if fact) + (f": {self.reason}" if self.reason else "")

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        plain = {key: getattr(self, key) for key in ("run_id", "name", "state", "reason", "seconds", "namespace")}
        return {**plain, "tasks": [task.as_json() for task in self.tasks]}


def duration(seconds: float | None) -> str:
    """Seconds as people say them; "" of None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def time_of(value: Any) -> datetime | None:
    """A time of the API's, in UTC; None of nothing, of no time, and of years before 1971, which stand for "not yet"."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(found, datetime) or found.year < 1971:
            return None
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def between(started: datetime | None, finished: datetime | None, now: datetime) -> float | None:
    """Seconds from start to end, or until now where there is no end; None before the start, never below 0."""
    return None if started is None else max(0.0, ((finished or now) - started).total_seconds())
