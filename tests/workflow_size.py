"""What an Argo Workflow of Kubeflow Pipelines 2.17 holds of a pipeline: pods, nodes and bytes, without a cluster.

    python -m tests.workflow_size [--config configs/demo/pipeline.yaml] [--json]

Every task becomes nodes, and each node carries copies: of the component's and the task's specification, and six times
of the pod's, which has the inputs' values, the artifacts' metadata, the component's code and its environment. Argo
compresses the nodes above about 1 MB, and etcd refuses what is above about 1 MB when it is compressed. Nodes are made
here as they were recorded of a real run (tests/data/kfp), which they are compared with in
tests/unit/pipelines/test_workflow_size.py.
"""

import argparse
import base64
import functools
import gzip
import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipelines.cluster import FANNED_OUT

REPOSITORY = Path(__file__).parents[1]
# Items of the loops by the task that they run.
DEMO = {"encode-shards": 2, "sample-shards": 2}
MANY = {"encode-shards": 32, "sample-shards": 32}
IN_ONE = "one task a stage"
# The steps with a loop, and the items of each.
FORMS: dict[str, Any] = {
    IN_ONE: ((), {}),
    "2 tasks a stage": (FANNED_OUT, DEMO),
    "32 tasks a stage": (FANNED_OUT, MANY),
}
_WORKFLOW, _RUN = "latte-train-and-evaluate-ghhsq", "1641883b-2132-4d22-aae7-29272b762f27"
_SESSION = {
    "Provider": "s3",
    "Params": {
        "accessKeyKey": "AWS_ACCESS_KEY_ID",
        "disableSSL": "true",
        "endpoint": "http://seaweedfs.kubeflow.svc.cluster.local:9000",
        "forcePathStyle": "true",
        "fromEnv": "false",
        "maxRetries": "5",
        "region": "us-east-1",
        "secretKeyKey": "AWS_SECRET_ACCESS_KEY",
        "secretName": "latte-s3",
    },
}
# What a step's manifest says of itself, as long as those that were recorded on average.
_SUMMARY = {
    "bytes": 6673041,
    "clips": 48,
    "clips_generated": 48,
    "fingerprint": "cd627f9d22af9d61",
    "kind": "video_set",
    "name": "untrained",
    "rejects": 0,
    "shards": 98,
    "unbiased_estimate": 664.765411,
    "uri": "s3://latte/p/videos/untrained/55da4542e0bb3661",
}
_SERVERS = [
    *("--ml_pipeline_server_address", "ml-pipeline.kubeflow.svc.cluster.local", "--ml_pipeline_server_port", "8887"),
    *("--mlmd_server_address", "metadata-grpc-service.kubeflow.svc.cluster.local", "--mlmd_server_port", "8080"),
    *("--publish_logs", "true", "--ml_pipeline_tls_enabled=false", "--metadata_tls_enabled=false"),
    *("--ca_cert_path", "", "--cache_disabled=false", "--log_level", "1"),
]

# What tasks return, as a rule: a manifest's.
_URI = "s3://bucket/prefix/videos/untrained/55da4542e0bb3661/handed-on/cd627f9d22af9d61.json"
# What Go's encoder makes of the recorded nodes, over what Python's does.
_GO_GZIP = 1.12


@dataclass(frozen=True)
class Size:
    """What one task, or one loop without the tasks in it, is to Argo.

    Attributes:
        name: key of the task; "root" for the whole without its tasks.
        pods: that are started, those of KFP's drivers included.
        nodes: of the Workflow.
        bytes: of these nodes, as JSON.
    """

    name: str
    pods: int
    nodes: int
    bytes: int


@dataclass
class _Made:
    """The nodes that were made, by the task they are of."""

    spec: Mapping[str, Any]
    platform: Mapping[str, Any]
    items: Mapping[str, int]
    nodes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, task: str, path: str, kind: str, template: str, **parts: Any) -> None:
        """A node with the fields that Argo gives it; `inputs` and `outputs` by name, `children` as a number."""
        number = _digest(path, 10)
        log = f"private-artifacts/kubeflow/{_WORKFLOW}/{_WORKFLOW}-{template}-{number}/main.log"
        node: dict[str, Any] = {
            "id": f"{_WORKFLOW}-{number}",
            "name": f"{_WORKFLOW}(0).{path}" if path else f"{_WORKFLOW}(0)",
            "displayName": path.rpartition(".")[2],
            "type": kind,
            "templateName": template,
            "templateScope": f"local/{_WORKFLOW}",
            "phase": "Succeeded",
            "boundaryID": f"{_WORKFLOW}-{_digest(path.rpartition('.')[0], 10)}",
            "startedAt": "2026-11-27T13:56:59Z",
            "finishedAt": "2026-11-27T13:57:09Z",
            "progress": "2/2",
            "resourcesDuration": {"cpu": 6, "memory": 74},
            "children": [f"{_WORKFLOW}-{_digest(f'{path}{i}', 10)}" for i in range(parts.get("children", 1))],
        }
        if inputs := parts.get("inputs"):
            node["inputs"] = {"parameters": [{"name": key, "value": value} for key, value in inputs.items()]}
        outputs = parts.get("outputs", {})
        if outputs or template == "system-container-impl":
            node["outputs"] = {"artifacts": [{"name": "main-logs", "s3": {"key": log}}], "exitCode": "0"}
        if outputs:
            node["outputs"]["parameters"] = [
                {"name": key, "value": value, "valueFrom": {"path": f"/tmp/outputs/{key}", "default": "false"}}
                for key, value in outputs.items()
            ]
        if kind == "Pod":
            node |= {"hostNodeName": "node1", "taskResultSynced": True}
        if path.endswith("(0)"):
            node["nodeFlag"] = {"retried": True}
        self.nodes.setdefault(task, []).append(node)

    def twice(self, task: str, path: str, inner: str, template: str, **parts: Any) -> None:
        """What is tried again when it fails: the node of all tries and that of the first."""
        self.add(task, path, "Retry", template, **parts)
        self.add(task, f"{path}(0)", inner, template, **parts)

    def dag(self, component: Mapping[str, Any], path: str, values: Mapping[str, Any]) -> None:
        """The tasks of a component that is a DAG; `values` are its parameters'."""
        for key, task in component["dag"]["tasks"].items():
            inner = self.spec["components"][task["componentRef"]["name"]]
            given = {name: _resolved(source, values) for name, source in _parameters(task).items()}
            if "dag" in inner and "parameterIterator" in task:
                self._loop(key, task, inner, f"{path}.{key}", given)
            elif "dag" in inner:
                self.driver(key, f"{path}.{key}-driver", inner, task)
                self.twice(key, f"{path}.{key}", "DAG", task["componentRef"]["name"], inputs={"parent-dag-id": "1"})
                self.dag(inner, f"{path}.{key}(0)", given)
            else:
                self._container(key, task, inner, f"{path}.{key}", given)

    def _loop(
        self, key: str, task: Mapping[str, Any], inner: Mapping[str, Any], path: str, given: Mapping[str, Any]
    ) -> None:
        name = task["componentRef"]["name"]
        count = max(
            items for run, items in self.items.items() if any(each.startswith(run) for each in inner["dag"]["tasks"])
        )
        parent = {"parent-dag-id": "1"}
        self.twice(key, path, "DAG", f"{name}-{key}-iterator", inputs=parent)
        self.driver(key, f"{path}(0).iteration-driver", inner, task)
        self.add(key, f"{path}(0).iteration-iterations", "TaskGroup", f"{name}-iteration", children=count)
        item = {task["parameterIterator"]["itemInput"]: f"10/32 {_URI}"}
        for number in range(count):
            each = f"{path}(0).iteration-iterations({number}:{number})"
            self.twice(key, each, "DAG", f"{name}-iteration", inputs={**parent, "iteration-index": str(number)})
            self.driver(key, f"{each}(0).iteration-item-driver", inner, task)
            self.twice(key, f"{each}(0).iteration-item", "DAG", name, inputs=parent)
            self.dag(inner, f"{each}(0).iteration-item(0)", {**given, **item})

    def driver(self, key: str, path: str, component: Mapping[str, Any], task: Any, runtime: str = "") -> None:
        """KFP's driver of a DAG."""
        inputs = {
            "component": _go(component),
            "runtime-config": runtime,
            "task": _go(task) if task else "",
            "task-name": key,
            "parent-dag-id": "1",
            "iteration-index": "-1",
            "driver-type": "DAG",
        }
        outputs = {"execution-id": "1", "iteration-count": "0", "condition": "nil"}
        self.twice(key, path, "Pod", "system-dag-driver", inputs=inputs, outputs=outputs)

    def _container(
        self, key: str, task: Mapping[str, Any], component: Mapping[str, Any], path: str, given: Mapping[str, Any]
    ) -> None:
        label = component["executorLabel"]
        container = self.spec["deploymentSpec"]["executors"][label]["container"]
        kubernetes = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].get(label, {})
        inputs = {
            "component": _go(component),
            "task": _go(task),
            "container": _go(container),
            "task-name": key,
            "parent-dag-id": "1",
            "iteration-index": "-1",
            "kubernetes-config": _go(kubernetes),
        }
        patch = json.dumps(_pod(key, task, component, container, kubernetes, given), separators=(",", ":"))
        outputs = {"pod-spec-patch": patch, "cached-decision": "false", "condition": "nil"}
        self.twice(key, f"{path}-driver", "Pod", "system-container-driver", inputs=inputs, outputs=outputs)
        decided = {"pod-spec-patch": patch, "cached-decision": "false"}
        self.twice(key, path, "DAG", "system-container-executor", inputs=decided)
        self.twice(key, f"{path}(0).executor", "Pod", "system-container-impl", inputs={"pod-spec-patch": patch})


@dataclass(frozen=True)
class Workflow:
    """What a run of a pipeline is to Argo.

    Attributes:
        tasks: by name.
        pods: in all.
        bytes: of all nodes.
        compressed: bytes of them as Argo compresses them: gzip in base64; a tenth less than of a real one.
    """

    tasks: tuple[Size, ...]
    pods: int
    bytes: int
    compressed: int


def of(
    spec: Mapping[str, Any], platform: Mapping[str, Any], values: Mapping[str, Any], items: Mapping[str, int]
) -> Workflow:
    """The Workflow of a compiled pipeline.

    Args:
        spec: the pipeline's specification.
        platform: its Kubernetes part.
        values: of the pipeline's parameters; others are left out.
        items: how many items a loop has, by the beginning of the key of the task in it.
    """
    values = {key: each for key, each in values.items() if key in spec["root"]["inputDefinitions"]["parameters"]}
    made = _Made(spec, platform, items)
    for kind in ("Retry", "DAG"):
        made.add("root", "" if kind == "DAG" else "entrypoint", kind, "entrypoint")
    made.twice("root", "root", "DAG", "root", inputs={"parent-dag-id": "1"})
    made.driver("root", "root-driver", spec["root"], None, _go({"parameterValues": values}))
    made.dag(spec["root"], "root(0)", values)
    everything = {node["id"]: node for nodes in made.nodes.values() for node in nodes}
    # As Go writes a map: sorted, so that the copies of a text lie far apart.
    text = json.dumps(everything, separators=(",", ":"), sort_keys=True).encode()
    tasks = tuple(
        Size(
            name,
            sum(node["type"] == "Pod" for node in nodes),
            len(nodes),
            sum(len(json.dumps(node, separators=(",", ":"))) for node in nodes),
        )
        for name, nodes in made.nodes.items()
    )
    return Workflow(
        tasks,
        sum(task.pods for task in tasks),
        len(text),
        round(_GO_GZIP * len(base64.b64encode(gzip.compress(text, 6, mtime=0)))),
    )


def _pod(
    key: str,
    task: Mapping[str, Any],
    component: Mapping[str, Any],
    container: Mapping[str, Any],
    kubernetes: Mapping[str, Any],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """The patch of a pod's specification, as KFP's driver writes it."""
    executor_input: dict[str, Any] = {
        "inputs": {
            "artifacts": {name: _artifact(name) for name in task.get("inputs", {}).get("artifacts", {})},
            "parameterValues": dict(given),
        },
        "outputs": {
            "artifacts": {
                name: _output(key, name, kind["artifactType"])
                for name, kind in {
                    **component.get("outputDefinitions", {}).get("artifacts", {}),
                    "executor-logs": {"artifactType": {"schemaTitle": "system.Artifact"}},
                }.items()
            },
            "outputFile": f"/s3/{_place(key)}/output_metadata.json",
        },
    }
    command = ["/kfp-launcher/launch", "--executor_type", "container", "--pipeline_name", _WORKFLOW[:-6]]
    command += ["--run_id", _RUN, "--execution_id", "28", "--executor_input", _spaced(executor_input)]
    command += ["--component_spec", _spaced(component)]
    command += ["--pod_name", "$(KFP_POD_NAME)", "--pod_uid", "$(KFP_POD_UID)", *_SERVERS, "--"]
    secrets = [
        {
            "name": pair["envVar"],
            "valueFrom": {
                "secretKeyRef": {"name": secret["secretName"], "key": pair["secretKey"], "optional": False},
            },
        }
        for secret in kubernetes.get("secretAsEnv", [])
        for pair in secret["keyToEnv"]
    ]
    own = kubernetes.get("fieldPathAsEnv", [])
    fields = [{"name": each["name"], "valueFrom": {"fieldRef": {"fieldPath": each["fieldPath"]}}} for each in own]
    main = {
        "name": "main",
        "image": container["image"],
        "command": command,
        "args": [*container["command"], *container["args"]],
        "env": [*container.get("env", []), *secrets, *fields],
        "resources": container.get("resources", {}),
    }
    return {"containers": [main]}


def _artifact(name: str) -> dict[str, Any]:
    metadata = {**_SUMMARY, "display_name": name, "store_session_info": json.dumps(_SESSION, separators=(",", ":"))}
    uri = f"s3://{_place(name)}/{name}"
    return {"artifacts": [{"name": "11", "type": {"instanceSchema": ""}, "uri": uri, "metadata": metadata}]}


def _output(task: str, name: str, kind: Any) -> dict[str, Any]:
    return {"artifacts": [{"name": name, "type": kind, "uri": f"s3://{_place(task)}/{name}"}]}


def _place(task: str) -> str:
    return f"latte/kfp/{_WORKFLOW[:-6]}/{_RUN}/{task}/{_digest(task, 36)}"


def _parameters(task: Mapping[str, Any]) -> dict[str, Any]:
    return dict(task.get("inputs", {}).get("parameters", {}))


def _resolved(source: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    if "componentInputParameter" in source:
        return values.get(source["componentInputParameter"], {})
    if "runtimeValue" in source:
        return source["runtimeValue"].get("constant")
    return _URI


def _go(value: Any) -> str:
    """JSON as Go writes it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for each in "<>&":
        text = text.replace(each, f"\\u{ord(each):04x}")
    return text


def _spaced(value: Any) -> str:
    """JSON as protobuf's encoder for Go writes it."""
    return json.dumps(value, separators=(", ", ":"), ensure_ascii=False)


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def main() -> None:
    """Print what each task of the demo carries, and the sums for other sizes of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs/demo/pipeline.yaml")
    parser.add_argument("--pipeline", default="train_and_evaluate")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    runs = runs_of(chosen.pipeline, chosen.config)
    if chosen.json:
        sums = {label: {"pods": r.pods, "bytes": r.bytes, "compressed": r.compressed} for label, r in runs.items()}
        print(json.dumps({"runs": sums, "tasks": [vars(task) for task in runs[IN_ONE].tasks]}))
        return
    for task in sorted(runs[IN_ONE].tasks, key=lambda task: -task.bytes):
        print(f"{task.name:24}{task.pods:4} pods {task.nodes:4} nodes {task.bytes / 1000:8.1f} kB")
    for label, r in runs.items():
        print(f"{label:24}{r.pods:4} pods {r.bytes / 1e3:8.0f} kB of nodes {r.compressed / 1e3:8.0f} kB compressed")


@functools.cache
def runs_of(pipeline: str, config: Path) -> dict[str, Workflow]:
    """The Workflows of a pipeline as it is compiled now, with these settings, by how many tasks a stage has."""
    from pipelines import compiled

    values = {"root": "s3://bucket/prefix", **yaml.safe_load(config.read_text())}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for label, (fanned_out, items) in FORMS.items():
            path = compiled.write(compiled.pipeline(pipeline, None, fanned_out), Path(folder, "pipeline.yaml"))
            spec, platform = yaml.safe_load_all(path.read_text())
            found[label] = of(spec, platform, values, items)
    return found


if __name__ == "__main__":
    main()
