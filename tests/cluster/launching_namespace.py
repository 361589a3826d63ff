"""A namespace in which a step launches Volcano Jobs, and what Volcano's controller would do with them, done by hand."""

import uuid
from typing import Any

from components.volcano import job as jobs
from tests.cluster.control_plane import ControlPlane
from tests.launching import until

NAME = "latte"
_JOBS = (jobs.GROUP, jobs.VERSION, NAME, jobs.PLURAL)
_WORKFLOWS = ("argoproj.io", "v1alpha1", NAME, "workflows")
# What "restricted" asks of a container.
SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


class LaunchingNamespace:
    """The Workflow of one run and the pod of its step there, on a cluster where the overlay has been applied.

    Attributes:
        workflow: as owner of what the run leaves.
        environment: of the step's pod; it asks as `latte-runner`, which has no rights but its own.
    """

    def __init__(self, cluster: ControlPlane, client: Any, account: str = "latte-runner") -> None:
        import kubernetes as k8s

        self.cluster = cluster
        self.core, self._custom = k8s.client.CoreV1Api(client), k8s.client.CustomObjectsApi(client)
        # A namespace takes pods once its default account is there, which the controllers make.
        until(lambda: "default" in self._accounts(), 60)
        name = f"run-{uuid.uuid4().hex[:8]}"
        kind = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow"}
        made = self._custom.create_namespaced_custom_object(*_WORKFLOWS, {**kind, "metadata": {"name": name}})
        self.workflow = {**kind, "name": name, "uid": made["metadata"]["uid"]}
        # As Argo makes it; none that runs.
        owner = {**self.workflow, "controller": True, "blockOwnerDeletion": True}
        container = {"name": "main", "image": "none", "securityContext": SECURITY}
        unplaced = {"containers": [container], "schedulerName": "none"}
        metadata = {"name": f"{name}-step", "ownerReferences": [owner]}
        self.core.create_namespaced_pod(NAME, {"metadata": metadata, "spec": unplaced})
        token = cluster.token(NAME, account)
        kubeconfig = cluster.kubeconfig(account, token, NAME)
        self.environment = {"KUBECONFIG": str(kubeconfig), "KFP_POD_NAME": f"{name}-step", "NAMESPACE": NAME}

    def _accounts(self) -> set[str]:
        return {each.metadata.name for each in self.core.list_namespaced_service_account(NAME).items}

    def jobs(self) -> dict[str, dict[str, Any]]:
        """Jobs of this run, by name."""
        return {
            each["metadata"]["name"]: each
            for each in self._custom.list_namespaced_custom_object(*_JOBS)["items"]
            if each["metadata"].get("ownerReferences", [{}])[0].get("uid") == self.workflow["uid"]
        }

    def job(self) -> dict[str, Any] | None:
        """The only Job of this run, once it is there."""
        return next(iter(self.jobs().values()), None)

    def set_phase(self, name: str, phase: str, **state: str) -> None:
        """What the controller says of a Job."""
        status = {"status": {"state": {"phase": phase, **state}}}
        self._custom.patch_namespaced_custom_object_status(*_JOBS, name, status)

    def patch(self, name: str, change: dict[str, Any]) -> None:
        """Change a Job, as somebody else."""
        self._custom.patch_namespaced_custom_object(*_JOBS, name, change)

    def delete(self, name: str) -> None:
        """Delete a Job, as somebody else."""
        self._custom.delete_namespaced_custom_object(*_JOBS, name)

    def add_pod(self, job: str, index: int, **spec: Any) -> str:
        """A pod of a Job, with the Job's labels; `spec` is laid over one that restricted Pod Security takes."""
        name = f"{job}-{jobs.TASK}-{index}"
        container = {"name": jobs.TASK, "image": "none", "securityContext": SECURITY, **spec.pop("container", {})}
        whole = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container], **spec}
        metadata = {"name": name, "labels": {jobs.JOB_LABEL: job}}
        self.core.create_namespaced_pod(NAME, {"metadata": metadata, "spec": whole})
        return name

    def end_pod(self, name: str, code: int, reason: str = "Error") -> None:
        """What a kubelet says of a pod that has ended; where there is no node, nobody says otherwise."""
        ended = {"exitCode": code, "reason": reason, "startedAt": None, "finishedAt": None}
        container = {"name": jobs.TASK, "ready": False, "restartCount": 0, "image": "none", "imageID": ""}
        status = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [{**container, "state": {"terminated": ended}}],
        }
        self.core.patch_namespaced_pod_status(name, NAME, {"status": status})

    def close(self) -> None:
        """Delete the Workflow, and at once what is left of the run."""
        for name, job in self.jobs().items():
            if job["metadata"].get("finalizers"):
                self.patch(name, {"metadata": {"finalizers": None}})
            pods = f"pods -l {jobs.JOB_LABEL}={name}"
            self.cluster.kubectl("delete", *pods.split(), "-n", NAME, "--force", "--grace-period=0")
            self.cluster.kubectl("delete", "jobs.batch.volcano.sh", name, "-n", NAME, "--ignore-not-found")
        self._custom.delete_namespaced_custom_object(*_WORKFLOWS, self.workflow["name"])
