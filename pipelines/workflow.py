"""The Argo Workflow behind a run: its nodes, out of the manifest that KFP's v1beta1 answer carries.

Above about 1 MB Argo keeps the nodes as gzip in base64; from then on KFP's own task details do not change any more, so
this is the one source that is right to the end of the largest run. What a cluster answers is not trusted: a field that
is missing or of another kind is as if it were not there.
"""

import base64
import binascii
import json
import re
import zlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from latte.errors import LatteError
from pipelines.status import time_of

# Etcd keeps objects below about 1.5 MB; their nodes have been seen to be 18 times as large unpacked.
_MOST_BYTES = 128 << 20
_POD_NAMES = "workflows.argoproj.io/pod-name-format"
_LONGEST_PREFIX = 242
# The level of the Workflow itself, in place of its name.
_ROOT = "workflow"
# "encode-shards(2)" is the third try; "iteration-iterations(3:3)(0)" the first of the fourth item.
_SEGMENT = re.compile(r"(?P<key>[^()]+)(?:\((?P<item>\d+):[^()]*\))?(?:\((?P<attempt>\d+)\))?")


@dataclass(frozen=True)
class Segment:
    """One level of a node's name: the task, the item of a loop and the try (from 0), each None where not named."""

    key: str
    item: int | None
    attempt: int | None


@dataclass(frozen=True)
class WorkflowNode:
    """One node of the Workflow.

    Attributes:
        path: its name, level by level, without the Workflow's own.
        kind: Pod, Retry, DAG, TaskGroup, Skipped, …
        phase: Pending, Running, Succeeded, Skipped, Failed, Error, Omitted.
        message: what Argo says.
        started: when, or None.
        finished: when, or None.
        pod: name of the pod in Kubernetes; "" of what is no pod.
        exit_code: of the container, or None.
        outputs: values of the output parameters, by name.
        log_uri: where the step's log will lie, without the number of the try; "" where that is not said.
    """

    path: tuple[Segment, ...]
    kind: str
    phase: str
    message: str
    started: datetime | None
    finished: datetime | None
    pod: str
    exit_code: int | None
    outputs: dict[str, str] = field(default_factory=dict)
    log_uri: str = ""


@dataclass(frozen=True)
class Workflow:
    """The Workflow of a run.

    Attributes:
        name: in Kubernetes.
        namespace: where its pods are.
        uid: in Kubernetes.
        message: what Argo says of the whole.
        nodes: every one that can be read.
        stopped: whether somebody ended the run before its time.
        offloaded: whether Argo keeps the nodes in a database of its own, where KFP does not look.
    """

    name: str
    namespace: str
    uid: str
    message: str
    nodes: tuple[WorkflowNode, ...]
    stopped: bool
    offloaded: bool


def read(manifest: Any) -> Workflow:
    """The Workflow of a manifest, as KFP's v1beta1 answer has it (JSON text).

    Raises:
        LatteError: it is no JSON, no Workflow, or its nodes cannot be unpacked.
    """
    try:
        value = json.loads(manifest) if isinstance(manifest, str) else manifest
    except (ValueError, RecursionError):
        raise LatteError("the workflow that the server tells is no JSON") from None
    if not isinstance(value, dict) or not isinstance(value.get("status"), dict):
        raise LatteError("the workflow that the server tells has no status")
    status, metadata = value["status"], _dict(value.get("metadata"))
    nodes = _dict(status.get("nodes"))
    if packed := status.get("compressedNodes"):
        nodes = _unpacked(packed)
    name = _text(metadata.get("name"))
    as_nodes = _text(_dict(metadata.get("annotations")).get(_POD_NAMES)) == "v1"
    read_nodes = (_node(key, each, name, as_nodes) for key, each in nodes.items() if isinstance(each, dict))
    return Workflow(
        name,
        _text(metadata.get("namespace")),
        _text(metadata.get("uid")),
        _text(status.get("message")),
        tuple(sorted((node for node in read_nodes if node.path), key=lambda node: _order(node.path))),
        # How KFP stops a run (IsTerminating in its common/util/workflow.go).
        _dict(value.get("spec")).get("activeDeadlineSeconds") == 0,
        bool(status.get("offloadNodeStatusVersion")),
    )


def _unpacked(packed: Any) -> dict[str, Any]:
    problem = "the workflow's compressed nodes cannot be unpacked"
    try:
        unzip = zlib.decompressobj(wbits=31)
        data = unzip.decompress(base64.b64decode(packed, validate=True), _MOST_BYTES)
        if unzip.unconsumed_tail:
            raise LatteError(f"{problem}: more than {_MOST_BYTES >> 20} MB")
        if not unzip.eof:
            raise LatteError(f"{problem}: cut off")
        return _dict(json.loads(data))
    except (binascii.Error, zlib.error, ValueError, TypeError, RecursionError) as error:
        raise LatteError(f"{problem}: {type(error).__name__}") from None


def _node(key: str, value: dict[str, Any], workflow: str, as_nodes: bool) -> WorkflowNode:
    kind, template = _text(value.get("type")), _text(value.get("templateName"))
    outputs = _dict(value.get("outputs"))
    code = _text(outputs.get("exitCode"))
    return WorkflowNode(
        _path(_text(value.get("name")), workflow),
        kind,
        _text(value.get("phase")),
        _text(value.get("message")),
        time_of(value.get("startedAt")),
        time_of(value.get("finishedAt")),
        _pod_name(_text(value.get("id")) or key, workflow, template, as_nodes) if kind == "Pod" else "",
        int(code) if code.isascii() and code.isdigit() and len(code) < 4 else None,
        _parameters(outputs),
        _log_uri(_parameters(_dict(value.get("inputs"))).get("pod-spec-patch", "")) if kind == "Pod" else "",
    )


def _path(name: str, workflow: str) -> tuple[Segment, ...]:
    """Levels of a node's name below the Workflow; its own tries count as a level, so that their order is kept."""
    if not workflow or not name.startswith(workflow):
        return ()
    found = []
    for part in f"{_ROOT}{name.removeprefix(workflow)}".split("."):
        match = _SEGMENT.fullmatch(part)
        if match is None:
            return ()
        found.append(Segment(match["key"], _number(match["item"]), _number(match["attempt"])))
    return tuple(found)


def _order(path: tuple[Segment, ...]) -> tuple[Any, ...]:
    return tuple(
        (each.key, -1 if each.item is None else each.item, -1 if each.attempt is None else each.attempt)
        for each in path
    )


def _pod_name(node_id: str, workflow: str, template: str, as_nodes: bool) -> str:
    """Argo's rule (util.GeneratePodName): the node's id, with the template's name before its hash since version 2."""
    number = node_id.removeprefix(f"{workflow}-")
    if as_nodes or node_id == workflow or not template or number == node_id:
        return node_id
    return f"{f'{workflow}-{template}'[:_LONGEST_PREFIX]}-{number}"


def _parameters(part: dict[str, Any]) -> dict[str, str]:
    listed = part.get("parameters")
    each = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return {_text(one.get("name")): _text(one.get("value")) for one in each}


def _log_uri(patch: str) -> str:
    """The artifact `executor-logs` of a step, out of the command that KFP's driver wrote for its pod."""
    try:
        command = json.loads(patch)["containers"][0]["command"]
        wired = json.loads(command[command.index("--executor_input") + 1])
        return _text(wired["outputs"]["artifacts"]["executor-logs"]["artifacts"][0]["uri"])
    except (ValueError, LookupError, TypeError, RecursionError, AttributeError):
        return ""


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(text: str | None) -> int | None:
    return None if text is None else int(text[:9])
