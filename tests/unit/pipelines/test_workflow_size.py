"""The size of a run's Workflow: what is computed of a pipeline is what was recorded of it, and ours does not grow."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import recorded_kfp, workflow_size


def recorded() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The Workflow of a real run, and its nodes by their names without the Workflow's."""
    value = json.loads(recorded_kfp.manifest(recorded_kfp.SUCCEEDED))
    nodes = json.loads(gzip.decompress(base64.b64decode(value["status"]["compressedNodes"])))
    return value, {node["name"].removeprefix(value["metadata"]["name"]): node for node in nodes.values()}


def inputs(node: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in node["inputs"]["parameters"]}


def test_the_size_is_that_of_the_recorded_run() -> None:
    value, nodes = recorded()
    # Its specification is in the nodes themselves.
    root = inputs(nodes["(0).root-driver(0)"])
    components, executors, kubernetes = {}, {}, {}
    for node in nodes.values():
        if node["type"] == "Pod" and node["templateName"] in ("system-container-driver", "system-dag-driver"):
            given = inputs(node)
            component = json.loads(given["component"])
            if given["task"]:
                components[json.loads(given["task"])["componentRef"]["name"]] = component
            if "container" in given:
                executors[component["executorLabel"]] = {"container": json.loads(given["container"])}
                kubernetes[component["executorLabel"]] = json.loads(given["kubernetes-config"])
    spec = {
        "root": json.loads(root["component"]),
        "components": components,
        "deploymentSpec": {"executors": executors},
    }
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": kubernetes}}}}
    values = json.loads(root["runtime-config"])["parameterValues"]
    found = workflow_size.of(spec, platform, values, workflow_size.DEMO)
    assert found.pods == sum(node["type"] == "Pod" for node in nodes.values()) == 46
    assert sum(task.nodes for task in found.tasks) == len(nodes) == 165
    assert found.bytes == pytest.approx(
        len(json.dumps({node["id"]: node for node in nodes.values()}, separators=(",", ":"))), rel=0.03
    )
    assert found.compressed == pytest.approx(len(value["status"]["compressedNodes"]), rel=0.15)


def test_the_demo_does_not_grow(tmp_path: Path) -> None:
    spec, platform = workflow_size.compiled("train_and_evaluate", tmp_path)
    values = yaml.safe_load((workflow_size.REPOSITORY / "configs/demo/pipeline.yaml").read_text())
    values["root"] = "s3://bucket/prefix"
    for items, pods, kilobytes, compressed in [
        (workflow_size.DEMO, 51, 1550, 157),
        (workflow_size.UNCHANGED, 48, 1480, 151),
        (workflow_size.MANY, 321, 9200, 590),
    ]:
        found = workflow_size.of(spec, platform, values, items)
        assert found.pods <= pods
        assert found.bytes <= kilobytes * 1000
        assert found.compressed <= compressed * 1000
