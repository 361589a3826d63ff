"""The manifest of the Volcano Job (batch.volcano.sh/v1alpha1) that does a step's work.

Fields, plugins and policies are those of Volcano's published CRD and controller; untested with a real one.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from components.placement import SECRET_KEYS, Launch
from components.volcano import lease as leases
from latte.errors import UserError
from latte.storage import manifest
from latte.storage.s3_client import ADDRESSING

GROUP, VERSION, PLURAL = "batch.volcano.sh", "v1alpha1", "jobs"
# The pods of a Job are called <job>-<task>-<index>; Volcano's svc plugin makes VC_WORKER_HOSTS from the task's name.
TASK = "worker"
HASH = "latte-pipelines/spec-sha256"
# Phases in which a Job stays: done, and what else may have become of it.
DONE, FAILED = "Completed", ("Failed", "Aborted", "Terminated")
# Volcano's label on the pods of a Job.
JOB_LABEL = "volcano.sh/job-name"
# The Job's name, "-worker-" and three digits have to fit the 63 characters of a host name.
_LABEL_LENGTH = 32
_HASH_LENGTH = 10


def name_of(task: str, spec_hash: str) -> str:
    """A name that the same work of the same run always gets: latte-<task>-<hash>, a DNS-1123 label."""
    label = re.sub(r"[^a-z0-9]+", "-", task.lower())[:_LABEL_LENGTH].strip("-")
    return "-".join(part for part in ("latte", label, spec_hash[:_HASH_LENGTH]) if part)


def build(
    launch: Launch,
    work_uri: str,
    workers: int,
    together: bool,
    task: str,
    owner: Mapping[str, Any],
    handed_on: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The Job.

    Args:
        launch: image, resources and Volcano's settings.
        work_uri: where the work is described, under the root.
        workers: pods.
        together: they start all at once or not at all; otherwise each one that gets a place starts.
        task: the task's name, for the Job's.
        owner: the Workflow's entry for ownerReferences: when it is deleted, so is the Job.
        handed_on: variables of this step's pod that the Job's pods get, too; they do not make it another Job.
    """
    settings = launch.volcano
    least = workers if together else 1
    spec: dict[str, Any] = {
        "schedulerName": settings.scheduler,
        "queue": settings.queue,
        "minAvailable": least,
        # Volcano counts the first start, too.
        "maxRetry": settings.restarts + 1,
        "ttlSecondsAfterFinished": settings.keep_s,
        # The first host has to resolve before its pod counts as ready: the others wait for it.
        "plugins": {"svc": ["--publish-not-ready-addresses=true"], "env": []},
        "policies": [
            # The first that fits counts: what the user has to mend is not tried again.
            {"exitCode": UserError.exit_code, "action": "TerminateJob"},
            # Nor is what nobody waits for: the devices are to be free.
            {"exitCode": leases.EXIT_CODE, "action": "TerminateJob"},
            {"event": "PodFailed", "action": "RestartJob"},
            {"event": "PodEvicted", "action": "RestartJob"},
            {"event": "TaskCompleted", "action": "CompleteJob"},
        ],
        "tasks": [{"name": TASK, "replicas": workers, "minAvailable": least, "template": _template(launch, work_uri)}],
    }
    if settings.priority_class:
        spec["priorityClassName"] = settings.priority_class
    spec_hash = manifest.fingerprint(spec, task, owner["uid"])
    spec["tasks"][0]["template"]["spec"]["containers"][0]["env"] += [dict(each) for each in handed_on]
    metadata: dict[str, Any] = {
        "name": name_of(task, spec_hash),
        "labels": {"app.kubernetes.io/part-of": "latte-pipelines", **launch.pod.labels},
        "annotations": {HASH: spec_hash, **launch.pod.annotations},
        "ownerReferences": [dict(owner)],
    }
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Job", "metadata": metadata, "spec": spec}


def _template(launch: Launch, work_uri: str) -> dict[str, Any]:
    pod = launch.pod
    variables = [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": launch.secret, "key": key}}} for key in SECRET_KEYS
    ]
    variables += [
        {"name": key, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}}
        for key, annotation in launch.volcano.env_from_annotations.items()
    ]
    if launch.addressing_style:
        variables.append({"name": ADDRESSING, "value": launch.addressing_style})
    # The root file system is read-only; what looks for a home finds a place to write.
    variables.append({"name": "HOME", "value": "/tmp"})  # noqa: S108
    shm: dict[str, Any] = {"medium": "Memory"}
    if pod.shm:
        shm["sizeLimit"] = pod.shm
    container: dict[str, Any] = {
        "name": TASK,
        "image": launch.image,
        "command": ["python3", "-m", "components.volcano.pod", str(launch.volcano.lease_s), work_uri],
        "env": variables,
        "resources": _resources(launch),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }
    if launch.image_pull_policy:
        container["imagePullPolicy"] = launch.image_pull_policy
    rights: dict[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if launch.volcano.groups:
        rights["supplementalGroups"] = list(launch.volcano.groups)
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": launch.deadline_s,
        "automountServiceAccountToken": False,
        "securityContext": rights,
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": shm}, {"name": "tmp", "emptyDir": {}}],
    }
    if launch.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in launch.image_pull_secrets]
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if pod.tolerations:
        spec["tolerations"] = [each.model_dump(exclude_none=True) for each in pod.tolerations]
    metadata = {key: dict(value) for key, value in (("labels", pod.labels), ("annotations", pod.annotations)) if value}
    return {"metadata": metadata, "spec": spec} if metadata else {"spec": spec}


def _resources(launch: Launch) -> dict[str, dict[str, str]]:
    """Memory and accelerators are asked for as what is given at most; cores may be used where they are idle."""
    given = {"memory": launch.pod.memory} if launch.pod.memory else {}
    if launch.accelerator:
        given[launch.accelerator.resource] = str(launch.accelerator.count)
    requested = {"cpu": launch.pod.cpu} if launch.pod.cpu else {}
    named = (("requests", {**requested, **given}), ("limits", given))
    return {key: dict(value) for key, value in named if value}
