"""The status of recorded runs of a real Kubeflow Pipelines: asked for once, and followed to the end."""

import json

import kfp_server_api
import pytest

from latte.errors import LatteError, UserError
from pipelines import notebook, operate, run_status
from pipelines.client import Client
from pipelines.status import Status
from tests import kfp_server
from tests import recorded_kfp as recorded

TRAIN_POD = "latte-train-and-evaluate-ghhsq-system-container-impl-1468862637"
SHARDS_POD = "latte-train-and-evaluate-sfcwk-system-container-impl-3461973333"
ROOT_POD = "latte-train-and-evaluate-64xf2-system-dag-driver-968786586"


def state(status: Status, task: str) -> tuple[str, str]:
    return next((each.state, each.reason) for each in status.tasks if each.name == task)


def test_a_run_that_succeeded_is_fifteen_lines_to_its_end(server: kfp_server.KfpServer, client: Client) -> None:
    run_id = recorded.play(server, recorded.SUCCEEDED)
    status = run_status.status(client)  # the newest
    assert (status.run_id, status.state, status.ended, status.namespace) == (run_id, "SUCCEEDED", True, "kubeflow")
    assert [task.state for task in status.tasks] == ["SUCCEEDED"] * 15
    assert status.headline() == f"SUCCEEDED  train_and_evaluate demo  17 min 03 s  run {run_id}"
    plain = json.loads(operate.as_json(status))
    assert plain["tasks"][3]["name"] == "encode: shards"
    assert (plain["tasks"][3]["done"], plain["tasks"][3]["total"]) == (2, 2)
    assert plain["tasks"][5]["pods"] == [TRAIN_POD]


def test_the_reason_of_a_step_is_its_own_error_line(server: kfp_server.KfpServer, client: Client) -> None:
    run_id = recorded.play(server, recorded.FAILED_STEP)
    server.logs[(run_id, SHARDS_POD)] = recorded.FAILED_LOG
    status = run_status.status(client, run_id)
    assert status.state == "FAILED"
    reason = "encode (all of 1): create Volcano Job latte-encode-1: refused: queue latte is not Open"
    assert state(status, "encode: shards") == ("FAILED", reason)
    assert status.failed is not None and status.failed.name == "encode: shards"
    assert run_status.brief(client, run_id).failed.reason == "exit code 1"


def test_without_its_log_the_reason_says_why_there_is_none(
    server: kfp_server.KfpServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    status = run_status.status(client, recorded.play(server, recorded.FAILED_STEP))
    _, reason = state(status, "encode: shards")
    assert reason.startswith("exit code 1 (no log: log of pod ")
    assert "its pod is gone; in the bucket: s3://latte/kfp/" in reason
    assert "set AWS_ACCESS_KEY_ID" in reason


def test_a_run_without_its_service_account_says_what_to_change(server: kfp_server.KfpServer, client: Client) -> None:
    status = run_status.status(client, recorded.play(server, recorded.NO_ACCOUNT))
    assert status.reason == (
        "no service account latte-runner in namespace kubeflow; apply manifests/ there, or set KFP_SERVICE_ACCOUNT"
    )
    assert {task.state for task in status.tasks} == {"SKIPPED"}


def test_a_driver_that_failed_before_all_tasks_has_its_reason_from_its_log(
    server: kfp_server.KfpServer, client: Client
) -> None:
    run_id = recorded.play(server, recorded.NO_ACCOUNT)
    value = json.loads(server.workflows[run_id]["pipeline_runtime"]["workflow_manifest"])
    for node in value["status"]["nodes"].values():
        if node["type"] == "Pod":
            node.update(phase="Failed", message="main: Error (exit code 1)")
    server.workflows[run_id]["pipeline_runtime"]["workflow_manifest"] = json.dumps(value)
    said = "KFP driver: driver.RootDAG failed: configmaps kfp-launcher is forbidden"
    server.logs[(run_id, ROOT_POD)] = f"F1127 13:40:04.000000       1 main.go:79] {said}\n"
    assert run_status.status(client, run_id).reason == said


def test_a_run_that_was_stopped_is_canceled_though_kfp_says_failed(
    server: kfp_server.KfpServer, client: Client
) -> None:
    run_id = recorded.play(server, recorded.TERMINATED)
    assert server.runs[run_id]["state"] == "FAILED"
    status = run_status.status(client, run_id)
    assert status.state == "CANCELED"
    assert state(status, "sample trained: shards") == ("CANCELED", "stopped")
    # A run retried after that and failed by itself is FAILED again.
    server.runs[run_id]["state_history"] += [{"state": "RUNNING"}, {"state": "FAILED"}]
    value = json.loads(server.workflows[run_id]["pipeline_runtime"]["workflow_manifest"])
    del value["spec"]["activeDeadlineSeconds"]
    server.workflows[run_id]["pipeline_runtime"]["workflow_manifest"] = json.dumps(value)
    assert run_status.brief(client, run_id).state == "FAILED"


def test_of_a_running_task_the_last_line_of_its_log_is_told(server: kfp_server.KfpServer, client: Client) -> None:
    run_id = recorded.train_again(server)
    log = recorded.TRAIN_LOG
    server.logs[(run_id, TRAIN_POD)] = log[: log.index("worker-0 | train: 100%")]
    status = run_status.status(client, run_id)
    assert status.state == "RUNNING"
    line = "worker-0 | train:   5%|▌         | 1/20 [01:10<22:19, 70.48s/step, loss=1.0075, grad=0.316, lr=5.0e-05]"
    assert state(status, "train") == ("RUNNING", " ".join(line.split()))
    assert next(task.seconds for task in status.tasks if task.name == "train") > 0


def test_without_a_workflow_kfps_details_are_told_and_that_they_are(
    server: kfp_server.KfpServer, client: Client
) -> None:
    run_id = recorded.play(server, recorded.RUNNING)
    for served in (True, False):  # no workflow yet, or no such route any more
        server.workflows_served = served
        status = run_status.status(client, run_id)
        assert len(status.tasks) == 15
        assert state(status, "train")[0] == "RUNNING"
        assert status.reason.startswith("from KFP's task details alone")
    # Frozen where Argo began to compress: what became of the rest nobody tells, and nothing is made up.
    status = run_status.status(client, recorded.play(server, recorded.SUCCEEDED))
    assert {state(status, name)[0] for name in ("train", "encode: shards")} == {"SUCCEEDED"}
    assert {state(status, name)[0] for name in ("sample trained: shards", "score trained", "report")} == {"UNKNOWN"}


def test_a_run_whose_pipeline_version_is_gone(server: kfp_server.KfpServer, client: Client) -> None:
    run_id = recorded.play(server, recorded.SUCCEEDED)
    server.versions.clear()
    status = run_status.status(client, run_id)
    assert "its pipeline version is gone" in status.reason
    assert len(status.tasks) == 15


def test_a_workflow_that_is_garbage_is_one_line(server: kfp_server.KfpServer, client: Client) -> None:
    run_id = recorded.play(server, recorded.SUCCEEDED)
    server.workflows[run_id]["pipeline_runtime"]["workflow_manifest"] = "<html>"
    with pytest.raises(LatteError, match=f"run {run_id}: the workflow that the server tells is no JSON$"):
        run_status.status(client, run_id)


def test_the_server_on_loopback_refuses_in_the_recorded_shape(server: kfp_server.KfpServer, client: Client) -> None:
    body, code = (recorded.DATA / "run_unknown.txt").read_text().rsplit("\n", 2)[:2]
    kept = json.loads(body)
    with pytest.raises(kfp_server_api.ApiException) as caught:
        client._kfp.get_run("00000000-0000-0000-0000-000000000000")
    said = json.loads(caught.value.body)
    assert (caught.value.status, said["code"], set(said)) == (int(code), kept["code"], set(kept))
    assert {key: type(value) for key, value in said["details"][0].items()} == {
        key: type(value) for key, value in kept["details"][0].items()
    }


def test_a_notebook_says_which_task_of_a_run_on_a_cluster_failed_and_why(
    server: kfp_server.KfpServer,
    client: Client,
    params: dict,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keep = server.run_service_create_run

    def fails_soon(body: dict, **rest: object) -> dict:
        run = keep(body, **rest) | {"state": "FAILED"}
        server.runs[run["run_id"]] = run
        server.workflows[run["run_id"]] = recorded.within_exit_handler(recorded.FAILED_STEP)
        server.logs[(run["run_id"], SHARDS_POD)] = recorded.FAILED_LOG
        return run

    monkeypatch.setattr(server, "run_service_create_run", fails_soon)
    fanned_out = {**params, "encode": {**params["encode"], "num_tasks": 2}}
    with pytest.raises(LatteError, match=r"failed in encode: shards: encode .* queue latte is not Open; "):
        notebook.run("train_and_evaluate", fanned_out, client)
    assert "encode: shards: failed 0/1: encode (all of 1)" in capsys.readouterr().out


def test_watching_tells_what_changes_and_bridges_an_outage(server: kfp_server.KfpServer, client: Client) -> None:
    run_id = recorded.train_again(server)
    told: list[str] = []
    said: list[str] = []
    server.broken = {"run_service_get_run"}

    def say(line: str) -> None:
        said.append(line)
        server.broken = set()

    before = None
    for status in run_status.watch(client, run_id, 0.01, say):
        told += run_status.changes(before, status)
        before = status
        recorded.play(server, recorded.SUCCEEDED)
    assert len(said) == 1 and "the server failed (503)" in said[0]
    assert "train: running" in told and "train: succeeded" in told
    assert told.count("encode: shards: succeeded 2/2") == 1
    assert before is not None and before.state == "SUCCEEDED"


def test_an_outage_that_does_not_end_is_told(
    server: kfp_server.KfpServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = recorded.play(server, recorded.RUNNING)
    monkeypatch.setattr(run_status, "OUTAGE_S", 0.05)
    server.broken = {"run_service_get_run"}
    with pytest.raises(LatteError, match=r"the server failed \(503\)"):
        list(run_status.watch(client, run_id, 0.01))
    server.broken, server.token = set(), "new"
    with pytest.raises(UserError, match="the token has expired; set KFP_TOKEN"):
        list(run_status.watch(client, run_id, 0.01))
