"""The exit task among a run's tasks: Argo runs it as a hook, whose nodes no answer of a real run has held yet."""

import json

import pytest

from pipelines import dag, task_states, workflow
from tests import recorded_kfp as recorded
from tests.unit.pipelines.test_task_states import NAMES, NOW


def told_at_its_end(phase: str) -> tuple[tuple[dag.DagStep, ...], dict]:
    """The pipeline of a recorded run as it is within an exit handler, and the run's Workflow with Argo's hook."""
    spec = json.loads(json.dumps(recorded.answer("pipeline_spec")))
    inner = spec.get("pipeline_spec", spec)
    inner["components"] |= {"comp-exit-handler-1": {"dag": inner["root"]["dag"]}, "comp-tell": {"executorLabel": "t"}}
    inner["root"]["dag"] = {
        "tasks": {
            "exit-handler-1": {"componentRef": {"name": "comp-exit-handler-1"}, "taskInfo": {"name": "a run"}},
            "tell": {
                "componentRef": {"name": "comp-tell"}, "dependentTasks": ["exit-handler-1"],
                "taskInfo": {"name": "tell"},
            },
        }
    }  # fmt: skip
    value = json.loads(recorded.manifest(recorded.FAILED_STEP))
    name = value["metadata"]["name"]
    for each in value["status"]["nodes"].values():
        each["name"] = each["name"].replace("root(0).", "root(0).exit-handler-1(0).")
    hook = f"{name}(0).root(0).exit-handler-1.onExit"
    for number, (path, kind, template) in enumerate(
        [
            (hook, "Retry", "exit-hook-root-tell"), (f"{hook}(0)", "DAG", "exit-hook-root-tell"),
            (f"{hook}(0).tell-driver", "Retry", "system-container-driver"),
            (f"{hook}(0).tell-driver(0)", "Pod", "system-container-driver"),
            (f"{hook}(0).tell", "Retry", "system-container-executor"),
            (f"{hook}(0).tell(0)", "DAG", "system-container-executor"),
            (f"{hook}(0).tell(0).executor", "Retry", "retry-system-container-impl"),
            (f"{hook}(0).tell(0).executor(0)", "Pod", "retry-system-container-impl"),
        ]
    ):  # fmt: skip
        state = (
            phase if "executor" in path or path.endswith(("tell", "tell(0)", "onExit", "onExit(0)")) else "Succeeded"
        )
        value["status"]["nodes"][f"hook-{number}"] = {
            "id": f"{name}-{number}", "name": path, "type": kind, "templateName": template, "phase": state,
            "startedAt": "2026-11-27T13:59:30Z", "finishedAt": "2026-11-27T13:59:40Z",
        }  # fmt: skip
    return dag.steps(spec), value


@pytest.mark.parametrize("phase", ["Running", "Succeeded", "Failed"])
def test_the_task_that_tells_of_a_run_is_found_in_argos_hook(phase: str) -> None:
    steps, value = told_at_its_end(phase)
    found, _, _ = task_states.of_workflow(steps, workflow.read(json.dumps(value)), False, NOW)
    assert [task.name for task in found] == [*NAMES, "tell"]
    by_name = {task.name: task for task in found}
    assert by_name["tell"].state == phase.upper()
    assert len(by_name["tell"].pods) == 2
    assert (by_name["encode: shards"].state, by_name["encode: shards"].total) == ("FAILED", 1)
    assert by_name["report"].state == "SKIPPED"
