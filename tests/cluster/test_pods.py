"""Pods on a real node: what a kubelet says of those that fail or wait, and what we make of it in one line."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipelines import reasons
from tests.cluster.control_plane import NODE, ControlPlane
from tests.cluster.launching_namespace import SECURITY
from tests.cluster.node import BUSYBOX, Node
from tests.cluster.objects import SECRET
from tests.launching import until
from tests.unit.pipelines.test_manifests import MANIFESTS

NAMESPACE = "latte"


@pytest.fixture(scope="module")
def restricted(cluster: ControlPlane, node: Node) -> ControlPlane:
    """The multi-user overlay applied: only restricted pods are let in."""
    cluster.kubectl("apply", "-k", MANIFESTS / "overlays/multi-user")
    return cluster


@pytest.fixture
def start(restricted: ControlPlane) -> Iterator[Callable[..., str]]:
    """Makes a pod that runs a shell script, restricted; returns its name."""
    made = []

    def start(script: str = "sleep 600", _pod: dict[str, Any] | None = None, **container: Any) -> str:
        name = f"step-{uuid.uuid4().hex[:8]}"
        whole = {"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script], "securityContext": SECURITY}
        spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [{**whole, **container}]}
        kind = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}}
        restricted.apply({**kind, "spec": {**spec, **(_pod or {})}})
        made.append(name)
        return name

    yield start
    restricted.kubectl("delete", "pods", *made, "-n", NAMESPACE, "--grace-period=0", "--force", "--ignore-not-found")


def status(cluster: ControlPlane, name: str) -> dict[str, Any]:
    return dict(cluster.get("pod", name, "-n", NAMESPACE)["status"])


def as_argo_says(status: dict[str, Any]) -> str:
    """A node's message as Argo 4 makes it of its pod's status (workflow/controller/operator.go, getPendingReason and
    inferFailedReason); "" of a pod that it says nothing of."""
    if status.get("phase") == "Pending":
        for condition in status.get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return f"{condition.get('reason', '')}: {condition.get('message', '')}"
        for container in status.get("containerStatuses", []):
            if waiting := container["state"].get("waiting"):
                return ": ".join(part for part in (waiting["reason"], waiting.get("message")) if part)
    if status.get("phase") == "Failed" and status.get("message"):
        return str(status["message"])
    for container in status.get("containerStatuses", []):
        ended = container["state"].get("terminated")
        if ended and ended["exitCode"]:
            return f"{ended['reason']} (exit code {ended['exitCode']})"
    return ""


def said(cluster: ControlPlane, name: str, beginning: str) -> str:
    """What our users are told of the pod, once it begins like this."""
    told: list[str] = []

    def there() -> bool:
        now = status(cluster, name)
        told.append(reasons.explained(as_argo_says(now)))
        return told[-1].startswith(beginning)

    try:
        until(there, 60)
    except AssertionError:
        raise AssertionError(f"{told[-1]!r}: {json.dumps(status(cluster, name))}") from None
    assert "\n" not in told[-1]
    return told[-1]


def log(cluster: ControlPlane, name: str) -> str:
    until(lambda: status(cluster, name)["phase"] in ("Succeeded", "Failed"), 60)
    return cluster.kubectl("logs", name, "-n", NAMESPACE).stdout


def test_a_restricted_pod_runs_as_nobody_on_a_read_only_file_system(
    restricted: ControlPlane, start: Callable[..., str]
) -> None:
    security = {**SECURITY, "readOnlyRootFilesystem": True}
    name = start("id -u; touch /x 2>/dev/null || echo read-only; cat /proc/self/status", securityContext=security)
    lines = log(restricted, name).splitlines()
    assert lines[:2] == ["10001", "read-only"]
    facts = dict(line.split(":\t") for line in lines if ":\t" in line)
    assert (int(facts["CapEff"], 16), facts["NoNewPrivs"], facts["Seccomp"]) == (0, "1", "2")
    # An image whose user is root, and none said otherwise.
    root = start(securityContext={key: value for key, value in SECURITY.items() if key != "runAsUser"})
    assert "container has runAsNonRoot and image will run as root" in said(restricted, root, "its container cannot be")


def test_an_image_that_cannot_be_pulled(restricted: ControlPlane, start: Callable[..., str]) -> None:
    name = start(image="127.0.0.1:1/latte-pipelines:none")
    told = said(restricted, name, "image not pulled: ")
    assert "127.0.0.1:1/latte-pipelines:none" in told
    assert told.endswith("; check --image and cluster.image_pull_secrets")
    # It stays so: the kubelet tries again and says it in other words.
    until(lambda: "ImagePullBackOff" in json.dumps(status(restricted, name)), 60)
    assert said(restricted, name, "image not pulled: ").endswith("; check --image and cluster.image_pull_secrets")


def test_a_pod_that_no_node_can_take(restricted: ControlPlane, start: Callable[..., str]) -> None:
    npus = {"huawei.com/Ascend910": "8"}
    told = said(restricted, start(resources={"limits": npus}), "no node fits: ")
    assert "0/1 nodes are available: 1 Insufficient huawei.com/Ascend910." in told
    assert "change cluster.*.cpu, memory, accelerator, node_selector or tolerations" in told
    told = said(restricted, start(_pod={"nodeSelector": {"accelerator-type": "module-910b-8"}}), "no node fits: ")
    assert "didn't match Pod's node affinity/selector" in told
    told = said(restricted, start(resources={"requests": {"memory": "900Ti"}}), "no node fits: ")
    assert "Insufficient memory" in told


def test_a_step_that_needs_more_memory_than_it_was_given(restricted: ControlPlane, start: Callable[..., str]) -> None:
    name = start("exec tail /dev/zero", resources={"limits": {"memory": "24Mi"}})
    assert said(restricted, name, "out of memory").startswith("out of memory (OOMKilled); raise memory in the section")


def test_a_step_that_takes_longer_than_it_may(restricted: ControlPlane, start: Callable[..., str]) -> None:
    name = start(_pod={"activeDeadlineSeconds": 1})
    assert said(restricted, name, "longer than its deadline_s") == (
        "longer than its deadline_s; raise it in the section cluster"
    )


def keys(value: str) -> dict[str, Any]:
    metadata = {"name": "latte-s3", "namespace": NAMESPACE}
    return {**SECRET, "metadata": metadata, "stringData": {**SECRET["stringData"], "AWS_SECRET_ACCESS_KEY": value}}


def test_a_secret_that_is_missing_made_and_rotated(restricted: ControlPlane, start: Callable[..., str]) -> None:
    restricted.kubectl("delete", "secret", "latte-s3", "-n", NAMESPACE, "--ignore-not-found")
    reference = {"secretKeyRef": {"name": "latte-s3", "key": "AWS_SECRET_ACCESS_KEY"}}
    env = [{"name": "KEY", "valueFrom": reference}]
    script = "echo $KEY; while [ ! -f /tmp/on ]; do sleep 0.1; done; echo $KEY"
    scratch = {"volumes": [{"name": "tmp", "emptyDir": {}}]}
    mounted = [{"name": "tmp", "mountPath": "/tmp"}]
    first = start(script, _pod=scratch, env=env, volumeMounts=mounted)
    told = said(restricted, first, "its container cannot be made: ")
    assert told == (
        'its container cannot be made: secret "latte-s3" not found; make the secret from manifests/secret.template.yaml'
    )
    # Once it is there the pod goes on by itself.
    restricted.apply(keys("old"))
    until(lambda: status(restricted, first)["phase"] == "Running", 60)
    restricted.apply(keys("new"))
    # Who runs keeps what it was started with; who comes after it, and a step that is tried again, has the new one.
    second = start("echo $KEY", env=env)
    assert log(restricted, second) == "new\n"
    restricted.kubectl("exec", first, "-n", NAMESPACE, "--", "touch", "/tmp/on")
    assert log(restricted, first) == "old\nold\n"
    # A key that the secret lacks.
    restricted.kubectl("patch", "secret/latte-s3", "-n", NAMESPACE, "-p", '{"data": {"AWS_SECRET_ACCESS_KEY": null}}')
    told = said(restricted, start(env=env), "its container cannot be made: couldn't find key AWS_SECRET_ACCESS_KEY")
    assert told.endswith("; make the secret from manifests/secret.template.yaml")


def test_a_node_that_is_drained_ends_its_pods_and_takes_no_more(
    restricted: ControlPlane, start: Callable[..., str]
) -> None:
    name = start("trap 'echo asked to stop; exit 143' TERM; while true; do sleep 0.1; done",
                 _pod={"terminationGracePeriodSeconds": 10})  # fmt: skip
    until(lambda: status(restricted, name)["phase"] == "Running", 60)
    time.sleep(0.5)
    restricted.kubectl("drain", NODE, "--force", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s")
    try:
        gone = restricted.kubectl("get", "pod", name, "-n", NAMESPACE, fails=True)
        assert "not found" in gone.stderr, "to Argo: pod deleted"
        told = said(restricted, start(), "no node fits: ")
        assert "1 node(s) were unschedulable" in told
    finally:
        restricted.kubectl("uncordon", NODE)
    assert reasons.explained("pod deleted") == "its pod was deleted; latte-pipeline retry goes on from there"
