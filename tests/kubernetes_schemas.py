"""Whether an object is one that a cluster with Volcano takes: Kubernetes' schemas, Volcano's CRDs and its admission."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

KUBERNETES = "1.36"
# What Volcano's admission webhook lets through.
_EVENTS = {"*", "PodFailed", "PodEvicted", "PodPending", "PodRunning", "Unknown", "TaskCompleted", "TaskFailed"}
_ACTIONS = {"AbortJob", "RestartJob", "RestartTask", "RestartPod", "TerminateJob", "CompleteJob"}
_PLUGINS = {"ssh", "env", "svc", "tensorflow", "pytorch", "mpi", "hcclrank", "ray"}
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

Invalid = (kubernetes_validate.ValidationError, jsonschema.ValidationError)


def check(document: dict[str, Any]) -> None:
    """Raise one of `Invalid` where the object is unknown in any key, wrong in any value, or not admitted."""
    schema = _schemas().get(document["kind"])
    if schema is None or document["apiVersion"].startswith("batch/"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    jsonschema.validate(document, schema)
    # Metadata is Kubernetes' own; a Queue belongs to the cluster, not to a namespace.
    metadata = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
    kubernetes_validate.validate(metadata, KUBERNETES, strict=True)
    if document["kind"] == "Queue" and "namespace" in document["metadata"]:
        raise jsonschema.ValidationError("a Queue has no namespace")
    if document["kind"] == "Job":
        _admit(document)
        for task in document["spec"]["tasks"]:
            template = {
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": {"name": "x"},
                "template": task["template"],
            }
            kubernetes_validate.validate(template, KUBERNETES, strict=True)


def _admit(job: dict[str, Any]) -> None:
    """What Volcano's admission asks beyond the schema."""
    spec = job["spec"]
    name = job["metadata"]["name"]
    wrong = []
    for task in spec.get("tasks") or wrong.append("no task specified in job spec") or []:
        if task.get("minAvailable", 0) > task["replicas"]:
            wrong.append(f"'minAvailable' is greater than 'replicas' in task: {task['name']}")
        for index in (0, task["replicas"] - 1):
            if not _LABEL.fullmatch(f"{name}-{task['name']}-{index}"):
                wrong.append(f"pod name of task {task['name']} is no DNS label")
    # The service of plugin svc has the Job's name.
    if not _LABEL.fullmatch(name) or not name[0].isalpha():
        wrong.append(f"job name {name} is no DNS label")
    if spec.get("minAvailable", 0) > sum(task["replicas"] for task in spec["tasks"]):
        wrong.append("job 'minAvailable' should not be greater than total replicas in tasks")
    for policy in spec.get("policies", []):
        if ("event" in policy) == ("exitCode" in policy) or policy.get("exitCode") == 0:
            wrong.append(f"policy {policy}: either an event or an exit code other than 0")
        if policy.get("event", "*") not in _EVENTS or policy["action"] not in _ACTIONS:
            wrong.append(f"policy {policy}: not valid")
    wrong += [f"unable to find job plugin: {plugin}" for plugin in set(spec.get("plugins", {})) - _PLUGINS]
    if wrong:
        raise jsonschema.ValidationError("; ".join(wrong))


@cache
def _schemas() -> dict[str, Any]:
    found = {}
    for definition in yaml.safe_load_all((Path(__file__).parent / "data/volcano.yaml").read_text()):
        spec, (version,) = definition["spec"], definition["spec"]["versions"]
        schema = _closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        schema["properties"]["apiVersion"] = {"const": f"{spec['group']}/{version['name']}"}
        found[spec["names"]["kind"]] = {**schema, "required": ["apiVersion", "kind", "metadata", "spec"]}
    return found


def _closed(schema: Any) -> Any:
    """The schema without room for keys that it does not list, as the API server with strict field validation has it."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed
