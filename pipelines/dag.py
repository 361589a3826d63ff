"""Tasks of a pipeline's compiled specification, in the order of its DAG, and what they launch."""

import json
from dataclasses import dataclass
from typing import Any

from components.placement import LAUNCH_ENV
from pipelines.step_log import one_line


@dataclass(frozen=True)
class DagStep:
    """One task of the pipeline.

    Attributes:
        path: its key, after those of the loops and conditions that it is in.
        name: as in the UI.
        looped: whether one of those is a loop.
    """

    path: tuple[str, ...]
    name: str
    looped: bool


def steps(spec: Any) -> tuple[DagStep, ...]:
    """Every task that runs a component; what a specification lacks or holds wrongly is left out.

    Args:
        spec: the pipeline's specification (KFP's IR), or the object around it that holds it as `pipeline_spec`.
    """
    spec = _inner(spec)
    components = _dict(spec.get("components"))
    return tuple(_below(_dict(spec.get("root")), components, (), False, frozenset()))


def lease_s(spec: Any) -> float | None:
    """Seconds after which every Volcano Job of the pipeline ends itself once no step waits for it.

    None where it launches no Jobs, or those of a version that knew no lease.
    """
    found = []
    for executor in _dict(_dict(_inner(spec).get("deploymentSpec")).get("executors")).values():
        variables = _dict(_dict(executor).get("container")).get("env")
        for variable in variables if isinstance(variables, list) else []:
            if _dict(variable).get("name") == LAUNCH_ENV:
                found.append(_dict(_dict(_json(variable.get("value"))).get("volcano")).get("lease_s"))
    seconds = [each for each in found if isinstance(each, int | float)]
    return max(seconds) if seconds and len(seconds) == len(found) else None


def _below(
    component: dict[str, Any], components: dict[str, Any], path: tuple[str, ...], looped: bool, open_: frozenset[str]
) -> list[DagStep]:
    tasks = {str(key): _dict(task) for key, task in _dict(_dict(component.get("dag")).get("tasks")).items()}
    found = []
    for key in _ordered(tasks):
        task = tasks[key]
        reference = str(_dict(task.get("componentRef")).get("name"))
        inner = _dict(components.get(reference))
        here = (*path, key)
        if "dag" in inner:
            if reference not in open_:  # a component inside itself is no pipeline
                loop = looped or "parameterIterator" in task or "artifactIterator" in task
                found += _below(inner, components, here, loop, open_ | {reference})
            continue
        found.append(DagStep(here, one_line(str(_dict(task.get("taskInfo")).get("name") or key)), looped))
    return found


def _ordered(tasks: dict[str, dict[str, Any]]) -> list[str]:
    """Level by level: no task before those that it depends on; tasks in a circle come last."""
    needs = {}
    for key, task in tasks.items():
        before = task.get("dependentTasks")
        needs[key] = {str(name) for name in before} & set(tasks) if isinstance(before, list) else set()
    done: list[str] = []
    while ready := sorted(key for key in needs if key not in done and needs[key] <= set(done)):
        done += ready
    return done + sorted(set(tasks) - set(done))


def _inner(spec: Any) -> dict[str, Any]:
    while isinstance(spec, dict) and isinstance(spec.get("pipeline_spec"), dict):
        spec = spec["pipeline_spec"]
    return _dict(spec)


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
