"""The client against an API server with KFP's published routes and shapes: submit, schedule, mistakes."""

import dataclasses
import json
import socket
import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.placement import LAUNCH_ENV
from latte import storage
from latte.errors import LatteError, UserError
from pipelines import cron
from pipelines.client import Client
from tests import certificates, kfp_server

REPOSITORY = Path(__file__).parents[2]
CRON = "0 0 2 * * *"
pytestmark = pytest.mark.usefixtures("own_home")


def test_the_server_has_every_published_call() -> None:
    operations = {route.operation for route in kfp_server.routes()}
    assert {"run_service_create_run", "recurring_run_service_create_recurring_run", "upload_pipeline"} <= operations
    assert len(operations) > 35


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("V2beta1Run", {"display_nmae": "x"}, 'unknown field "display_nmae"'),
        ("V2beta1Run", {"display_name": 7}, "expected str"),
        ("V2beta1Run", {"state": "DONE"}, "is not one of"),
        ("V2beta1RecurringRun", {"trigger": {"cron_schedule": {"crom": ""}}}, 'cron_schedule: unknown field "crom"'),
        ("V2beta1RecurringRun", {"max_concurrency": True}, "expected str"),
    ],
)
def test_the_server_refuses_what_is_not_of_the_published_shape(kind: str, value: dict, message: str) -> None:
    with pytest.raises(kfp_server.ApiError, match=message):
        kfp_server.check(value, kind, kind)


def test_submit_uploads_each_version_once(server: kfp_server.KfpServer, client: Client, params: dict) -> None:
    first = client.submit("train_and_evaluate", params)
    run = server.runs[first.run_id]
    assert run["display_name"] == "train_and_evaluate demo"
    assert run["runtime_config"]["parameters"]["train"] == params["train"]
    assert run["runtime_config"]["parameters"]["root"] == params["root"]
    # What was a path of this machine is an object, of the same name and content.
    for section in ("vae", "detector", "pretrained"):
        source = run["runtime_config"]["parameters"][section]["source"]
        assert source.startswith(f"{params['root']}/uploads/") and storage.read_bytes(source) == section.encode()
    assert run["pipeline_version_reference"]["pipeline_version_id"] in server.versions
    versions = set(server.versions)
    second = client.submit("train_and_evaluate", params, name="again")
    assert set(server.versions) == versions
    assert second.run_id != first.run_id


def test_what_steps_run_on_is_compiled_into_the_version(
    server: kfp_server.KfpServer, client: Client, params: dict
) -> None:
    placed = {**params, "cluster": {"heavy": {"volcano": {"queue": "night"}}}}
    run = server.runs[client.submit("train_and_evaluate", placed).run_id]
    assert "cluster" not in run["runtime_config"]["parameters"]
    version = server.versions[run["pipeline_version_reference"]["pipeline_version_id"]]
    executors = version["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    told = {
        label: {each["name"]: each["value"] for each in executors[label]["container"]["env"]} for label in executors
    }
    assert json.loads(told["exec-train"][LAUNCH_ENV])["volcano"]["queue"] == "night"
    assert LAUNCH_ENV not in told["exec-report"]


def test_kfp_s_own_artifacts_go_where_the_settings_say(
    server: kfp_server.KfpServer, client: Client, params: dict
) -> None:
    plain = server.runs[client.submit("train_and_evaluate", params, "plain").run_id]
    assert "pipeline_root" not in plain["runtime_config"]
    placed = {**params, "cluster": {"pipeline_root": "s3://bucket/kfp"}}
    run = server.runs[client.submit("train_and_evaluate", placed).run_id]
    assert run["runtime_config"]["pipeline_root"] == "s3://bucket/kfp"
    assert client.schedule("nightly_retrain", params, CRON).changed
    assert client.schedule("nightly_retrain", placed, CRON).changed
    assert not client.schedule("nightly_retrain", placed, CRON).changed
    (kept,) = server.recurring_runs.values()
    assert kept["runtime_config"]["pipeline_root"] == "s3://bucket/kfp"
    with pytest.raises(UserError, match=r"cluster\.pipeline_root: String should match"):
        client.submit("train_and_evaluate", {**params, "cluster": {"pipeline_root": "/data/kfp"}})


def test_mlflow_is_asked_for_through_kfp_s_own_plugin(
    server: kfp_server.KfpServer, client: Client, params: dict
) -> None:
    plain = server.runs[client.submit("train_and_evaluate", params, "plain").run_id]
    assert "plugins_input" not in plain
    tracked = {**params, "mlflow": {"experiment": "latte demo"}}
    asked = {"mlflow": {"experiment_name": "latte demo"}}  # its schema: MLflowPluginInput of KFP's API server
    run = server.runs[client.submit("train_and_evaluate", tracked).run_id]
    assert run["plugins_input"] == asked
    assert "mlflow" not in run["runtime_config"]["parameters"]
    assert run["pipeline_version_reference"] == plain["pipeline_version_reference"]
    assert client.schedule("nightly_retrain", params, CRON).changed
    assert client.schedule("nightly_retrain", tracked, CRON).changed
    assert not client.schedule("nightly_retrain", tracked, CRON).changed
    (kept,) = server.recurring_runs.values()
    assert kept["plugins_input"] == asked


def test_a_name_that_is_taken_by_a_run_that_goes_on(server: kfp_server.KfpServer, client: Client, params: dict) -> None:
    done = [client.submit("nightly_retrain", params, name=f"run {number}").run_id for number in range(4)]
    with pytest.raises(UserError, match="run run 3: one of this name is going on"):
        client.submit("nightly_retrain", params, name="run 3")
    server.runs[done[3]]["state"] = "SUCCEEDED"
    client.submit("nightly_retrain", params, name="run 3")


def test_schedule_is_idempotent_and_changes_in_place(
    server: kfp_server.KfpServer, client: Client, params: dict
) -> None:
    for number in range(4):  # more than a page of others
        client.schedule("nightly_retrain", params, CRON, name=f"other {number}")
    first = client.schedule("nightly_retrain", params, CRON)
    kept = server.recurring_runs[first.recurring_run_id]
    assert first.changed
    assert (kept["no_catchup"], kept["max_concurrency"], kept["mode"]) == (True, "1", "ENABLE")
    assert kept["trigger"]["cron_schedule"]["cron"] == CRON
    assert client.schedule("nightly_retrain", params, "0  0 2 * *  *") == dataclasses.replace(first, changed=False)
    assert len(server.recurring_runs) == 5
    as_runner = Client(server.url, token="right", service_account="latte-runner")
    assert as_runner.schedule("nightly_retrain", params, CRON).changed
    assert not as_runner.schedule("nightly_retrain", params, CRON).changed
    run = as_runner.submit("nightly_retrain", params)
    assert server.runs[run.run_id]["service_account"] == "latte-runner"

    moved = client.schedule("nightly_retrain", params, "0 30 3 * * *")
    other = client.schedule("nightly_retrain", {**params, "train": {**params["train"], "steps": 300}}, "0 30 3 * * *")
    assert moved.changed and other.changed
    mine = [each for each in server.recurring_runs.values() if each["display_name"] == "nightly_retrain demo"]
    assert [each["recurring_run_id"] for each in mine] == [other.recurring_run_id]
    assert mine[0]["runtime_config"]["parameters"]["train"]["steps"] == 300


def test_a_namespace_without_rights(params: dict) -> None:
    # As the API server has it (resource_manager.go, IsAuthorized).
    said = (
        "Failed to authorize the request: Failed to authorize with API: PermissionDenied: User 'alice@example.com' is "
        "not authorized with reason:  (request: &ResourceAttributes{Namespace:theirs,Verb:create,"
        "Group:pipelines.kubeflow.org,Version:v1beta1,Resource:experiments,Subresource:,Name:latte,})"
    )
    asked = ("experiment_service_list_experiments", "experiment_service_create_experiment")
    with kfp_server.serve(multi_user=True) as shared:
        shared.denied = dict.fromkeys(asked, said)
        with pytest.raises(UserError) as caught:
            Client(shared.url, "theirs").submit("nightly_retrain", params)
    assert "not allowed" in str(caught.value) and "User 'alice@example.com' is not authorized" in str(caught.value)
    assert str(caught.value).endswith("check the token's rights and --namespace") and "\n" not in str(caught.value)
    assert storage.list_uris(params["root"]) == []


def test_on_an_installation_of_many_users(params: dict) -> None:
    with kfp_server.serve(multi_user=True) as server:
        client = Client(server.url, namespace="team")
        client.submit("nightly_retrain", params, name="one")
        client.submit("nightly_retrain", params, name="two")
        assert client.schedule("nightly_retrain", params, CRON).changed
        assert not client.schedule("nightly_retrain", params, CRON).changed
        assert [each["namespace"] for each in server.pipelines.values()] == ["team"]
        assert [each["namespace"] for each in server.experiments.values()] == ["team"]


def test_a_new_version_of_the_pipeline_replaces_the_schedule(
    server: kfp_server.KfpServer, client: Client, params: dict
) -> None:
    first = client.schedule("nightly_retrain", params, CRON)
    # As if the version had been uploaded by an earlier release of this code.
    server.versions[server.recurring_runs[first.recurring_run_id]["pipeline_version_reference"]["pipeline_version_id"]][
        "display_name"
    ] = "latte-nightly-retrain-earlier"
    second = client.schedule("nightly_retrain", params, CRON)
    assert second.changed
    assert list(server.recurring_runs) == [second.recurring_run_id]


def test_a_failure_while_scheduling_leaves_the_old_schedule(
    server: kfp_server.KfpServer, client: Client, params: dict
) -> None:
    first = client.schedule("nightly_retrain", params, CRON)
    server.broken = {"recurring_run_service_create_recurring_run"}
    with pytest.raises(LatteError, match=r"the server failed \(503\): the database is away"):
        client.schedule("nightly_retrain", params, "0 0 4 * * *")
    assert list(server.recurring_runs) == [first.recurring_run_id]
    # A schedule made, but the old one not deleted: the next call leaves one.
    server.broken = {"recurring_run_service_delete_recurring_run"}
    with pytest.raises(LatteError):
        client.schedule("nightly_retrain", params, "0 0 4 * * *")
    assert len(server.recurring_runs) == 2
    server.broken = set()
    client.schedule("nightly_retrain", params, "0 0 4 * * *")
    assert [each["trigger"]["cron_schedule"]["cron"] for each in server.recurring_runs.values()] == ["0 0 4 * * *"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"steps": 0}}, "params: train.steps: Input should be greater than 0"),
        ({"train": {"step": 5}}, "unknown key step"),
        ({"surprise": 1}, "unknown key surprise"),
        ({"root": "file:///tmp/x"}, "a cluster needs a place in a bucket"),
        ({"promote": {"margin": 2}}, "margin"),
        ({"train": {"init_from": None}}, "null"),
        (
            {"train": {"init_from": "/only/there/m.json"}},
            "init_from: /only/there/m.json: neither on this",
        ),
    ],
)
def test_parameters_are_checked_before_anything_is_sent(
    server: kfp_server.KfpServer, client: Client, params: dict, change: dict, message: str
) -> None:
    calls = list(server.calls)
    for send in (client.submit, lambda *given: client.schedule(*given, CRON)):
        with pytest.raises(UserError, match=message):
            send("nightly_retrain", {**params, **change})
    assert server.calls == calls
    assert storage.list_uris(params["root"]) == []


def test_nothing_is_uploaded_for_a_run_that_is_refused(
    server: kfp_server.KfpServer, client: Client, params: dict
) -> None:
    client.submit("nightly_retrain", params, name="a")
    before = storage.list_objects(params["root"])
    (Path(params["encode"]["dataset"]["videos"]) / "b.mp4").write_text("another")
    with pytest.raises(UserError, match="run a: one of this name is going on"):
        client.submit("nightly_retrain", params, name="a")
    assert storage.list_objects(params["root"]) == before


def test_wrong_host_token_id_and_server(server: kfp_server.KfpServer, client: Client) -> None:
    with pytest.raises(UserError, match="give --host or set KF_PIPELINES_ENDPOINT"):
        Client()
    with pytest.raises(UserError, match="expected a URL"):
        Client("kubeflow.example.com")
    with pytest.raises(UserError, match="set KFP_TOKEN"):
        Client(server.url, token="expired")
    with pytest.raises(UserError, match="no version 2 of the API there"):
        Client(server.url + "/wrong", token="right")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(LatteError, match="no answer"):
            Client(f"http://127.0.0.1:{taken.getsockname()[1]}")
    with kfp_server.serve(multi_user=True) as shared, pytest.raises(UserError, match="name your namespace"):
        Client(shared.url)


def test_a_server_older_than_the_sdk(server: kfp_server.KfpServer, client: Client, params: dict) -> None:
    server.refused = {"upload_pipeline": 'unknown field "dagOutputs"'}
    with pytest.raises(UserError, match=r'submit .*refused: unknown field "dagOutputs"$'):
        client.submit("train_and_evaluate", params)
    server.version = "2.0.5"
    with pytest.raises(UserError, match=r'unknown field "dagOutputs"; the server is Kubeflow Pipelines 2\.0\.5, older'):
        client.submit("train_and_evaluate", params)
    with pytest.raises(UserError, match="upgrade the server to 2"):
        client.schedule("nightly_retrain", params, CRON)
    for version in ("99.0.0", "master"):
        server.version = version
        assert (client.version(), client.older()) == (version, "")


def test_a_certificate_of_the_site_s_own(params: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = certificates.self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with kfp_server.serve(certificate=context) as server:
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        with pytest.raises(UserError, match="not trusted; name its authority's file with SSL_CERT_FILE"):
            Client(server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
        with pytest.raises(UserError, match="no such file"):
            Client(server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        Client(server.url).submit("nightly_retrain", params)
        assert len(server.runs) == 1


@pytest.mark.parametrize("good", [CRON, "0 */15 * * * *", "0 0 2 ? * MON-FRI", "30 1,2 3-5/2 1 JAN *", "0 0 9 ? * 2-6"])
def test_good_crons(good: str) -> None:
    assert cron.check(good) == good


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("0 2 * * *", r'5 fields, expected 6.*did you mean "0 0 2'),
        ("60 0 2 * * *", "second '60'"),
        ("0 0 24 * * *", "hour '24'"),
        ("0 0 2 0 * *", "day of month '0'"),
        ("0 0 2 * * 7", "day of week '7'"),
        ("0 0 2 * * MON-", "day of week"),
        ("0 5-1 2 * * *", "minute '5-1'"),
        ("0 ? 2 * * *", "minute"),
        ("0 */0 2 * * *", "minute"),
        ("@daily", "1 fields"),
    ],
)
def test_bad_crons(bad: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cron.check(bad)


@given(st.text(max_size=30))
def test_any_text_is_a_cron_or_a_user_error(text: str) -> None:
    said = None
    try:
        checked = cron.check(text)
    except UserError as error:
        said = str(error)
    assert "\n" not in said if said else len(checked.split(" ")) == 6
