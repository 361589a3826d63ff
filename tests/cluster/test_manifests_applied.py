"""The overlays applied by kubectl to a real API server: what the steps' account may do, which pods are let in."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.placement import Launch, Pod, Volcano
from components.volcano import job
from pipelines import cluster as clusters
from pipelines import reasons
from tests.cluster.control_plane import ControlPlane
from tests.cluster.objects import SECRET, api_client, namespace_of_kfp
from tests.unit.pipelines.test_manifests import KINDS, MANIFESTS, with_all_that_is_offered

PRESETS = sorted((MANIFESTS.parent / "configs/clusters").glob("*.yaml"))
# Everybody's who is logged in: to ask what they may do.
_ASKING = {"selfsubjectaccessreviews", "selfsubjectreviews", "selfsubjectrulesreviews"}
RUNNER = {
    ("argoproj.io", "workflowtaskresults", "", "create"),
    ("argoproj.io", "workflowtaskresults", "", "patch"),
    ("", "configmaps", "kfp-launcher", "get"),
    ("", "secrets", "latte-s3", "get"),
    ("", "secrets", "mlpipeline-minio-artifact", "get"),
}
LAUNCHING = {("batch.volcano.sh", "jobs", "", verb) for verb in ("create", "get", "list", "watch", "delete")}
LAUNCHING |= {("", "pods", "", "get"), ("", "pods", "", "list"), ("", "pods/log", "", "get")}


@pytest.fixture(scope="module", params=[(kind, more) for kind in KINDS for more in (False, True)], ids=str)
def overlay(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cluster: ControlPlane
) -> Iterator[tuple[str, bool, Path]]:
    """An overlay on a cluster without the other ones: its kind, whether with all that it offers, its folder."""
    kind, more = request.param
    namespace_of_kfp(cluster)
    whole = with_all_that_is_offered(tmp_path_factory.mktemp("manifests"))
    folder = (whole if more else MANIFESTS) / "overlays" / kind
    cluster.kubectl("delete", "--ignore-not-found", "-k", whole / "overlays" / kind)  # another test's
    cluster.kubectl("apply", "--validate=strict", "-k", folder)
    yield kind, more, folder
    cluster.kubectl("delete", "--ignore-not-found", "-k", folder)


def may(cluster: ControlPlane, namespace: str, account: str) -> set[tuple[str, str, str, str]]:
    """All that an account may do in its namespace, as the API server itself tells it: group, resource, name, verb."""
    import kubernetes as k8s

    with api_client(cluster, account, cluster.token(namespace, account)) as client:
        asked = {"spec": {"namespace": namespace}}
        answer = k8s.client.AuthorizationV1Api(client).create_self_subject_rules_review(asked)
    assert not answer.status.incomplete or "node" in (answer.status.evaluation_error or "")
    return {
        (group, resource, name, verb)
        for rule in answer.status.resource_rules
        for group in rule.api_groups
        for resource in rule.resources
        for name in rule.resource_names or [""]
        for verb in rule.verbs
        if resource not in _ASKING
    }


def test_the_account_of_the_steps_may_do_what_it_has_to_and_nothing_else(
    cluster: ControlPlane, overlay: tuple[str, bool, Path]
) -> None:
    kind, more, folder = overlay
    assert may(cluster, KINDS[kind], "latte-runner") == RUNNER | (LAUNCHING if more else set())
    # The account that everybody has may still do nothing.
    assert may(cluster, KINDS[kind], "default") == set()
    again = cluster.kubectl("apply", "-k", folder).stdout
    assert [line for line in again.splitlines() if not line.endswith(" unchanged")] == []


def test_the_account_reads_its_own_secret_and_no_other(cluster: ControlPlane, overlay: tuple[str, bool, Path]) -> None:
    import kubernetes as k8s

    namespace = KINDS[overlay[0]]
    cluster.kubectl("apply", "-n", namespace, "-f", MANIFESTS / "secret.template.yaml")
    cluster.apply({**SECRET, "metadata": {"name": "another", "namespace": namespace}})
    with api_client(cluster, "runner", cluster.token(namespace, "latte-runner")) as client:
        core = k8s.client.CoreV1Api(client)
        assert set(core.read_namespaced_secret("latte-s3", namespace).data) == set(SECRET["stringData"])
        for forbidden in (
            lambda: core.read_namespaced_secret("another", namespace),
            lambda: core.list_namespaced_secret(namespace),
            lambda: core.list_namespaced_config_map(namespace),
            lambda: core.create_namespaced_pod(namespace, {"metadata": {"name": "x"}, "spec": {"containers": []}}),
            lambda: core.read_namespaced_secret("latte-s3", "default"),
        ):
            with pytest.raises(k8s.client.ApiException) as refused:
                forbidden()
            assert refused.value.status == 403


def test_nothing_of_kfp_s_own_is_touched(cluster: ControlPlane, overlay: tuple[str, bool, Path]) -> None:
    kind, _, folder = overlay
    own = ("namespace/kubeflow", "-n kubeflow configmap/kfp-launcher", "-n kubeflow service/ml-pipeline")
    before = [cluster.get(*each.split())["metadata"]["resourceVersion"] for each in own]
    cluster.kubectl("delete", "-k", folder)
    # With the namespace of many users goes all that was in it; on a standalone installation KFP stays.
    cluster.kubectl("apply", "-k", folder)
    assert [cluster.get(*each.split())["metadata"]["resourceVersion"] for each in own] == before
    assert ("pod-security.kubernetes.io/enforce" in labels(cluster, KINDS[kind])) == (kind == "multi-user")


def labels(cluster: ControlPlane, namespace: str) -> dict[str, str]:
    return dict(cluster.get("namespace", namespace)["metadata"]["labels"])


def pod(**spec: Any) -> dict[str, Any]:
    """One that "restricted" takes, but for what is changed of its container or, with a `_` before it, of the pod."""
    security = {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}
    security["seccompProfile"] = {"type": "RuntimeDefault"}
    ours = {key: value for key, value in spec.items() if not key.startswith("_")}
    container = {"name": "main", "image": "latte-pipelines", "securityContext": {**security, **ours}}
    others = {key[1:]: value for key, value in spec.items() if key.startswith("_")}
    kind: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "looked-at", "namespace": "latte"}}
    return kind | {"spec": {"containers": [container], "restartPolicy": "Never", **others}}


def asked(cluster: ControlPlane, document: dict[str, Any], fails: bool = False) -> "subprocess.CompletedProcess[str]":
    """What the API server says to an object, which it does not keep."""
    given = yaml.safe_dump(document)
    return cluster.kubectl("create", "--dry-run=server", "-f", "-", given=given, fails=fails)


@pytest.mark.parametrize("overlay", [("multi-user", True)], indirect=True)
def test_pods_that_are_root_or_reach_for_the_machine_are_refused_and_the_reason_is_told(
    cluster: ControlPlane, overlay: tuple[str, bool, Path]
) -> None:
    asked(cluster, pod())
    path = [{"name": "all", "hostPath": {"path": "/"}}]
    for wrong, word in [
        (pod(runAsUser=0), "runAsUser=0"),
        (pod(runAsNonRoot=False), "runAsNonRoot != true"),
        (pod(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}), "unrestricted capabilities"),
        (pod(allowPrivilegeEscalation=True), "allowPrivilegeEscalation != false"),
        (pod(seccompProfile={"type": "Unconfined"}), "seccompProfile"),
        (pod(_hostNetwork=True), "host namespaces"),
        (pod(_volumes=path), "restricted volume types"),
    ]:
        said = asked(cluster, wrong, fails=True).stderr
        assert 'violates PodSecurity "restricted:latest"' in said
        assert word in said
        told = reasons.explained(said)
        assert told.startswith("not allowed by the namespace's Pod Security: ")
        assert word in told
        assert "\n" not in told


@pytest.mark.parametrize("overlay", [("multi-user", True)], indirect=True)
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_the_pods_of_launched_jobs_are_let_in(
    cluster: ControlPlane, overlay: tuple[str, bool, Path], preset: Path
) -> None:
    settings = clusters.load(preset)
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run", "uid": "u"}
    for step in clusters.HEAVY:
        placed = settings.of(step)
        launch = Launch(
            image="latte-pipelines",
            pod=Pod(**placed.model_dump(include=set(Pod.model_fields))),
            volcano=placed.volcano or Volcano(),
            accelerator=placed.accelerator,
        )
        made = job.build(launch, "s3://bucket/x/work.json", 2, True, step, owner)
        made["metadata"]["namespace"] = "latte"
        asked(cluster, made)
        template = made["spec"]["tasks"][0]["template"]
        asked(cluster, {**pod(), "spec": template["spec"]})


@pytest.mark.parametrize("overlay", [("multi-user", True)], indirect=True)
def test_a_quota_that_is_used_up_refuses_a_pod_and_the_reason_is_told(
    cluster: ControlPlane, overlay: tuple[str, bool, Path]
) -> None:
    # Definitions that come and go make the quota controller rest, up to its period of 30 s at a time.
    cluster.kubectl("wait", "-n", "latte", "quota/npus", "--for=jsonpath={.status.hard}", "--timeout=110s")
    greedy = pod()
    npus = {"huawei.com/Ascend910": "9"}
    greedy["spec"]["containers"][0]["resources"] = {"requests": npus, "limits": npus}
    told = reasons.explained(asked(cluster, greedy, fails=True).stderr)
    assert told.startswith("over the namespace's quota (npus, requested: requests.huawei.com/Ascend910=9, used: ")
    npus["huawei.com/Ascend910"] = "8"
    asked(cluster, greedy)


def test_the_queue_is_one_that_volcano_s_definition_takes(cluster: ControlPlane) -> None:
    cluster.kubectl("apply", "--validate=strict", "-f", MANIFESTS / "queue.yaml")
    made = cluster.get("queues.scheduling.volcano.sh", "latte")
    assert made["spec"]["capability"] == {"huawei.com/Ascend910": "8"}
    wrong = {**yaml.safe_load((MANIFESTS / "queue.yaml").read_text()), "spec": {"wieght": 1}}
    said = cluster.kubectl("apply", "--validate=strict", "-f", "-", given=yaml.safe_dump(wrong), fails=True).stderr
    assert 'unknown field "spec.wieght"' in said
    cluster.kubectl("delete", "-f", MANIFESTS / "queue.yaml")
