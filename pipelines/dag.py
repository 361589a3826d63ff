"""The tasks of a pipeline in the order of its DAG, out of its compiled specification."""

from dataclasses import dataclass
from typing import Any

from pipelines.step_log import one_line


@dataclass(frozen=True)
class Step:
    """One task of the pipeline.

    Attributes:
        path: its key, after those of the loops and conditions that it is in.
        name: as in the UI.
        looped: whether one of those is a loop.
    """

    path: tuple[str, ...]
    name: str
    looped: bool


def steps(spec: Any) -> tuple[Step, ...]:
    """Every task that runs a component; what a specification lacks or holds wrongly is left out.

    Args:
        spec: the pipeline's specification (KFP's IR), or the object around it that holds it as `pipeline_spec`.
    """
    while isinstance(spec, dict) and isinstance(spec.get("pipeline_spec"), dict):
        spec = spec["pipeline_spec"]
    if not isinstance(spec, dict):
        return ()
    components = _dict(spec.get("components"))
    return tuple(_below(_dict(spec.get("root")), components, (), False, frozenset()))


def _below(
    component: dict[str, Any], components: dict[str, Any], path: tuple[str, ...], looped: bool, open_: frozenset[str]
) -> list[Step]:
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
        found.append(Step(here, one_line(str(_dict(task.get("taskInfo")).get("name") or key)), looped))
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


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
