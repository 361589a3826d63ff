"""Runs and schedules: listed, stopped, retried, paused, resumed and deleted; recorded runs where they are looked at."""

import json
from pathlib import Path

import pytest
import yaml

from latte.errors import UserError
from pipelines import cluster, compiled, dag, operate, run_status, runs
from pipelines.client import Client
from tests import kfp_server, kubernetes_server
from tests import recorded_kfp as recorded

REPOSITORY = Path(__file__).parents[2]
CRON = "0 0 2 * * *"


def test_runs_that_are_not_ours_or_not_there(server: kfp_server.KfpServer, client: Client) -> None:
    with pytest.raises(UserError, match="no run in experiment latte yet; start one with submit"):
        run_status.status(client)
    with pytest.raises(UserError, match=r"run nothing: not found at .*latte-pipeline runs lists"):
        run_status.status(client, "nothing")
    run_id = recorded.play(server, recorded.SUCCEEDED)
    server.runs[run_id]["experiment_id"] = "705b6fd4-604e-40e2-b911-9b216734177f"
    for act in (run_status.status, operate.stop, operate.retry, operate.delete):
        with pytest.raises(UserError, match="of experiment Default, not of latte; give --experiment Default"):
            act(client, run_id)
    other = Client(server.url, token="right", experiment="Default")
    assert run_status.brief(other, run_id).state == "SUCCEEDED"


def test_runs_are_listed_newest_first_without_archived_ones(server: kfp_server.KfpServer, client: Client) -> None:
    recorded.play(server, recorded.SUCCEEDED)
    for run in recorded.answer("runs_list")["runs"]:
        server.runs[run["run_id"]] = run
    found = runs.newest_first(client)
    assert [(run.name, run.state) for run in found] == [
        ("vol2", "RUNNING"), ("vol1", "FAILED"), ("train_and_evaluate demo", "SUCCEEDED"),
        ("train_and_evaluate demo", "FAILED"),
    ]  # fmt: skip
    assert [run.seconds for run in found[1:]] == [91, 1023, 0]
    assert found[0].seconds is not None and found[0].seconds >= 0  # its end is 1970 while it runs
    server.runs[found[0].run_id]["storage_state"] = "ARCHIVED"
    assert runs.newest(client) == found[1].run_id
    assert [run.name for run in runs.newest_first(client, 1)] == ["vol1"]


def test_stopping_and_retrying_a_run(server: kfp_server.KfpServer, client: Client) -> None:
    run_id = recorded.train_again(server)
    done = operate.stop(client, run_id)
    assert (done.state, done.volcano_jobs) == ("CANCELING", ())
    assert done.note == "Volcano Jobs not looked at: KUBECONFIG is not set, and this is no pod of the cluster"
    assert server.runs[run_id]["state"] == "CANCELING"
    with pytest.raises(UserError, match="CANCELING; only a run that failed or was stopped can be retried"):
        operate.retry(client, run_id)
    recorded.play(server, recorded.TERMINATED, recorded.SUCCEEDED)
    assert operate.stop(client, run_id).state == "SUCCEEDED"  # over: nothing is asked of the server
    with pytest.raises(UserError, match="SUCCEEDED; only"):
        operate.retry(client, run_id)
    stopped = recorded.answer(recorded.TERMINATED)["run_id"]
    assert operate.retry(client, stopped).state == "RUNNING"
    assert server.runs[stopped]["state"] == "RUNNING"


def test_stopping_deletes_the_volcano_jobs_of_this_run_only(
    server: kfp_server.KfpServer, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = recorded.play(server, recorded.TERMINATED)
    value = json.loads(server.workflows[run_id]["pipeline_runtime"]["workflow_manifest"])
    value["metadata"]["namespace"] = kubernetes_server.NAMESPACE
    server.workflows[run_id]["pipeline_runtime"]["workflow_manifest"] = json.dumps(value)
    server.runs[run_id]["state"] = "RUNNING"
    with kubernetes_server.serve(tmp_path) as (cluster, environment):
        monkeypatch.setenv("KUBECONFIG", environment["KUBECONFIG"])
        for name, owner in (("one", value["metadata"]["uid"]), ("two", value["metadata"]["uid"]), ("other", "else")):
            metadata = {"name": name, "ownerReferences": [{"kind": "Workflow", "uid": owner}]}
            cluster.jobs[name] = {"metadata": metadata, "status": {"state": {"phase": "Running"}}}
        cluster.set_phase("two", "Completed")
        assert operate.stop(client, run_id) == operate.Stopped(run_id, "CANCELING", ("one",), "")
        assert set(cluster.jobs) == {"two", "other"}
        cluster.forbidden = {"list"}
        done = operate.stop(client, run_id)
        assert done.volcano_jobs == ()
        assert "not all Volcano Jobs deleted: Volcano Jobs in latte: " in done.note and "cannot list" in done.note
        cluster.forbidden, cluster.has_volcano = set(), False
        assert operate.stop(client, run_id).note == ""  # no Volcano, no Jobs
    assert "not all Volcano Jobs deleted" in operate.stop(client, run_id).note  # nobody answers any more


def test_jobs_that_nobody_may_delete_are_said_to_end_by_themselves(
    server: kfp_server.KfpServer, client: Client, tmp_path: Path
) -> None:
    run_id = recorded.play(server, recorded.TERMINATED)
    settings = yaml.safe_load((REPOSITORY / "configs/clusters/ascend-mindcluster.yaml").read_text())
    settings["cluster"]["score"]["volcano"]["lease_s"] = 270
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    pipeline = compiled.pipeline("bulk_sample", cluster.load(tmp_path / "settings.yaml"))
    spec, platform = yaml.safe_load_all(compiled.write(pipeline, tmp_path / "bulk_sample.yaml").read_text())
    (version,) = server.versions.values()
    version["pipeline_spec"] = {"pipeline_spec": spec, "platform_spec": platform}
    note = operate.stop(client, run_id).note
    assert note == (
        "Volcano Jobs not looked at: KUBECONFIG is not set, and this is no pod of the cluster; those that are left end "
        "by themselves within 4.5 min and the time that saving takes"
    )
    assert dag.lease_s(spec) == 270
    assert dag.lease_s(None) is None


def test_schedules_are_paused_resumed_and_deleted_by_name_or_id(
    server: kfp_server.KfpServer, client: Client, params: dict
) -> None:
    made = client.schedule("nightly_retrain", params, CRON)
    other = client.schedule("nightly_retrain", params, CRON, name="other")
    assert operate.schedules(client) == [
        operate.Recurring(made.recurring_run_id, "nightly_retrain demo", "ENABLED", CRON),
        operate.Recurring(other.recurring_run_id, "other", "ENABLED", CRON),
    ]
    assert operate.pause(client, "other").state == "DISABLED"
    assert [each.state for each in operate.schedules(client)] == ["ENABLED", "DISABLED"]
    assert operate.resume(client, other.recurring_run_id).state == "ENABLED"
    assert [each.state for each in operate.schedules(client)] == ["ENABLED", "ENABLED"]
    assert operate.delete(client, "other").name == "other"
    with pytest.raises(UserError, match=r"schedule other: not in experiment latte \(there: nightly_retrain demo\)"):
        operate.pause(client, "other")
    server.recurring_runs["x"] = {**server.recurring_runs[made.recurring_run_id], "recurring_run_id": "x"}
    with pytest.raises(UserError, match=r"2 of this name; name one by its id: .*x"):
        operate.pause(client, "nightly_retrain demo")
    assert operate.delete(client, "x").recurring_run_id == "x"


def test_a_run_is_deleted_once_it_has_ended(server: kfp_server.KfpServer, client: Client) -> None:
    run_id = recorded.train_again(server)
    with pytest.raises(UserError, match=f"RUNNING; stop it first: latte-pipeline stop {run_id}"):
        operate.delete(client, run_id)
    recorded.play(server, recorded.SUCCEEDED)
    assert operate.delete(client, run_id).state == "SUCCEEDED"
    assert run_id not in server.runs
    with pytest.raises(UserError, match="not found"):
        operate.delete(client, run_id)


def test_looking_at_runs_makes_no_experiment(server: kfp_server.KfpServer, client: Client) -> None:
    assert runs.newest_first(client) == []
    assert server.experiments == {}
