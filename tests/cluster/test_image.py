"""The real image on a real node: restricted pods that work in a bucket, run out of memory, and end with a lease."""

import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from components.placement import Launch, Pod, Volcano
from components.volcano import job as jobs
from components.volcano import lease, worker
from components.work import Work
from pipelines.store import BUCKET, Store
from tests.cluster.control_plane import ControlPlane
from tests.cluster.launching_namespace import NAME, LaunchingNamespace
from tests.cluster.node import ADDRESS, Node
from tests.cluster.objects import SECRET
from tests.cluster.relay import relay
from tests.e2e.test_containers import build
from tests.launching import Waiting, start_step, until

LEASE_S = 20
# Two nodes that train together; each waits for the first one, whose name is none that anybody could know. A step begins
# when it is told to: how long a busy machine takes to import is not looked at here.
TRAIN = """
import kubernetes, sys
from components.runtime import run_step
sys.stdin.readline()
wired = {"root": ROOT, "name": "m", "latents": "file:///nowhere/manifest.json"}
run_step("train", "train", {"workers": 2, "batch_size": 2}, wired)
"""


@pytest.fixture(scope="session")
def image(node: Node) -> str:
    """An image of this working tree on the node."""
    docker = os.environ.get("DOCKER", "docker")
    if subprocess.run([docker, "version"], capture_output=True).returncode:
        pytest.fail("no Docker daemon that could build the image; start one, or leave this file out")
    name = f"latte-pipelines:cluster-{uuid.uuid4().hex[:8]}"
    build(name)
    try:
        with subprocess.Popen([docker, "save", name], stdout=subprocess.PIPE) as saved:
            node.load(saved.stdout)
        assert saved.returncode == 0
    finally:
        subprocess.run([docker, "image", "rm", name], check=True, capture_output=True)
    return name


@pytest.fixture
def root(image: str, store: Store, there: LaunchingNamespace, cluster: ControlPlane) -> Iterator[str]:
    """A prefix in a bucket that pods reach with the namespace's secret."""
    port = urlsplit(store.endpoint).port
    assert port is not None
    with relay(ADDRESS, port) as open_port:
        given = {**store.environment, "AWS_ENDPOINT_URL_S3": f"http://{ADDRESS}:{open_port}"}
        keys = {key: given[key] for key in SECRET["stringData"]}
        cluster.apply({**SECRET, "metadata": {"name": "latte-s3", "namespace": NAME}, "stringData": keys})
        yield f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


def launch(image: str, nodes: int = 1) -> Launch:
    return Launch(image=image, pod=Pod(memory="2Gi"), volcano=Volcano(nodes=nodes, lease_s=LEASE_S))


def place(there: LaunchingNamespace, made: dict[str, Any], **changes: Any) -> list[str]:
    """The pods of a Job as Volcano makes them: the Job's template, its labels, and who each of them is."""
    name, (task,) = made["metadata"]["name"], made["spec"]["tasks"]
    pods = []
    for index in range(task["replicas"]):
        spec = json.loads(json.dumps(task["template"]["spec"])) | changes
        hosts = ",".join(f"{name}-{jobs.TASK}-{each}.{name}" for each in range(task["replicas"]))
        told = {"VC_TASK_INDEX": str(index), "VC_WORKER_HOSTS": hosts}
        (container,) = spec.pop("containers")
        container["env"] += [{"name": key, "value": value} for key, value in told.items()]
        pods.append(there.add_pod(name, index, container=container, **spec))
    return pods


def phase(there: LaunchingNamespace, pod: str) -> str:
    return str(there.core.read_namespaced_pod_status(pod, NAME).status.phase)


def code(there: LaunchingNamespace, pod: str) -> int:
    (container,) = there.core.read_namespaced_pod_status(pod, NAME).status.container_statuses
    return int(container.state.terminated.exit_code)


def test_a_launched_job_does_its_work_in_the_bucket_as_nobody(
    there: LaunchingNamespace, image: str, root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Work("promoted", "promoted", {}, {"root": root, "name": "m"}, "look_up")
    waiting = Waiting(work, launch(image))
    made = until(there.job, 30)
    (pod,) = place(there, made)
    there.set_phase(made["metadata"]["name"], "Running")
    until(lambda: phase(there, pod) in ("Succeeded", "Failed"), 120)
    said = there.core.read_namespaced_pod_log(pod, NAME)
    assert phase(there, pod) == "Succeeded", said
    there.set_phase(made["metadata"]["name"], "Completed")
    result = waiting.end()
    assert not isinstance(result, BaseException), result
    assert result.kind == "promoted"
    uri = made["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["command"][-1]
    assert worker.result_uri(uri.rsplit("/", 1)[0], 0).startswith(f"{root}/launched/")


def test_a_pod_of_the_image_is_nobody_and_writes_only_where_it_may(
    there: LaunchingNamespace, image: str, root: str
) -> None:
    job = jobs.build(launch(image), f"{root}/none/work.json", 1, True, "looked-at", there.workflow)
    spec = job["spec"]["tasks"][0]["template"]["spec"]
    (container,) = spec.pop("containers")
    script = (
        "id -u; touch /opt/latte/x 2>&1; touch /dev/shm/x /tmp/x && echo written; ls /var/run/secrets 2>&1; "
        f"python3 -c \"from latte.steps import hello; hello.run(hello.HelloConfig(root='{root}'))\" && echo greeted"
    )
    pod = there.add_pod("looked-at", 0, container={**container, "command": ["sh", "-c", script]}, **spec)
    try:
        until(lambda: phase(there, pod) in ("Succeeded", "Failed"), 120)
        lines = there.core.read_namespaced_pod_log(pod, NAME).splitlines()
    finally:
        there.core.delete_namespaced_pod(pod, NAME, grace_period_seconds=0)
    assert lines[0] == "10001"
    assert "Read-only file system" in lines[1]
    assert lines[2] == "written"
    assert "No such file" in lines[3], "no token of an account"
    assert lines[-1] == "greeted", lines


def test_a_launched_job_that_runs_out_of_memory_says_so(there: LaunchingNamespace, image: str, root: str) -> None:
    work = Work("promoted", "promoted", {}, {"root": root, "name": "m"}, "look_up")
    waiting = Waiting(work, launch(image).model_copy(update={"pod": Pod(memory="16Mi")}))
    made = until(there.job, 30)
    (pod,) = place(there, made)
    until(lambda: phase(there, pod) == "Failed", 120)
    there.set_phase(made["metadata"]["name"], "Failed")
    assert f"Failed ({pod} with code 137, OOMKilled)" in str(waiting.end())


def begin(step: "subprocess.Popen[str]") -> None:
    assert step.stdin is not None
    step.stdin.write("\n")
    step.stdin.flush()


def test_pods_of_a_step_that_was_killed_end_within_the_lease_and_an_adopting_one_keeps_them(
    there: LaunchingNamespace, image: str, root: str, store: Store
) -> None:
    environment = {**there.environment, **store.environment}
    first, second = steps = [start_step(root, environment, launch(image, nodes=2), TRAIN) for _ in range(2)]
    try:
        begin(first)
        made = until(there.job, 60)
        name, uid = made["metadata"]["name"], made["metadata"]["uid"]
        pods = place(there, made)
        there.set_phase(name, "Running")
        until(lambda: all(phase(there, pod) == "Running" for pod in pods), 60)
        first.kill()
        killed = time.monotonic()
        begin(second)
        time.sleep(max(0.0, killed + LEASE_S + 3 - time.monotonic()))
        assert [phase(there, pod) for pod in pods] == ["Running", "Running"], "renewed in time"
        assert there.job()["metadata"]["uid"] == uid, "no second one"
        second.kill()
        killed = time.monotonic()
        until(lambda: all(phase(there, pod) == "Failed" for pod in pods), 3 * LEASE_S)
        assert time.monotonic() - killed < LEASE_S + 10, "the devices are free"
    finally:
        for step in steps:
            step.kill()
    assert f"Volcano Job {name}: adopted from an earlier try of this step, Running" in second.communicate()[1]
    assert {code(there, pod) for pod in pods} == {lease.EXIT_CODE}
    log = there.core.read_namespaced_pod_log(pods[0], NAME)
    assert log.splitlines()[-1].startswith("error: ended without being done: the Job's lease ")
    first.communicate()
