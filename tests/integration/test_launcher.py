"""A step that launches a Volcano Job and waits for it, where a real API server cannot be made to do what is tested:
cut watches and logs in the middle, answer wrong; and pods that are processes. The rest is in tests/cluster.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from components import work as works
from components.volcano import api, launcher, worker
from components.work import Work
from latte import storage
from latte.errors import LatteError, UserError
from latte.storage import manifest
from tests import kubernetes_server
from tests.e2e.runs import REPOSITORY
from tests.launching import LAUNCH, Waiting, done_by_hand, promoted, start_step, until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_POLL_S", 0.05)
    monkeypatch.setattr(api, "_FIRST_PAUSE_S", 0.05)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[kubernetes_server.Cluster]:
    with kubernetes_server.serve(tmp_path) as (served, environment):
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        yield served


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return promoted(tmp_path)


def the_job(cluster: kubernetes_server.Cluster) -> str:
    return next(iter(until(lambda: dict(cluster.jobs))))


def leave_result(cluster: kubernetes_server.Cluster, work: Work, name: str) -> manifest.Manifest:
    """What the Job's only pod would do."""
    return done_by_hand(cluster.jobs[name], work)


def calls(cluster: kubernetes_server.Cluster, method: str) -> list[dict]:
    return [body for call, body in zip(cluster.calls, cluster.bodies, strict=True) if call.startswith(method)]


def test_cut_watches_cut_logs_and_outages_change_nothing(
    cluster: kubernetes_server.Cluster, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    # The third log is cut among the lines that the second has shown.
    cluster.outages, cluster.cut_watches, cluster.cut_logs = 3, 3, [1, 7, 2]
    waiting = Waiting(work)
    name = the_job(cluster)
    lines = [f"line {i}" for i in range(20)]
    cluster.add_pod(name, 0, "Running", lines[:10])
    for _ in range(6):
        cluster.set_phase(name, "Running")
        time.sleep(0.05)
    cluster.outages = 3
    made = leave_result(cluster, work, name)
    until(lambda: not cluster.cut_logs)
    cluster.logs[f"{name}-worker-0"] += [(kubernetes_server._stamp(), line) for line in lines[10:]]
    cluster._end_pod(f"{name}-worker-0", 0)
    cluster.set_phase(name, "Completed")
    assert waiting.end() == made
    assert cluster.cut_watches == 0
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if line.startswith("line")] == lines
    assert "fsnotify" not in said


def test_what_kfp_lets_log_to_mlflow_reaches_the_job_without_its_secrets(
    cluster: kubernetes_server.Cluster, work: Work
) -> None:
    secret = {"valueFrom": {"secretKeyRef": {"name": "kfp-mlflow-credentials", "key": "token"}}}
    told = [
        {"name": "MLFLOW_RUN_ID", "value": "of the first try"},
        {"name": "MLFLOW_TRACKING_URI", "value": "https://mlflow.example.com"},
        {"name": "MLFLOW_TRACKING_TOKEN", **secret},
    ]
    step = cluster.pods[kubernetes_server.STEP_POD]
    step["spec"] = {"containers": [{"env": [{"name": "KFP_MLFLOW_CONFIG", "value": "{}"}, *told]}, {"name": "wait"}]}
    waiting = Waiting(work)
    name = the_job(cluster)
    (task,) = cluster.jobs[name]["spec"]["tasks"]
    given = [each for each in task["template"]["spec"]["containers"][0]["env"] if "MLFLOW" in each["name"]]
    assert given == told
    leave_result(cluster, work, name)
    cluster.set_phase(name, "Completed")
    assert isinstance(waiting.end(), manifest.Manifest)
    # Another try has another run of MLflow, and finds its Job all the same.
    told[0]["value"] = "of the second try"
    assert isinstance(Waiting(work).end(), manifest.Manifest)
    assert list(cluster.jobs) == [name]


def test_where_kubernetes_says_who_asks_the_waiting_step_alone_logs(
    cluster: kubernetes_server.Cluster, work: Work
) -> None:
    told = [{"name": "MLFLOW_RUN_ID", "value": "1"}, {"name": "MLFLOW_TRACKING_AUTH", "value": "kubernetes"}]
    cluster.pods[kubernetes_server.STEP_POD]["spec"] = {"containers": [{"env": told}]}
    waiting = Waiting(work)
    name = the_job(cluster)
    assert "MLFLOW" not in json.dumps(cluster.jobs[name])
    leave_result(cluster, work, name)
    cluster.set_phase(name, "Completed")
    assert isinstance(waiting.end(), manifest.Manifest)


def test_settings_are_checked_before_anything_is_launched(cluster: kubernetes_server.Cluster, work: Work) -> None:
    with pytest.raises(UserError, match="promoted: unknown key stpes"):
        launcher.run(Work("promoted", "promoted", {"stpes": 1}, work.wired, "look_up"), LAUNCH)
    assert not cluster.calls


def test_a_step_killed_and_tried_again_ends_with_what_the_pods_made(tmp_path: Path) -> None:
    """Pods are processes here; the second try finds the Job that the first one left."""
    with kubernetes_server.serve(tmp_path, runs_pods=True) as (cluster, environment):
        first = start_step((tmp_path / "root").as_uri(), environment)
        name = the_job(cluster)
        first.kill()
        first.communicate()
        again = start_step((tmp_path / "root").as_uri(), environment)
        said = again.communicate()[1]
        assert again.returncode == 0, said
        assert f"Volcano Job {name}: " in said
        assert list(cluster.jobs) == [name]
        assert cluster.jobs[name]["status"]["state"]["phase"] == "Completed"
        assert asked(cluster) <= granted()
    (result,) = (tmp_path / "root").rglob("result-00000.json")
    assert json.loads(result.read_text())["kind"] == "promoted"


def test_real_pods_that_fail(tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of the user's is not tried again; anything else is, as often as is set."""
    for name, environment, kind, said, starts in [
        ("mistake", {"PYTHONPATH": str(REPOSITORY)}, UserError, "nothing is promoted under m yet", 1),
        ("crash", {"PYTHONHOME": str(tmp_path)}, LatteError, "with code 1); the ends of the logs:", 3),
    ]:
        (tmp_path / name).mkdir()
        with kubernetes_server.serve(tmp_path / name, runs_pods=True, environment=environment) as (cluster, of_step):
            for key, value in of_step.items():
                monkeypatch.setenv(key, value)
            wired = {**work.wired, "checkpoint": ""}
            with pytest.raises(LatteError) as caught:
                launcher.run(Work("checkpoint", "promoted", {}, wired, "fetch"), LAUNCH)
            assert type(caught.value) is kind
            assert said in str(caught.value).splitlines()[0], caught.value
            phases = [job["status"]["state"]["phase"] for _, _, job in cluster.history if "status" in job]
            assert phases.count("Running") == starts
            assert phases[-1] == ("Terminated" if kind is UserError else "Failed")


def granted() -> set[tuple[str, str]]:
    path = REPOSITORY / "manifests/components/volcano/volcano-role.yaml"
    role = next(yaml.safe_load_all(path.read_text()))
    return {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}


def asked(cluster: kubernetes_server.Cluster) -> set[tuple[str, str]]:
    found = set()
    for method, path, query in (call.split(" ") for call in cluster.calls):
        resource, _, name = path.split("/namespaces/latte/")[1].partition("/")
        if name.endswith("/log"):
            resource = "pods/log"
        listing = "watch" if "watch" in query else "list"
        verb = {"POST": "create", "DELETE": "delete"}.get(method, "get" if name else listing)
        found.add((resource, verb))
    return found


def test_what_a_pod_is_told_by_volcano(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker.place({"VC_TASK_INDEX": "1", "VC_WORKER_HOSTS": "a-0.a,a-1.a"}) == (1, ["a-0.a", "a-1.a"])
    for environment in ({}, {"VC_TASK_INDEX": "2", "VC_WORKER_HOSTS": "a,b"}, {"VC_WORKER_HOSTS": "a"}):
        with pytest.raises(UserError, match="expected what Volcano's plugins env and svc set"):
            worker.place(environment)
    monkeypatch.setattr(worker, "_POLL_S", 0.01)
    answers = iter([OSError("unknown name"), OSError("unknown name"), []])

    def resolve(*_: object) -> list:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(worker.socket, "getaddrinfo", resolve)
    worker.wait_for("a-0.a")
    assert next(answers, None) is None, "asked until it resolved"
    monkeypatch.setattr(worker.socket, "getaddrinfo", lambda *_: (_ for _ in ()).throw(OSError("unknown name")))
    with pytest.raises(LatteError, match=r"the first node a-0\.a did not appear within 0 s"):
        worker.wait_for("a-0.a", within_s=0.05)


def test_files_of_the_pod_go_along_and_names_do_not_change(tmp_path: Path) -> None:
    path = tmp_path / "vae"
    path.write_text('{"kind": "weights"}')
    folder = (tmp_path / "root/launched/x").as_uri()
    wired = {"root": "s3://bucket/prefix", "name": "m", "vae": str(path), "step": None, "scores": [str(path)]}
    moved = Work("t", "m", {"videos": "/data/videos"}, wired, "f", {"task": None, "num_tasks": 2}).portable(folder)
    assert storage.read_json(moved.wired["vae"]) == {"kind": "weights"}
    assert moved.wired["scores"] == [moved.wired["vae"]]
    assert {key: moved.wired[key] for key in ("root", "name", "step")} == {
        key: wired[key] for key in ("root", "name", "step")
    }
    assert moved.settings == {"videos": "/data/videos"}
    assert moved.shared


def test_what_a_job_is_to_do_moves_with_its_root(tmp_path: Path) -> None:
    root = (tmp_path / "root").as_uri()
    place = storage.join(root, "videos", "v", "f")
    (tmp_path / "videos").write_text(json.dumps({"uri": place, "checkpoint": "s3://elsewhere/x"}))
    wired = {
        "root": root,
        "name": "m",
        "videos": str(tmp_path / "videos"),
        "checkpoint": storage.join(root, "runs", "x"),
    }
    work = Work("t", "m", {}, wired).portable(storage.join(root, "launched", "x"))
    uri = storage.join(root, "launched", "x", "y", "work.json")
    work.write(uri)
    assert works.read(uri) == work
    (tmp_path / "root").rename(tmp_path / "moved")
    assert not [path for path in (tmp_path / "moved").rglob("*.json") if root in path.read_text()]
    moved = works.read(uri.replace(root, (tmp_path / "moved").as_uri()))
    assert moved.wired["root"] == (tmp_path / "moved").as_uri()
    assert moved.wired["checkpoint"] == storage.join(moved.wired["root"], "runs", "x")
    content = storage.read_json(moved.wired["videos"])
    assert content == {"uri": storage.join(moved.wired["root"], "videos", "v", "f"), "checkpoint": "s3://elsewhere/x"}
