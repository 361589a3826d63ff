"""A real Kubernetes for a session of tests: its control plane, and for those that run pods a node."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.volcano import api, launcher
from tests.cluster.control_plane import ControlPlane
from tests.cluster.launching_namespace import LaunchingNamespace
from tests.cluster.node import Node, missing
from tests.cluster.objects import api_client
from tests.e2e.runs import REPOSITORY
from tests.integration.conftest import client, own_home, server  # noqa: F401
from tests.integration.test_doctor import called  # noqa: F401
from tests.unit.pipelines.test_manifests import with_all_that_is_offered

VOLCANO = REPOSITORY / "tests/data/volcano.yaml"
# Of Argo's own only that there are Workflows: they own what a run leaves on the cluster.
WORKFLOWS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "workflows.argoproj.io"},
    "spec": {
        "group": "argoproj.io",
        "names": {"kind": "Workflow", "listKind": "WorkflowList", "plural": "workflows", "singular": "workflow"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.fspath).is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane that knows Volcano's Jobs and Queues, and Workflows."""
    served = ControlPlane(tmp_path_factory.mktemp("control-plane"))
    try:
        install(served)
        yield served
    finally:
        served.close()


def install(cluster: ControlPlane) -> None:
    """Put the definitions there and wait until they are served."""
    documents = [*yaml.safe_load_all(VOLCANO.read_text()), WORKFLOWS]
    cluster.apply(*documents)
    names = [f"crd/{each['metadata']['name']}" for each in documents]
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)


@pytest.fixture(scope="session")
def node(cluster: ControlPlane) -> Iterator[Node]:
    """Where pods of the cluster really run."""
    if os.geteuid() != 0:
        pytest.skip("only root can start containers")
    if reason := missing():
        pytest.fail(reason)
    served = Node(cluster)
    try:
        yield served
    finally:
        served.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_POLL_S", 0.05)
    monkeypatch.setattr(api, "_FIRST_PAUSE_S", 0.05)


@pytest.fixture(scope="module")
def admin(cluster: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client that may do everything, where the overlay has been applied with the right to launch."""
    overlay = with_all_that_is_offered(tmp_path_factory.mktemp("manifests")) / "overlays/multi-user"
    cluster.kubectl("apply", "-k", overlay)
    with api_client(cluster, "admin") as asking:
        yield asking


@pytest.fixture
def there(cluster: ControlPlane, admin: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[LaunchingNamespace]:
    served = LaunchingNamespace(cluster, admin)
    for key, value in served.environment.items():
        monkeypatch.setenv(key, value)
    yield served
    served.close()
