"""Every manifest is built as kubectl builds it and checked against Kubernetes' schemas; seeded mistakes are caught."""

import copy
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import yaml

from components.placement import SECRET, SECRET_KEYS
from components.volcano.job import JOB_LABEL
from tests.e2e.runs import BIN, REPOSITORY
from tests.kubernetes_schemas import Invalid, check

MANIFESTS = REPOSITORY / "manifests"
KINDS = {"standalone": "kubeflow", "multi-user": "latte"}
# As they are, and with what their comments offer.
OVERLAYS = [(kind, more) for kind in KINDS for more in (False, True)]


def build(folder: Path) -> list[dict]:
    done = subprocess.run([BIN / "kubectl", "kustomize", folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return list(yaml.safe_load_all(done.stdout))


def with_all_that_is_offered(folder: Path) -> Path:
    """The manifests copied into a folder, what their comments offer taken out of the comments."""
    copied = folder / "manifests"
    shutil.copytree(MANIFESTS, copied)
    for kind in KINDS:
        path = copied / "overlays" / kind / "kustomization.yaml"
        text = path.read_text().replace("components: []", "components:").replace("#  - ../../", "  - ../../")
        assert len(yaml.safe_load(text)["components"]) == 2
        path.write_text(text)
    return copied


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], list[dict]]:
    """What `kubectl apply -k` would send, for each overlay; also after its comments were taken out."""
    copied = with_all_that_is_offered(tmp_path_factory.mktemp("manifests"))
    found = {(kind, False): build(MANIFESTS / "overlays" / kind) for kind in KINDS}
    return found | {(kind, True): build(copied / "overlays" / kind) for kind in KINDS}


def by_kind(documents: list[dict], kind: str) -> Iterator[dict]:
    return (document for document in documents if document["kind"] == kind)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_manifests_are_valid_and_in_one_namespace(
    built: dict[tuple[str, bool], list[dict]], folder: tuple[str, bool]
) -> None:
    assert len(built[folder]) >= 3
    for document in built[folder]:
        check(document)
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == KINDS[folder[0]], document["metadata"]


@pytest.mark.parametrize("more", [False, True])
def test_nothing_of_kfp_s_own_namespace_is_touched(built: dict[tuple[str, bool], list[dict]], more: bool) -> None:
    for document in built["standalone", more]:
        kind, name = document["kind"], document["metadata"]["name"]
        # No ConfigMap kfp-launcher, no labels of the namespace, no policy that would hold for everybody's pods.
        assert kind in ("ServiceAccount", "Role", "RoleBinding", *(["ResourceQuota"] if more else [])), kind
        assert name.startswith("latte-") or (kind, name) == ("ResourceQuota", "npus")
    assert not [each for documents in built.values() for each in by_kind(documents, "ConfigMap")]


def test_the_queue_is_valid() -> None:
    check(yaml.safe_load((MANIFESTS / "queue.yaml").read_text()))


@pytest.mark.parametrize("folder", OVERLAYS)
def test_a_seeded_mistake_in_any_manifest_is_caught(
    built: dict[tuple[str, bool], list[dict]], folder: tuple[str, bool]
) -> None:
    for document in built[folder]:
        unknown, wrong = copy.deepcopy(document), copy.deepcopy(document)
        unknown["metadata"]["nmae"] = "x"
        wrong["metadata"]["labels"] = ["x"]
        for broken in (unknown, wrong):
            with pytest.raises(Invalid):
                check(broken)


def test_the_secret_has_what_the_steps_read(built: dict[tuple[str, bool], list[dict]]) -> None:
    secret = yaml.safe_load((MANIFESTS / "secret.template.yaml").read_text())
    check(secret)
    assert secret["metadata"]["name"] == SECRET
    assert set(secret["stringData"]) == set(SECRET_KEYS)
    # No overlay applies a secret with placeholders in it.
    assert not [document for documents in built.values() for document in by_kind(documents, "Secret")]


def test_the_lines_for_kfp_s_own_config_map_open_the_bucket_with_our_secret() -> None:
    text = (REPOSITORY / "docs/cluster.md").read_text()
    lines = text.partition("    providers: |\n")[2].split("\n\n")[0]
    given = yaml.safe_load(textwrap.dedent(lines))["s3"]["default"]
    reference = given["credentials"]["secretRef"]
    assert reference["secretName"] == SECRET
    assert {reference["accessKeyKey"], reference["secretKeyKey"]} <= set(SECRET_KEYS)
    assert given["maxRetries"] > 0


@pytest.mark.parametrize("folder", OVERLAYS)
def test_roles_give_no_more_than_is_named_and_every_binding_has_its_ends(
    built: dict[tuple[str, bool], list[dict]], folder: tuple[str, bool]
) -> None:
    roles = {role["metadata"]["name"]: role for role in by_kind(built[folder], "Role")}
    accounts = {account["metadata"]["name"] for account in by_kind(built[folder], "ServiceAccount")}
    assert not list(by_kind(built[folder], "ClusterRole"))
    for role in roles.values():
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            if {"secrets", "configmaps"} & set(rule["resources"]):
                assert rule["resourceNames"], "only by name"
                assert rule["verbs"] == ["get"]
    bindings = list(by_kind(built[folder], "RoleBinding"))
    assert {binding["roleRef"]["name"] for binding in bindings} == set(roles)
    subjects = [(each["name"], each["namespace"]) for binding in bindings for each in binding["subjects"]]
    assert set(subjects) == {(account, KINDS[folder[0]]) for account in accounts}
    launcher = roles.get("latte-launcher", {"rules": []})
    # What a step that launches a Volcano Job asks for; tests/integration/test_launcher.py sees it ask.
    assert [(*rule["resources"], rule["verbs"]) for rule in launcher["rules"]] == (
        [("jobs", ["create", "get", "list", "watch", "delete"]), ("pods", ["get", "list"]), ("pods/log", ["get"])]
        if folder[1]
        else []
    )


@pytest.mark.parametrize("folder", [each for each in OVERLAYS if each[0] == "multi-user"])
def test_the_namespace_lets_only_restricted_pods_in_and_closes_their_network(
    built: dict[tuple[str, bool], list[dict]], folder: tuple[str, bool]
) -> None:
    (namespace,) = by_kind(built[folder], "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in by_kind(built[folder], "NetworkPolicy")}
    assert set(policies) == {"latte-steps", "latte-jobs"}
    for name, label in (("latte-steps", "workflows.argoproj.io/workflow"), ("latte-jobs", JOB_LABEL)):
        assert policies[name]["podSelector"] == {"matchExpressions": [{"key": label, "operator": "Exists"}]}
    assert "ingress" not in policies["latte-steps"]
    for name, spec in policies.items():
        assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
        own = [{"podSelector": spec["podSelector"]}]
        assert all(rule["from"] == own for rule in spec.get("ingress", []))
        for rule in spec["egress"]:
            assert rule["to"]
            assert rule.get("ports") or rule["to"] == own, name
        # Where clouds hand out credentials to whoever asks.
        assert not reached(spec, "169.254.169.254", 80) | reached(spec, "169.254.169.254", 443)
        assert reached(spec, "203.0.113.7", 443)
        assert not reached(spec, "203.0.113.7", 22)
    assert not reached(policies["latte-jobs"], "10.96.0.1", 6443), "a Job's pods have no business with Kubernetes"


def reached(spec: dict, address: str, port: int) -> bool:
    """Whether a policy lets a pod call this address outside of the cluster."""
    for rule in spec["egress"]:
        if rule.get("ports") and port not in [each["port"] for each in rule["ports"] if each["protocol"] == "TCP"]:
            continue
        for block in (peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer):
            inside = [ip_address(address) in ip_network(net) for net in (block["cidr"], *block.get("except", []))]
            if inside[0] and not any(inside[1:]):
                return True
    return False


@pytest.mark.parametrize("name", ["train_and_evaluate", "nightly_retrain", "bulk_sample"])
def test_every_task_of_a_compiled_pipeline_gets_the_secret_and_is_not_root(name: str) -> None:
    spec, platform = yaml.safe_load_all((REPOSITORY / "pipelines" / f"{name}.yaml").read_text())
    wanted = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors = set(spec["deploymentSpec"]["executors"])
    assert set(wanted) == executors
    for executor in wanted.values():
        assert executor["securityContext"] == {"runAsNonRoot": True}
        secret = executor["secretAsEnv"][0]
        assert secret["secretName"] == SECRET
        assert {pair["envVar"] for pair in secret["keyToEnv"]} == set(SECRET_KEYS)


def test_no_manifest_is_left_out() -> None:
    listed = {
        (path.parent / name).resolve()
        for path in MANIFESTS.rglob("kustomization.yaml")
        for name in yaml.safe_load(path.read_text()).get("resources", [])
    }
    files = {path for path in MANIFESTS.rglob("*.yaml") if path.name not in ("kustomization.yaml",)}
    assert files - listed == {MANIFESTS / "secret.template.yaml", MANIFESTS / "queue.yaml"}
