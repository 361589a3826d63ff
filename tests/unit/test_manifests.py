"""Every manifest is built as kubectl builds it and checked against Kubernetes' schemas; seeded mistakes are caught."""

import copy
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from components.placement import SECRET, SECRET_KEYS
from pipelines.doctor import LAUNCHER
from tests.e2e.runs import BIN, REPOSITORY
from tests.kubernetes_schemas import Invalid, check

MANIFESTS = REPOSITORY / "manifests"
OVERLAYS = ("base", "overlays/cpu", "overlays/ascend-mindcluster", "overlays/ascend-default-scheduler")


def build(folder: str) -> list[dict]:
    done = subprocess.run([BIN / "kubectl", "kustomize", MANIFESTS / folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def built() -> dict[str, list[dict]]:
    return {folder: build(folder) for folder in OVERLAYS}


def by_kind(documents: list[dict], kind: str) -> Iterator[dict]:
    return (document for document in documents if document["kind"] == kind)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_manifests_are_valid_and_in_one_namespace(built: dict[str, list[dict]], folder: str) -> None:
    assert len(built[folder]) >= 5
    for document in built[folder]:
        check(document)
        if document["kind"] not in ("Namespace", "Queue"):
            assert document["metadata"]["namespace"] == "latte", document["metadata"]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_a_seeded_mistake_in_any_manifest_is_caught(built: dict[str, list[dict]], folder: str) -> None:
    for document in built[folder]:
        unknown, wrong = copy.deepcopy(document), copy.deepcopy(document)
        unknown["metadata"]["nmae"] = "x"
        wrong["metadata"]["labels"] = ["x"]
        for broken in (unknown, wrong):
            with pytest.raises(Invalid):
                check(broken)


def test_the_secret_has_what_the_steps_and_the_launcher_read(built: dict[str, list[dict]]) -> None:
    secret = yaml.safe_load((MANIFESTS / "secret.template.yaml").read_text())
    check(secret)
    assert secret["metadata"]["name"] == SECRET
    assert set(secret["stringData"]) == set(SECRET_KEYS)
    launcher = next(by_kind(built["base"], "ConfigMap"))
    assert launcher["metadata"]["name"] == LAUNCHER
    given = yaml.safe_load(launcher["data"]["providers"])["s3"]["default"]
    reference = given["credentials"]["secretRef"]
    assert reference["secretName"] == SECRET
    assert {reference["accessKeyKey"], reference["secretKeyKey"]} <= set(SECRET_KEYS)
    assert given["maxRetries"] > 0
    # No overlay applies a secret with placeholders in it.
    assert not [document for documents in built.values() for document in by_kind(documents, "Secret")]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_roles_give_no_more_than_is_named_and_every_binding_has_its_ends(
    built: dict[str, list[dict]], folder: str
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
    assert set(subjects) == {(account, "latte") for account in accounts}
    launcher = roles.get("latte-launcher", {"rules": []})
    # What a step that launches a Volcano Job asks for; tests/integration/test_launcher.py sees it ask.
    assert [(*rule["resources"], rule["verbs"]) for rule in launcher["rules"]] == (
        [("jobs", ["create", "get", "list", "watch", "delete"]), ("pods", ["get", "list"]), ("pods/log", ["get"])]
        if folder == "overlays/ascend-mindcluster"
        else []
    )


@pytest.mark.parametrize("name", ["train_and_evaluate", "nightly_retrain", "bulk_sample"])
def test_every_task_of_a_compiled_pipeline_gets_the_secret(name: str) -> None:
    spec, platform = yaml.safe_load_all((REPOSITORY / "pipelines" / f"{name}.yaml").read_text())
    wanted = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors = set(spec["deploymentSpec"]["executors"])
    assert set(wanted) == executors
    for executor in wanted.values():
        secret = executor["secretAsEnv"][0]
        assert secret["secretName"] == SECRET
        assert {pair["envVar"] for pair in secret["keyToEnv"]} == set(SECRET_KEYS)


def test_no_manifest_is_left_out() -> None:
    listed = {
        (path.parent / name).resolve()
        for path in MANIFESTS.rglob("kustomization.yaml")
        for name in yaml.safe_load(path.read_text())["resources"]
    }
    files = {path for path in MANIFESTS.rglob("*.yaml") if path.name not in ("kustomization.yaml",)}
    assert files - listed == {Path(MANIFESTS / "secret.template.yaml")}
