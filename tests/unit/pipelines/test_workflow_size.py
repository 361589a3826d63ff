"""The size of a run's Workflow: what is computed of a pipeline is what was recorded of it, and ours does not grow."""

import ast
import base64
import gzip
import json
import re
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


CONFIGS = workflow_size.REPOSITORY / "configs/demo"


@pytest.mark.parametrize(
    ("pipeline", "config", "most"),
    [
        ("train_and_evaluate", "pipeline.yaml", [(14, 300, 32), (45, 740, 68), (315, 4350, 260)]),
        ("nightly_retrain", "pipeline.yaml", [(18, 385, 38), (49, 820, 77), (319, 4400, 270)]),
        ("bulk_sample", "bulk_sample.yaml", [(14, 270, 26), (34, 550, 47), (214, 2950, 170)]),
    ],
)
def test_a_run_does_not_grow(pipeline: str, config: str, most: list[tuple[int, int, int]]) -> None:
    found = workflow_size.runs_of(pipeline, CONFIGS / config)
    told = {label: (run.pods, run.bytes, run.compressed) for label, run in found.items()}
    for run, (pods, kilobytes, compressed) in zip(found.values(), most, strict=True):
        assert run.pods <= pods, told
        assert run.bytes <= kilobytes * 1000, told
        assert run.compressed <= compressed * 1000, told
    # As the demo is set, and far from the limit of etcd where it is as wide as it can be.
    assert most[0][0] <= 20
    assert most[-1][-1] < 1000 / 2


def test_the_command_prints_the_pods_of_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["workflow_size"])
    workflow_size.main()
    printed = capsys.readouterr().out
    assert re.search(r"^one task a stage +14 pods +2\d\d kB of nodes", printed, re.MULTILINE), printed
    monkeypatch.setattr("sys.argv", ["workflow_size", "--json"])
    workflow_size.main()
    value = json.loads(capsys.readouterr().out)
    assert sum(task["pods"] for task in value["tasks"]) == value["runs"]["one task a stage"]["pods"]


def test_what_components_say_of_themselves_is_not_in_a_run() -> None:
    text = (workflow_size.REPOSITORY / "pipelines/train_and_evaluate.yaml").read_text()
    spec = next(yaml.safe_load_all(text))
    for component in spec["components"].values():
        assert "description" not in json.dumps(component)
    sources = [each["container"]["command"][-1] for each in spec["deploymentSpec"]["executors"].values()]
    for source in sources:
        (function,) = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
        assert ast.get_docstring(function) is None
        assert function.body
    assert "Where everything is kept" in json.dumps(spec["root"]["inputDefinitions"]), "for KFP's form"
