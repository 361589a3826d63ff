"""Recorded answers of a real Kubeflow Pipelines (tests/data/kfp), and how the server on loopback plays them."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

from tests.kfp_server import KfpServer

DATA = Path(__file__).parent / "data" / "kfp"
SUCCEEDED, FAILED_STEP = "run_succeeded", "run_failed_step"
NO_ACCOUNT, TERMINATED, RUNNING = "run_failed_no_service_account", "run_terminated", "run_running"

TRAIN_LOG = (DATA / "pod_log_train.txt").read_text()
# When a step has left with exit code 2: the recorded head, our line, and the launcher's (glog.Exit in its main.go).
FAILED_LOG = (
    TRAIN_LOG.split("Volcano Job")[0]
    + "error: encode (all of 1): create Volcano Job latte-encode-1: refused: queue latte is not Open\n"
    + "F1127 13:59:25.101112      16 main.go:130] failed to execute component: exit status 2\n"
)


def answer(name: str) -> Any:
    """A recorded answer, for example "run_succeeded" or "v1_run_succeeded"."""
    return json.loads((DATA / f"{name}.json").read_text())


def manifest(name: str) -> str:
    """The Workflow of a recorded run, as the v1beta1 answer carries it."""
    return answer(f"v1_{name}")["pipeline_runtime"]["workflow_manifest"]


def unpack_nodes(status: dict[str, Any]) -> dict[str, Any]:
    """Take the nodes out of a Workflow's status; Argo packs those of a large one."""
    if "nodes" in status:
        return status.pop("nodes")
    return json.loads(gzip.decompress(base64.b64decode(status.pop("compressedNodes"))))


def within_exit_handler(name: str) -> Any:
    """The v1beta1 answer of a recorded run with its nodes' names as pipelines within an exit handler have them.

    The runs were recorded before there was one; KFP counts it among the loops.
    """
    found = answer(f"v1_{name}")
    value = json.loads(found["pipeline_runtime"]["workflow_manifest"])
    value["status"]["nodes"] = unpack_nodes(value["status"])
    for node in value["status"]["nodes"].values():
        inside = node["name"].replace("root(0).", "root(0).exit-handler-1(0).")
        node["name"] = re.sub(r"for-loop-(\d+)", lambda match: f"for-loop-{int(match[1]) + 1}", inside)
    found["pipeline_runtime"]["workflow_manifest"] = json.dumps(value)
    return found


def play(server: KfpServer, *names: str) -> str:
    """Let the server know these recorded runs, their workflows, their pipeline and their experiment; the last's id."""
    for experiment in answer("experiments")["experiments"]:
        server.experiments[experiment["experiment_id"]] = experiment
    run_id = ""
    for name in names:
        run = answer(name)
        run_id = run["run_id"]
        server.runs[run_id] = run
        if (DATA / f"v1_{name}.json").exists():
            server.workflows[run_id] = answer(f"v1_{name}")
        else:
            server.workflows.pop(run_id, None)
        reference = run["pipeline_version_reference"]
        server.pipelines.setdefault(
            reference["pipeline_id"], {"pipeline_id": reference["pipeline_id"], "display_name": "recorded"}
        )
        server.versions[reference["pipeline_version_id"]] = {
            **reference,
            "display_name": "recorded",
            "pipeline_spec": answer("pipeline_spec"),
        }
    return run_id


def train_again(server: KfpServer) -> str:
    """The recorded run as it was while it trained: its v1beta1 answer of then was not recorded, its nodes were."""
    run_id = play(server, SUCCEEDED)
    recorded_then = answer(RUNNING)
    server.runs[run_id].update(state="RUNNING", finished_at="1970-01-01T00:00:00Z")
    server.runs[run_id]["state_history"] = recorded_then["state_history"]
    value = json.loads(server.workflows[run_id]["pipeline_runtime"]["workflow_manifest"])
    nodes = unpack_nodes(value["status"])
    started = {key: each for key, each in nodes.items() if each["startedAt"] <= "2026-11-27T13:45:53Z"}
    for each in started.values():
        if each["finishedAt"] > "2026-11-27T13:45:53Z":
            each.update(phase="Running", finishedAt=None)
    value["status"].update(nodes=started, phase="Running", finishedAt=None)
    server.workflows[run_id]["pipeline_runtime"]["workflow_manifest"] = json.dumps(value)
    return run_id
