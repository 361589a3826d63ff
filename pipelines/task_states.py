"""From the nodes of a run's Workflow, or from KFP's task details, to one line a task of the pipeline."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pipelines import reasons, status
from pipelines.dag import DagStep
from pipelines.status import (
    CACHED,
    CANCELED,
    FAILED,
    PENDING,
    RUNNING,
    SKIPPED,
    SUCCEEDED,
    UNKNOWN,
    WAITING,
    TaskPod,
    TaskStatus,
)
from pipelines.step_log import one_line
from pipelines.workflow import Workflow, WorkflowNode

# Levels of a node's name that stand for no task of the pipeline: KFP's compiler puts them between.
_BETWEEN = {"workflow", "root", "iteration-iterations", "iteration-item", "onExit"}
_EXECUTOR, _DRIVER, _LOOP_DRIVER = "executor", "-driver", "iteration-driver"
# What Argo runs when a node has ended; KFP's exit task is in it, and stands beside that node in the pipeline.
_HOOK = "onExit"
_STATES = {
    "Pending": PENDING, "Running": RUNNING, "Succeeded": SUCCEEDED, "Skipped": SKIPPED, "Omitted": SKIPPED,
    "Failed": FAILED, "Error": FAILED,
}  # fmt: skip
# The state of a loop is the first of these that one of its items has.
_FIRST = (FAILED, CANCELED, RUNNING, PENDING, UNKNOWN, WAITING)


@dataclass
class _Item:
    """State of a task, or of one item of a loop."""

    own: WorkflowNode | None = None
    pods: list[TaskPod] = field(default_factory=list)
    drivers: list[TaskPod] = field(default_factory=list)
    cached: bool = False


@dataclass
class _Found:
    """States by the nodes, by the path of the task or of the loop around it."""

    items: dict[tuple[str, ...], dict[tuple[int, ...], _Item]] = field(default_factory=dict)
    counts: dict[tuple[str, ...], dict[tuple[int, ...], int]] = field(default_factory=dict)
    root: list[TaskPod] = field(default_factory=list)

    def item(self, path: tuple[str, ...], item: tuple[int, ...]) -> _Item:
        return self.items.setdefault(path, {}).setdefault(item, _Item())


def of_workflow(
    steps: Sequence[DagStep], workflow: Workflow, canceled: bool, now: datetime
) -> tuple[tuple[TaskStatus, ...], str, tuple[TaskPod, ...]]:
    """States of a run's steps, why it failed before any of them began ("" where it did not), and the pods of that time.

    Args:
        steps: the pipeline's; where there are none, they are made from the nodes' names, in order of their start.
        workflow: the run's.
        canceled: whether the run was stopped by somebody.
        now: the time until which running tasks have taken theirs.
    """
    steps = tuple(steps) or _from_names(workflow.nodes)
    found = _sorted_out(steps, workflow.nodes)
    tasks = tuple(_task(step, found, canceled, now) for step in steps)
    begun = any(task.state != WAITING and task.state != SKIPPED for task in tasks)
    reason = "" if begun else _why(found.root) or reasons.explained(workflow.message)
    return tasks, reason, tuple(found.root)


def of_details(steps: Sequence[DagStep], details: Iterable[Mapping[str, Any]], now: datetime) -> tuple[TaskStatus, ...]:
    """The same from KFP's task details (display_name, state, start_time, end_time): no reasons, no tries, no pods."""
    by_key: dict[str, list[Mapping[str, Any]]] = {}
    for detail in details:
        by_key.setdefault(str(detail.get("display_name")), []).append(detail)
    if not steps:
        steps = [
            DagStep((key,), key, False)
            for key in by_key
            if f"{key}{_DRIVER}" in by_key and key not in _BETWEEN and not key.startswith("for-loop-")
        ]
    tasks = []
    for step in steps:
        mine = by_key.get(step.path[-1], [])
        states = [str(each.get("state") or SKIPPED) for each in mine]
        spans = [(status.time_of(each.get("start_time")), status.time_of(each.get("end_time"))) for each in mine]
        done = states.count(SUCCEEDED) if step.looped and mine else None
        tasks.append(TaskStatus(step.name, _together(states), _seconds(spans, now), done))
    return tuple(tasks)


def _from_names(nodes: Sequence[WorkflowNode]) -> tuple[DagStep, ...]:
    """Steps by the tries of their executors and by what was left out, for a run whose pipeline is gone."""
    started: dict[tuple[str, ...], tuple[bool, datetime | None]] = {}
    for node in nodes:
        keys = tuple(each.key for each in node.path if each.key not in _BETWEEN)
        if len(keys) > 1 and keys[-1] == _EXECUTOR:
            looped = any(each.item is not None for each in node.path)
            known = started.get(keys[:-1])
            if known is None or (node.started and (known[1] is None or node.started < known[1])):
                started[keys[:-1]] = (looped, node.started)
    ordered = sorted(started.items(), key=lambda each: (each[1][1] is None, each[1][1] or 0, each[0]))
    return tuple(DagStep(path, one_line(path[-1]), looped) for path, (looped, _) in ordered)


def _sorted_out(steps: Sequence[DagStep], nodes: Sequence[WorkflowNode]) -> _Found:
    known = {step.path[: length + 1] for step in steps for length in range(len(step.path))}
    leaves = {step.path for step in steps}
    found = _Found()
    for node in nodes:
        path: tuple[str, ...] = ()
        item: tuple[int, ...] = ()
        driver = executor = False
        for segment in node.path:
            if segment.item is not None:
                item = (*item, segment.item)
            if segment.key == _HOOK:
                path = path[:-1]
            elif (*path, segment.key) in known:
                path = (*path, segment.key)
            elif segment.key == _EXECUTOR and path in leaves:
                executor = True
            elif segment.key == _LOOP_DRIVER:
                driver = True
            elif segment.key.endswith(_DRIVER):
                driver = True
                if (*path, segment.key.removesuffix(_DRIVER)) in known:
                    path = (*path, segment.key.removesuffix(_DRIVER))
        _take(found, node, path, item, driver, executor)
    return found


def _take(
    found: _Found, node: WorkflowNode, path: tuple[str, ...], item: tuple[int, ...], driver: bool, executor: bool
) -> None:
    last = node.path[-1]
    if not path:
        if node.kind == "Pod":
            found.root.append(_pod(node, item, driver))
        return
    mine = found.item(path, item)
    if node.kind == "Pod" and (driver or executor):
        (mine.drivers if driver else mine.pods).append(_pod(node, item, driver))
    if driver:
        mine.cached |= node.outputs.get("cached-decision") == "true"
        count = node.outputs.get("iteration-count", "")
        if last.key == _LOOP_DRIVER and count.isascii() and count.isdigit() and len(count) < 7:
            found.counts.setdefault(path, {})[item] = int(count)
    # The node of the task itself, not one of its tries: its Retry, or the only one where KFP makes none.
    elif not executor and last.key == path[-1] and (mine.own is None or last.attempt is None):
        mine.own = node


def _pod(node: WorkflowNode, item: tuple[int, ...], driver: bool) -> TaskPod:
    """A try; its number among its item's follows from the order, its own name has it level by level."""
    attempt = node.path[-1].attempt or 0
    uri = f"{node.log_uri}-{attempt}" if node.log_uri else ""
    code = node.exit_code
    return TaskPod(
        node.pod, item, attempt + 1, driver, _state(node), node.started, node.finished, node.message, code, uri
    )


def _task(step: DagStep, found: _Found, canceled: bool, now: datetime) -> TaskStatus:
    items = dict(sorted(found.items.get(step.path, {}).items()))
    if not items:
        return _not_begun(step, found, canceled, now)
    states = {key: _item_state(item, canceled) for key, item in items.items()}
    spans = [_span(item) for item in items.values()]
    total = _total(step, found) if step.looped else None
    done = sum(state in (SUCCEEDED, CACHED) for state in states.values()) if step.looped else None
    state = _together(states.values())
    if state in (SUCCEEDED, CACHED, SKIPPED) and total is not None and len(items) < total:
        state = RUNNING
    pods = [pod for item in items.values() for pod in (*item.drivers, *_numbered(item.pods))]
    tries = max((len(item.pods) or len(item.drivers) for item in items.values()), default=0)
    reason = next((why for key, item in items.items() if states[key] == state and (why := _reason(item, state))), "")
    if state == RUNNING and (stuck := _stuck(step, found)):
        state, reason, pods = FAILED, _why(stuck), [*pods, *stuck]
    seconds = None if state == SKIPPED else _seconds(spans, now)
    return TaskStatus(step.name, state, seconds, done, total, tries, reason, tuple(pods))


def _not_begun(step: DagStep, found: _Found, canceled: bool, now: datetime) -> TaskStatus:
    """A task without a node of its own: what is around it decides, a loop whose driver failed, for example."""
    for length in range(len(step.path) - 1, 0, -1):
        around = found.items.get(step.path[:length])
        if not around:
            continue
        states = [_item_state(item, canceled) for item in around.values()]
        state = _together(states)
        state = PENDING if state == RUNNING else SKIPPED if state in (SUCCEEDED, CACHED) else state
        reason = next((why for item in around.values() if (why := _reason(item, state))), "")
        pods = tuple(pod for item in around.values() for pod in item.drivers)
        if not pods or state == SKIPPED:
            return TaskStatus(step.name, state, reason=reason)
        seconds = _seconds([(pod.started, pod.finished) for pod in pods], now)
        return TaskStatus(step.name, state, seconds, total=_total(step, found), reason=reason, pods=pods)
    return TaskStatus(step.name, WAITING)


def _stuck(step: DagStep, found: _Found) -> list[TaskPod]:
    """Drivers of the loops around a task that failed: their items never come as far as the task."""
    around = (found.items.get(step.path[:length], {}) for length in range(1, len(step.path)))
    newest = [item.drivers[-1] for items in around for item in items.values() if item.drivers]
    return [pod for pod in newest if pod.state == FAILED]


def _item_state(item: _Item, canceled: bool) -> str:
    newest = next(reversed(item.pods or item.drivers), None)
    if item.own is None:
        state = newest.state if newest else WAITING
        # A driver that is done hands over to its task.
        state = PENDING if state in (SUCCEEDED, RUNNING) else state
    else:
        state = _state(item.own)
    if state == RUNNING and newest is not None and newest.state == PENDING:
        state = PENDING
    if state == SUCCEEDED and item.cached and not item.pods:
        return CACHED
    messages = [item.own.message if item.own else "", newest.message if newest else ""]
    if state == FAILED and canceled and any(reasons.stopped(message) for message in messages):
        return CANCELED
    return state


def _reason(item: _Item, state: str) -> str:
    if state == CANCELED:
        return "stopped"
    if state not in (FAILED, PENDING):
        return ""
    pods = item.pods or item.drivers
    return _why(pods) or (reasons.explained(item.own.message) if item.own else "")


def _why(pods: Sequence[TaskPod]) -> str:
    """Message of the newest try that has one."""
    said = (reasons.explained(pod.message) for pod in reversed(pods) if pod.state in (FAILED, PENDING))
    return next((why for why in said if why), "")


def _together(states: Iterable[str]) -> str:
    """One state for all."""
    all_ = list(states)
    if not all_:
        return WAITING
    for state in _FIRST:
        if state in all_:
            # A loop of which some items are done is under way.
            started = state in (PENDING, WAITING) and any(each in (SUCCEEDED, CACHED) for each in all_)
            return RUNNING if started else state
    if all(state == CACHED for state in all_):
        return CACHED
    return SKIPPED if all(state == SKIPPED for state in all_) else SUCCEEDED


def _total(step: DagStep, found: _Found) -> int | None:
    """Items of the innermost loop around a step, over all items of the loops around that one."""
    for length in range(len(step.path) - 1, 0, -1):
        if counts := found.counts.get(step.path[:length]):
            return sum(counts.values())
    return None


def _numbered(pods: Sequence[TaskPod]) -> list[TaskPod]:
    return [replace(pod, attempt=number) for number, pod in enumerate(pods, start=1)]


def _span(item: _Item) -> tuple[datetime | None, datetime | None]:
    if item.own is not None and item.own.started is not None:
        return item.own.started, item.own.finished
    pods = item.pods or item.drivers
    ends = [pod.finished for pod in pods]
    started = min((pod.started for pod in pods if pod.started), default=None)
    return started, None if not ends or None in ends else max(end for end in ends if end)


def _seconds(spans: Sequence[tuple[datetime | None, datetime | None]], now: datetime) -> float | None:
    """From the first start to the last end, or until now while one has none."""
    begun = [(start, end) for start, end in spans if start is not None]
    if not begun:
        return None
    ends = [end for _, end in begun if end is not None]
    return status.between(min(start for start, _ in begun), max(ends) if len(ends) == len(begun) else None, now)


def _state(node: WorkflowNode) -> str:
    return _STATES.get(node.phase, UNKNOWN)
