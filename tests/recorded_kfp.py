"""Recorded answers of a real Kubeflow Pipelines (tests/data/kfp), and how the server on loopback plays them."""

import json
from pathlib import Path
from typing import Any

from tests.kfp_server import KfpServer

DATA = Path(__file__).parent / "data" / "kfp"
SUCCEEDED, FAILED_STEP = "run_succeeded", "run_failed_step"
NO_ACCOUNT, TERMINATED, RUNNING = "run_failed_no_service_account", "run_terminated", "run_running"


def answer(name: str) -> Any:
    """A recorded answer, for example "run_succeeded" or "v1_run_succeeded"."""
    return json.loads((DATA / f"{name}.json").read_text())


def manifest(name: str) -> str:
    """The Workflow of a recorded run, as the v1beta1 answer carries it."""
    return answer(f"v1_{name}")["pipeline_runtime"]["workflow_manifest"]


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
