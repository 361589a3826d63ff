"""Objects that a namespace of runs has, and clients for those who ask for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from tests.cluster.control_plane import ControlPlane
from tests.unit.pipelines.test_manifests import MANIFESTS

SECRET: dict[str, Any] = yaml.safe_load((MANIFESTS / "secret.template.yaml").read_text())


@contextmanager
def api_client(cluster: ControlPlane, user: str, token: str | None = None) -> Iterator[Any]:
    """A client of the Python SDK that asks as this user, or as whoever the token names."""
    import kubernetes as k8s

    client = k8s.config.new_client_from_config(str(cluster.kubeconfig(user, token)))
    client.configuration.retries = False
    with client:
        yield client


def namespace_of_kfp(cluster: ControlPlane) -> None:
    """The namespace `kubeflow` as a standalone installation leaves it, as far as anybody of ours looks at it."""
    own = {"namespace": "kubeflow"}
    service = {"ports": [{"port": 8888}], "selector": {"app": "ml-pipeline"}}
    cluster.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubeflow"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ml-pipeline", **own}, "spec": service},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "kfp-launcher", **own},
            "data": {"defaultPipelineRoot": "minio://mlpipeline/v2/artifacts"},
        },
    )
