"""A step that waits for a Volcano Job whose pods run on a real node: logs, ends, and why they do not start."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

from components.work import Work
from latte.errors import LatteError, UserError
from tests.cluster.control_plane import ControlPlane
from tests.cluster.launching_namespace import NAME, LaunchingNamespace
from tests.cluster.node import BUSYBOX, Node
from tests.launching import Waiting, done_by_hand, promoted, until

pytestmark = pytest.mark.usefixtures("node")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return promoted(tmp_path)


def running(script: str, **container: Any) -> dict[str, Any]:
    return {"image": BUSYBOX, "command": ["sh", "-c", script], **container}


def the_job(there: LaunchingNamespace) -> dict[str, Any]:
    return dict(until(there.job, 30))


def ended(there: LaunchingNamespace, pod: str) -> Any:
    def phase() -> Any:
        return there.core.read_namespaced_pod_status(pod, NAME).status.phase in ("Succeeded", "Failed")

    return until(phase, 60)


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        ("echo step 1; echo 'error: train: steps=1, ask for more'; exit 2", UserError, "steps=1, ask for more (pod "),
        ("echo step 1; echo 'error: train: disk full'; exit 1", LatteError, "train: disk full (pod "),
        ("for i in $(seq 99); do echo line $i; done; exit 7", LatteError, "with code 7); the ends of the logs:\n"),
        ("echo before; exec tail /dev/zero", LatteError, "with code 137, OOMKilled); the ends of the logs:\n"),
    ],
)
def test_a_failed_job_is_told_by_the_last_lines_of_its_pods(
    there: LaunchingNamespace, work: Work, script: str, kind: type[LatteError], said: str
) -> None:
    waiting = Waiting(work)
    name = the_job(there)["metadata"]["name"]
    pod = there.add_pod(name, 0, container=running(script, resources={"limits": {"memory": "24Mi"}}))
    ended(there, pod)
    there.set_phase(name, "Failed")
    error = waiting.end()
    assert type(error) is kind
    assert said in str(error)
    if "line" in script:
        assert str(error).splitlines()[1:] == [f"{pod}: line {i}" for i in range(85, 100)]


def test_logs_are_shown_once_each_over_a_new_start_of_the_api_server(
    there: LaunchingNamespace, work: Work, cluster: ControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = Waiting(work)
    made = the_job(there)
    name = made["metadata"]["name"]
    pod = there.add_pod(name, 0, container=running("for i in $(seq 40); do echo line $i; sleep 0.2; done"))
    there.set_phase(name, "Running")
    shown = ""

    def lines() -> list[str]:
        nonlocal shown
        shown += capsys.readouterr().err
        return [line for line in shown.splitlines() if line.startswith("line ")]

    until(lambda: len(lines()) >= 3, 60)
    cluster.stop_api_server()
    time.sleep(1)
    cluster.start_api_server()
    ended(there, pod)
    result = done_by_hand(made, work)
    there.set_phase(name, "Completed")
    assert waiting.end() == result
    assert lines() == [f"line {i}" for i in range(1, 41)]


def test_a_pod_that_does_not_start_is_told_with_its_reason(
    there: LaunchingNamespace, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = Waiting(work)
    made = the_job(there)
    name = made["metadata"]["name"]
    for index, container in enumerate(
        [
            {"image": "127.0.0.1:1/latte-pipelines:none"},
            running("true", resources={"limits": {"huawei.com/Ascend910": "8"}}),
            running("true", env=[{"name": "K", "valueFrom": {"secretKeyRef": {"name": "not-there", "key": "k"}}}]),
        ]
    ):
        there.add_pod(name, index, container=container)
    wanted = [
        rf"pod {name}-worker-0 waits: ErrImagePull: .*127\.0\.0\.1:1/latte-pipelines:none",
        rf"pod {name}-worker-1 waits: Unschedulable: 0/1 nodes are available: 1 Insufficient huawei\.com/Ascend910",
        rf"pod {name}-worker-2 waits: CreateContainerConfigError: secret \"not-there\" not found",
    ]
    shown = ""

    def all_told() -> bool:
        nonlocal shown
        shown += capsys.readouterr().err
        return all(re.search(pattern, shown) for pattern in wanted)

    until(all_told, 90)
    time.sleep(3)  # they are looked at again and again
    shown += capsys.readouterr().err
    for pattern in wanted:
        assert len(re.findall(pattern, shown)) == 1, "said once"
    done_by_hand(made, work)
    there.set_phase(name, "Completed")
    assert not isinstance(waiting.end(), BaseException)


def test_a_job_counts_whose_logs_may_not_be_read(
    there: LaunchingNamespace, work: Work, cluster: ControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    role = cluster.get("role", "latte-launcher", "-n", NAME)
    less = {**role, "rules": [rule for rule in role["rules"] if rule["resources"] != ["pods/log"]]}
    cluster.apply({key: value for key, value in less.items() if key != "status"})
    try:
        waiting = Waiting(work)
        made = the_job(there)
        name = made["metadata"]["name"]
        there.add_pod(name, 0, container=running("echo line"))
        shown = ""

        def refused() -> bool:
            nonlocal shown
            shown += capsys.readouterr().err
            return "no logs of" in shown

        until(refused, 60)
        result = done_by_hand(made, work)
        there.set_phase(name, "Completed")
        assert waiting.end() == result
        (line,) = [line for line in shown.splitlines() if line.startswith("no logs of")]
        assert 'cannot get resource "pods/log"' in line
        assert "latte-runner" in line
    finally:
        cluster.apply({**role, "metadata": {"name": "latte-launcher", "namespace": NAME}})


def test_a_node_that_is_drained_fails_the_job_s_pods_with_the_reason(
    there: LaunchingNamespace, work: Work, cluster: ControlPlane, node: Node
) -> None:
    waiting = Waiting(work)
    name = the_job(there)["metadata"]["name"]
    pod = there.add_pod(name, 0, container=running("echo at work; while true; do sleep 0.1; done"))
    until(lambda: there.core.read_namespaced_pod_status(pod, NAME).status.phase == "Running", 60)
    there.set_phase(name, "Running")
    time.sleep(1)
    # What the kubelet does when its machine runs out of something.
    there.core.create_namespaced_pod_eviction(pod, NAME, {"metadata": {"name": pod}})
    until(lambda: not there.core.list_namespaced_pod(NAME, label_selector=f"volcano.sh/job-name={name}").items, 60)
    there.set_phase(name, "Aborted", reason="PodEvicted", message=f"pod {pod} was evicted")
    error = waiting.end()
    assert type(error) is LatteError
    assert str(error) == f"Volcano Job {name}: Aborted; the ends of the logs:\n{pod}: at work"
