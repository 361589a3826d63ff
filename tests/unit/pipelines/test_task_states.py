"""One line a task of the pipeline, from the workflows and the task details of recorded runs."""

import base64
import datetime
import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latte.errors import LatteError
from pipelines import dag, task_states, workflow
from pipelines.status import TaskStatus, duration, time_of
from tests import recorded_kfp as recorded

NOW = datetime.datetime(2026, 11, 27, 14, 0, tzinfo=datetime.UTC)
STEPS = dag.steps(recorded.answer("pipeline_spec"))
NAMES = [
    "convert vae", "convert i3d", "encode: plan", "encode: shards", "encode: merge", "train", "sample trained: plan",
    "sample untrained: plan", "sample trained: shards", "sample untrained: shards", "sample trained: merge",
    "sample untrained: merge", "score trained", "score untrained", "report",
]  # fmt: skip
LOOPS = {"encode: shards", "sample trained: shards", "sample untrained: shards"}
SHARDS = "root(0).for-loop-1(0).iteration-iterations(0:0)(0).iteration-item(0).encode-shards(0)"


def tasks(name: str, canceled: bool = False, change: Callable[[dict], None] | None = None) -> dict[str, TaskStatus]:
    """The tasks of a recorded run by name, after a change to its Workflow."""
    value = json.loads(recorded.manifest(name))
    if change:
        if packed := value["status"].pop("compressedNodes", None):
            value["status"]["nodes"] = json.loads(gzip.decompress(base64.b64decode(packed)))
        change(value)
    found, _, _ = task_states.of_workflow(STEPS, workflow.read(json.dumps(value)), canceled, NOW)
    return {task.name: task for task in found}


def node(value: dict, path: str) -> dict:
    """The node of this name under the Workflow's own."""
    full = f"{value['metadata']['name']}(0).{path}"
    return next(each for each in value["status"]["nodes"].values() if each["name"] == full)


def states(found: dict[str, TaskStatus]) -> dict[str, str]:
    return {name: task.state for name, task in found.items()}


def test_the_steps_come_in_the_order_of_the_dag_and_only_loops_are_looped() -> None:
    assert [step.name for step in STEPS] == NAMES
    assert {step.name for step in STEPS if step.looped} == LOOPS


def test_a_run_whose_nodes_argo_compressed_is_told_to_its_end() -> None:
    found = tasks(recorded.SUCCEEDED)
    assert list(found) == NAMES
    assert set(states(found).values()) == {"SUCCEEDED"}
    assert {name for name, task in found.items() if task.done is not None} == LOOPS
    assert {(found[name].done, found[name].total) for name in LOOPS} == {(2, 2)}
    assert found["train"].seconds == 106
    assert found["sample trained: shards"].row()[2:4] == ("4 min 12 s", "2/2")
    assert {task.tries for task in found.values()} == {1}


def test_kfps_own_details_of_that_run_stopped_before_its_end() -> None:
    details = recorded.answer(recorded.SUCCEEDED)["run_details"]["task_details"]
    found = {task.name: task for task in task_states.of_details(STEPS, details, NOW)}
    assert list(found) == NAMES
    assert found["sample trained: shards"].state == "WAITING"  # frozen there; why the workflow is what is read
    assert found["train"].seconds == 106


def test_a_task_that_is_not_over_has_taken_its_time_until_now() -> None:
    details = recorded.answer(recorded.RUNNING)["run_details"]["task_details"]
    found = {task.name: task for task in task_states.of_details(STEPS, details, NOW)}
    assert next(each["end_time"] for each in details if each["display_name"] == "train") == "0001-01-01T00:00:00Z"
    assert (found["train"].state, found["train"].seconds) == ("RUNNING", 14 * 60 + 7)
    assert all(task.seconds is None or task.seconds >= 0 for task in found.values())
    assert (found["encode: shards"].done, found["report"].state) == (2, "WAITING")


def test_a_step_that_failed_and_what_was_left_out_for_it() -> None:
    found = tasks(recorded.FAILED_STEP)
    assert list(found) == NAMES
    failed = found["encode: shards"]
    assert (failed.state, failed.done, failed.total, failed.tries, failed.reason) == ("FAILED", 0, 1, 1, "exit code 1")
    assert [pod.name for pod in failed.pods if not pod.driver] == [
        "latte-train-and-evaluate-sfcwk-system-container-impl-3461973333"
    ]
    assert failed.pods[-1].log_uri.endswith("/encode-shards/fccf82cf-f872-4879-a3ff-1eb3fd773624/executor-logs-0")
    after = NAMES[NAMES.index("encode: merge") :]
    assert {(found[name].state, found[name].seconds) for name in after} == {("SKIPPED", None)}


def test_the_names_of_pods_are_those_that_argo_tells_of_its_archive() -> None:
    value = json.loads(recorded.manifest(recorded.FAILED_STEP))
    keys = {
        each["outputs"]["artifacts"][0]["s3"]["key"].split("/")[-2]
        for each in value["status"]["nodes"].values()
        if each["type"] == "Pod"
    }
    assert {each.pod for each in workflow.read(json.dumps(value)).nodes if each.pod} == keys
    value["metadata"]["annotations"] = {"workflows.argoproj.io/pod-name-format": "v1"}
    ids = {key for key, each in value["status"]["nodes"].items() if each["type"] == "Pod"}
    assert {each.pod for each in workflow.read(json.dumps(value)).nodes if each.pod} == ids


def test_a_run_that_was_stopped_says_so_of_what_was_under_way() -> None:
    found = tasks(recorded.TERMINATED, canceled=True)
    under_way = {name: task.reason for name, task in found.items() if task.state == "CANCELED"}
    assert under_way == {"sample trained: shards": "stopped", "sample untrained: shards": "stopped"}
    assert (found["train"].state, found["report"].state) == ("SUCCEEDED", "SKIPPED")
    assert workflow.read(recorded.manifest(recorded.TERMINATED)).stopped
    assert not workflow.read(recorded.manifest(recorded.SUCCEEDED)).stopped


def test_a_run_that_no_pod_of_was_let_start_has_its_reason() -> None:
    found, reason, pods = task_states.of_workflow(
        STEPS, workflow.read(recorded.manifest(recorded.NO_ACCOUNT)), False, NOW
    )
    assert reason == (
        "no service account latte-runner in namespace kubeflow; apply manifests/ there, or set KFP_SERVICE_ACCOUNT"
    )
    assert {task.state for task in found} == {"WAITING"}
    assert len(pods) == 9


# What Kubernetes says of a pod, and how Argo puts it into a node's message (getPendingReason, inferFailedReason).
MESSAGES = [
    ("Pending", "Unschedulable: 0/3 nodes are available: 3 Insufficient huawei.com/Ascend910.",
     "PENDING", "no node fits: 0/3 nodes are available: 3 Insufficient huawei.com/Ascend910.; change cluster"),
    ("Pending", 'ImagePullBackOff: Back-off pulling image "registry.example.com/latte:7"',
     "PENDING", 'image not pulled: Back-off pulling image "registry.example.com/latte:7"; check --image and'),
    ("Pending", "ErrImagePull: failed to resolve reference: 401 Unauthorized",
     "PENDING", "image not pulled: failed to resolve reference: 401 Unauthorized; check"),
    ("Pending", 'CreateContainerConfigError: secret "latte-s3" not found',
     "PENDING", 'cannot be made: secret "latte-s3" not found; make the secret from manifests/secret.template.yaml'),
    ("Pending", "ContainerCreating", "PENDING", ""),
    ("Failed", "main: OOMKilled (exit code 137)", "FAILED", "out of memory (OOMKilled); raise memory in the section"),
    ("Failed", "OOMKilled (exit code 1)", "FAILED", "out of memory"),
    ("Failed", "The node was low on resource: ephemeral-storage.", "FAILED", "The node was low on resource"),
    ("Failed", "Pod was active on the node longer than the specified deadline", "FAILED", "raise it in the section"),
    ("Failed", "pod deleted", "FAILED", "its pod was deleted; latte-pipeline retry"),
    ("Error", 'pods "x" is forbidden: exceeded quota: npus, requested: requests.huawei.com/Ascend910=8, used: …=8',
     "FAILED", "over the namespace's quota (npus, requested: requests.huawei.com/Ascend910=8"),
    ("Error", 'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
     "FAILED", 'Pod Security: "restricted:latest": runAsNonRoot != true; label the namespace'),
    ("Error", 'pods "x" is forbidden: error looking up service account team/latte-runner: serviceaccount '
     '"latte-runner" not found', "FAILED", "no service account latte-runner in namespace team"),
    ("Failed", "main: Error (exit code 2)", "FAILED", "exit code 2"),
    ("Failed", "first\nsecond\x1b[2J line", "FAILED", "first second line"),
]  # fmt: skip


@pytest.mark.parametrize(("phase", "message", "state", "reason"), MESSAGES, ids=[each[1][:30] for each in MESSAGES])
def test_why_a_pod_does_not_go_on_is_one_line(phase: str, message: str, state: str, reason: str) -> None:
    def change(value: dict) -> None:
        node(value, f"{SHARDS}.executor(0)").update(phase=phase, message=message)
        for path in (f"{SHARDS}.executor", SHARDS, SHARDS[:-3]):
            node(value, path).update(phase="Running" if phase == "Pending" else phase)

    found = tasks(recorded.FAILED_STEP, change=change)["encode: shards"]
    assert found.state == state
    assert reason in found.reason if reason else found.reason == ""
    assert "\n" not in found.reason and "\x1b" not in found.reason


def test_tries_are_counted_and_the_newest_decides() -> None:
    def change(value: dict) -> None:
        first = node(value, f"{SHARDS}.executor(0)")
        again = json.loads(json.dumps(first)) | {
            "id": f"{value['metadata']['name']}-7", "name": first["name"][:-3] + "(1)", "phase": "Running",
            "message": "", "startedAt": "2026-11-27T13:59:30Z", "finishedAt": None,
        }  # fmt: skip
        value["status"]["nodes"][again["id"]] = again
        for path in (f"{SHARDS}.executor", SHARDS, SHARDS[:-3]):
            node(value, path).update(phase="Running", finishedAt=None)

    found = tasks(recorded.FAILED_STEP, change=change)["encode: shards"]
    assert (found.state, found.tries, found.reason) == ("RUNNING", 2, "")
    steps = [pod for pod in found.pods if not pod.driver]
    assert [(pod.attempt, pod.state, pod.log_uri[-2:]) for pod in steps] == [(1, "FAILED", "-0"), (2, "RUNNING", "-1")]


def test_a_task_that_kfps_cache_answered() -> None:
    def change(value: dict) -> None:
        parameters = node(value, "root(0).convert-driver(0)")["outputs"]["parameters"]
        next(each for each in parameters if each["name"] == "cached-decision")["value"] = "true"
        nodes = value["status"]["nodes"]
        for path in ("root(0).convert(0).executor(0)", "root(0).convert(0).executor"):
            gone = node(value, path)
            del nodes[gone["id"]]
        gone |= {"type": "Skipped", "phase": "Skipped", "message": "when 'true != true' evaluated false"}
        nodes[gone["id"]] = gone

    found = tasks(recorded.FAILED_STEP, change=change)
    assert (found["convert vae"].state, found["convert i3d"].state) == ("CACHED", "SUCCEEDED")


def test_a_loop_of_thirty_two_of_which_twelve_are_done() -> None:
    def change(value: dict) -> None:
        nodes = value["status"]["nodes"]
        driver = node(value, "root(0).for-loop-1(0).iteration-driver(0)")
        next(each for each in driver["outputs"]["parameters"] if each["name"] == "iteration-count")["value"] = "32"
        of_one = [each for each in nodes.values() if ".iteration-iterations(0:0)" in each["name"]]
        for number in range(14):
            for each in of_one:
                name = each["name"].replace("(0:0)", f"({number}:{number})")
                running = {"phase": "Running", "finishedAt": None, "message": ""}
                done = {"phase": "Succeeded", "message": ""}
                copy = {**each, "id": f"{each['id']}{number}", "name": name, **(done if number < 12 else running)}
                nodes[copy["id"]] = copy
        for each in of_one:
            del nodes[each["id"]]
        for each in nodes.values():
            if each["phase"] == "Failed":
                each.update(phase="Running")

    found = tasks(recorded.FAILED_STEP, change=change)["encode: shards"]
    assert (found.state, found.row()[3]) == ("RUNNING", "12/32")


@pytest.mark.parametrize("begun", [True, False], ids=["another item has begun", "no item has begun"])
def test_an_item_of_a_loop_whose_driver_failed_fails_the_task(begun: bool) -> None:
    def change(value: dict) -> None:
        driver = node(value, "root(0).for-loop-1(0).iteration-iterations(0:0)(0).iteration-item-driver(0)")
        other = {**driver, "id": "wf-9", "name": driver["name"].replace("(0:0)", "(1:1)"), "phase": "Failed"}
        other |= {"message": "main: OOMKilled (exit code 137)"}
        nodes = value["status"]["nodes"]
        nodes["wf-9"] = other
        for key, each in list(nodes.items()):
            if ".encode-shards" in each["name"]:
                if begun:
                    each.update(phase="Running", message="")
                else:
                    del nodes[key]
            elif each["name"].endswith(("for-loop-1", "for-loop-1(0)")):
                each.update(phase="Running")

    found = tasks(recorded.FAILED_STEP, change=change)["encode: shards"]
    assert found.state == "FAILED"
    assert found.reason.startswith("out of memory (OOMKilled)")


def test_a_run_whose_pipeline_is_gone_is_told_by_kfps_names() -> None:
    found, _, _ = task_states.of_workflow((), workflow.read(recorded.manifest(recorded.SUCCEEDED)), False, NOW)
    assert len(found) == len(NAMES)
    assert {task.state for task in found} == {"SUCCEEDED"}
    assert found[-1].name == "report"
    assert {task.name: task.done for task in found}["encode-shards"] == 2


def packed(nodes: Any) -> str:
    return base64.b64encode(gzip.compress(json.dumps(nodes).encode())).decode()


BAD = {
    "no JSON": "{",
    "no object": "[]",
    "no status": "{}",
    "deep": '{"a":' * 5000,
    "nodes not base64": json.dumps({"status": {"compressedNodes": "§§"}}),
    "nodes not gzip": json.dumps({"status": {"compressedNodes": base64.b64encode(b"nothing").decode()}}),
    "nodes cut off": json.dumps({"status": {"compressedNodes": packed({"a": {}})[:20]}}),
    "nodes a number": json.dumps({"status": {"compressedNodes": 7}}),
    "nodes no JSON": json.dumps({"status": {"compressedNodes": base64.b64encode(gzip.compress(b"{")).decode()}}),
}


@pytest.mark.parametrize("manifest", BAD.values(), ids=BAD)
def test_a_workflow_that_cannot_be_read_is_one_line(manifest: str) -> None:
    with pytest.raises(LatteError) as caught:
        workflow.read(manifest)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("the workflow")


def test_nodes_that_unpack_to_more_than_any_workflow_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "_MOST_BYTES", 1 << 20)
    bomb = base64.b64encode(gzip.compress(b" " * (16 << 20))).decode()
    with pytest.raises(LatteError, match="more than 1 MB"):
        workflow.read(json.dumps({"status": {"compressedNodes": bomb}}))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PATHS = st.sampled_from(
    ["", "(0)", "(0).root(0)", "(0).root(0).train", "(0).root(0).train(0).executor(1)", "(0).root(0).train-driver(0)",
     "(0).root(0).for-loop-1(0).iteration-driver(0)", f"(0).{SHARDS}", f"(0).{SHARDS}.executor(0)", "((", ".",
     "(0).root-driver(0)", "(0).root(0).two\nlines(0).executor(0)"]
)  # fmt: skip
NODES = st.dictionaries(
    st.text(max_size=5),
    ANYTHING
    | st.fixed_dictionaries(
        {},
        optional={
            "id": st.just("wf-1") | ANYTHING,
            "name": PATHS.map(lambda path: f"wf{path}") | ANYTHING,
            "type": st.sampled_from(["Pod", "Retry", "DAG", "Skipped"]) | ANYTHING,
            "phase": st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Error", "Omitted"]) | ANYTHING,
            "templateName": st.text(max_size=5) | ANYTHING,
            "message": st.text(max_size=20) | ANYTHING,
            "startedAt": st.datetimes().map(lambda at: f"{at.isoformat()}Z") | ANYTHING,
            "finishedAt": st.datetimes().map(lambda at: f"{at.isoformat()}+14:00") | ANYTHING,
            "children": st.lists(st.just("wf-1")) | ANYTHING,
            "boundaryID": st.just("wf-1") | ANYTHING,
            "inputs": ANYTHING,
            "outputs": st.fixed_dictionaries({"exitCode": ANYTHING, "parameters": ANYTHING}) | ANYTHING,
        },
    ),
    max_size=8,
)


@settings(max_examples=300, deadline=None)
@given(nodes=NODES, packed_=st.booleans(), rest=ANYTHING, canceled=st.booleans(), known=st.booleans())
def test_any_workflow_is_told_or_is_one_line(
    nodes: dict, packed_: bool, rest: Any, canceled: bool, known: bool
) -> None:
    status = {"compressedNodes": packed(nodes)} if packed_ else {"nodes": nodes}
    value = {
        "metadata": {"name": "wf", "annotations": rest, "uid": rest},
        "spec": rest,
        "status": {**status, "message": rest},
    }
    found, reason, _ = task_states.of_workflow(STEPS if known else (), workflow.read(json.dumps(value)), canceled, NOW)
    if known:
        assert [task.name for task in found] == NAMES
    for line in [reason, *(cell for task in found for cell in task.row())]:
        assert len(line.splitlines()) <= 1
        line.encode()


@settings(max_examples=200, deadline=None)
@given(
    spec=ANYTHING
    | st.fixed_dictionaries(
        {
            "root": ANYTHING | st.just({"dag": {"tasks": {"a": {"componentRef": {"name": "x"}}}}}),
            "components": ANYTHING
            | st.dictionaries(
                st.sampled_from("xy"),
                st.fixed_dictionaries(
                    {
                        "dag": st.fixed_dictionaries(
                            {
                                "tasks": st.dictionaries(
                                    st.sampled_from("ab"),
                                    st.fixed_dictionaries(
                                        {
                                            "componentRef": st.sampled_from("xyz").map(lambda name: {"name": name}),
                                            "dependentTasks": st.lists(st.sampled_from("abc")),
                                        }
                                    )
                                    | ANYTHING,
                                )
                            }
                        )
                    }
                ),
            ),
        }
    )
)
def test_any_specification_has_steps_or_none(spec: Any) -> None:
    """Tasks in a circle and components inside themselves among them."""
    paths = [step.path for step in dag.steps(spec)]
    assert len(set(paths)) == len(paths)


@given(
    st.text(max_size=30) | st.datetimes(timezones=st.just(datetime.timezone(datetime.timedelta(hours=14)))) | ANYTHING
)
def test_any_time_is_in_utc_or_none(value: Any) -> None:
    found = time_of(value)
    assert found is None or (found.tzinfo is datetime.UTC and found.year >= 1970)


def test_durations_as_people_say_them() -> None:
    assert [duration(each) for each in (None, 0, 59.4, 59.6, 61, 3600, 26 * 3600 + 59)] == [
        "", "0 s", "59 s", "1 min 00 s", "1 min 01 s", "1 h 00 min", "26 h 00 min"
    ]  # fmt: skip
