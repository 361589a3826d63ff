"""A step that launches a Volcano Job and waits for it, against a Kubernetes API on loopback; retries, cuts and ends."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import work as works
from components.placement import LAUNCH_ENV, Launch, Pod, Volcano
from components.volcano import api, job, launcher, worker
from components.work import Work
from latte import manifest, storage
from latte.errors import LatteError, UserError
from tests import kubernetes_server
from tests.e2e.runs import REPOSITORY

LAUNCH = Launch(image="latte-pipelines:0.1.0", pod=Pod(deadline_s=3600), volcano=Volcano())
# A step that takes no time, as a component starts it.
STEP = """
from components.runtime import run_step
run_step("promoted", "promoted", "PromotedConfig", {}, {"root": ROOT, "name": "m"}, function="look_up")
"""


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
    wired = {"root": (tmp_path / "root").as_uri(), "name": "m"}
    return Work("promoted", "promoted", "PromotedConfig", {}, wired, "look_up")


class Waiting:
    """A launching step in a thread of its own."""

    def __init__(self, work: Work, launch: Launch = LAUNCH) -> None:
        self.result: manifest.Manifest | BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work, launch), daemon=True)
        self._thread.start()

    def _run(self, work: Work, launch: Launch) -> None:
        try:
            self.result = launcher.run(work, launch)
        except BaseException as error:
            self.result = error

    def end(self) -> Any:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.result


def until(there: Callable[[], Any], within_s: float = 15.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := there()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def the_job(cluster: kubernetes_server.Cluster) -> str:
    return next(iter(until(lambda: dict(cluster.jobs))))


def leave_result(cluster: kubernetes_server.Cluster, work: Work, name: str) -> manifest.Manifest:
    """What the Job's only pod would do."""
    made = work.run()
    command = cluster.jobs[name]["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["command"]
    manifest.write(made, worker.result_uri(command[-1].rsplit("/", 1)[0], 0))
    return made


def calls(cluster: kubernetes_server.Cluster, method: str) -> list[dict]:
    return [body for call, body in zip(cluster.calls, cluster.bodies, strict=True) if call.startswith(method)]


def test_a_retried_step_adopts_the_job_that_it_left(
    cluster: kubernetes_server.Cluster, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Waiting(work)
    name = the_job(cluster)
    cluster.set_phase(name, "Running")
    second = Waiting(work)
    until(lambda: len(calls(cluster, "POST")) == 2)
    made = leave_result(cluster, work, name)
    cluster.set_phase(name, "Completed")
    assert first.end() == second.end() == made
    assert list(cluster.jobs) == [name]
    assert not calls(cluster, "DELETE")
    said = capsys.readouterr().err
    assert f"Volcano Job {name}: created, 1 pod(s)" in said
    assert f"Volcano Job {name}: adopted from an earlier try of this step, " in said
    # A step that comes after the end finds it, too.
    assert Waiting(work).end() == made


def test_the_job_is_the_workflow_s_and_ends_by_itself(cluster: kubernetes_server.Cluster, work: Work) -> None:
    waiting = Waiting(work, LAUNCH.model_copy(update={"pod": Pod(deadline_s=77, memory="1Gi", shm="64Mi")}))
    made = cluster.jobs[the_job(cluster)]
    assert made["metadata"]["ownerReferences"] == [kubernetes_server.WORKFLOW]
    pod = made["spec"]["tasks"][0]["template"]["spec"]
    assert pod["activeDeadlineSeconds"] == 77
    assert pod["volumes"][0] == {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}
    assert not pod["automountServiceAccountToken"]
    secrets = [each for each in pod["containers"][0]["env"] if "secretKeyRef" in each.get("valueFrom", {})]
    assert {each["valueFrom"]["secretKeyRef"]["name"] for each in secrets} == {"latte-s3"}
    cluster.delete(made["metadata"]["name"])
    assert "somebody deleted it" in str(waiting.end())


def test_a_name_taken_by_another_spec_is_refused(cluster: kubernetes_server.Cluster, work: Work) -> None:
    waiting = Waiting(work)
    name = the_job(cluster)
    cluster.jobs[name]["metadata"]["annotations"][job.HASH] = "other"
    with pytest.raises(UserError, match=f"{name}: the name is taken by a Job with another spec; kubectl delete vcjob"):
        launcher.run(work, LAUNCH)
    cluster.delete(name)
    waiting.end()


def test_a_job_that_failed_before_is_made_anew(cluster: kubernetes_server.Cluster, work: Work) -> None:
    first = Waiting(work)
    name = the_job(cluster)
    uid = cluster.jobs[name]["metadata"]["uid"]
    cluster.set_phase(name, "Aborted", reason="JobAborted", message="drained")
    assert "Aborted; its pods left no logs" in str(first.end())
    second = Waiting(work)
    until(lambda: cluster.jobs.get(name, {"metadata": {"uid": uid}})["metadata"]["uid"] != uid)
    made = leave_result(cluster, work, name)
    cluster.set_phase(name, "Completed")
    assert second.end() == made
    assert calls(cluster, "DELETE")[0]["propagationPolicy"] == "Background"


@pytest.mark.parametrize(
    ("lines", "code", "kind", "said"),
    [
        (["step 1", "error: train: steps=1, ask for more"], 2, UserError, "train: steps=1, ask for more (pod "),
        (["step 1", "error: train: disk full"], 1, LatteError, "train: disk full (pod "),
        ([f"line {i}" for i in range(99)], 137, LatteError, "with code 137); the ends of the logs:\n"),
    ],
)
def test_a_failed_job_is_told_by_the_last_lines_of_its_pods(
    cluster: kubernetes_server.Cluster, work: Work, lines: list[str], code: int, kind: type[LatteError], said: str
) -> None:
    waiting = Waiting(work)
    name = the_job(cluster)
    cluster.add_pod(name, 0, "Failed", lines, code)
    cluster.set_phase(name, "Failed")
    error = waiting.end()
    assert type(error) is kind
    assert said in str(error)
    if code == 137:
        assert str(error).splitlines()[1:] == [f"{name}-worker-0: line {i}" for i in range(84, 99)]


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


def test_a_job_counts_whose_logs_may_not_be_read(
    cluster: kubernetes_server.Cluster, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.forbidden = {"log"}
    waiting = Waiting(work)
    name = the_job(cluster)
    cluster.add_pod(name, 0, "Running", ["line"])
    made = leave_result(cluster, work, name)
    until(lambda: any("/log" in call for call in cluster.calls))
    cluster.set_phase(name, "Completed")
    assert waiting.end() == made
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("no logs of")]
    assert "latte-runner" in line


def test_a_job_that_takes_too_long_is_deleted(
    cluster: kubernetes_server.Cluster, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_SLACK_S", 0.0)
    waiting = Waiting(work, LAUNCH.model_copy(update={"pod": Pod(deadline_s=3)}))
    cluster.set_phase(the_job(cluster), "Pending")
    assert "Pending, not done 3 s after its creation, and deleted; raise the step's deadline_s" in str(waiting.end())
    assert not cluster.jobs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"forbidden": {"create"}}, "may not do that in namespace latte; apply manifests/overlays/ascend-mindcluster"),
        ({"forbidden": {"get"}}, "may not do that in namespace latte"),
        ({"has_volcano": False}, "no Volcano (jobs.batch.volcano.sh is not known); install it, or leave cluster."),
        ({"pods": {}}, "pod run-step-1: not there"),
    ],
)
def test_what_the_cluster_refuses_is_one_line(
    cluster: kubernetes_server.Cluster, work: Work, change: dict[str, Any], said: str
) -> None:
    for key, value in change.items():
        setattr(cluster, key, value)
    with pytest.raises(LatteError) as caught:
        launcher.run(work, LAUNCH)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_are_checked_before_anything_is_launched(cluster: kubernetes_server.Cluster, work: Work) -> None:
    with pytest.raises(UserError, match="promoted: unknown key stpes"):
        launcher.run(Work("promoted", "promoted", "PromotedConfig", {"stpes": 1}, work.wired, "look_up"), LAUNCH)
    assert not cluster.calls


def start_step(tmp_path: Path, environment: dict[str, str], launch: Launch = LAUNCH) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", STEP.replace("ROOT", repr((tmp_path / "root").as_uri()))],
        env={**environment, LAUNCH_ENV: launch.model_dump_json(), "PATH": "/usr/bin", "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_deletes_the_job_and_the_step_fails(tmp_path: Path) -> None:
    with kubernetes_server.serve(tmp_path) as (cluster, environment):
        step = start_step(tmp_path, environment)
        name = the_job(cluster)
        cluster.set_phase(name, "Running")
        until(lambda: any("watch" in call for call in cluster.calls))
        sent = time.monotonic()
        step.send_signal(signal.SIGTERM)
        until(lambda: not cluster.jobs)
        assert time.monotonic() - sent < 2, "KFP leaves about a second"
        assert step.communicate()[1].splitlines()[-1].startswith(f"error: promoted: asked to stop: Volcano Job {name}")
        assert step.returncode == 1
        assert calls(cluster, "DELETE")[0]["propagationPolicy"] == "Background"
        assert {("jobs", "watch"), ("jobs", "delete")} <= asked(cluster) <= granted()


def test_a_step_killed_and_tried_again_ends_with_what_the_pods_made(tmp_path: Path) -> None:
    """Pods are processes here; the second try finds the Job that the first one left."""
    with kubernetes_server.serve(tmp_path, runs_pods=True) as (cluster, environment):
        first = start_step(tmp_path, environment)
        name = the_job(cluster)
        first.kill()
        first.communicate()
        again = start_step(tmp_path, environment)
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
                launcher.run(Work("checkpoint", "promoted", "PromotedConfig", {}, wired, "fetch"), LAUNCH)
            assert type(caught.value) is kind
            assert said in str(caught.value).splitlines()[0], caught.value
            phases = [job["status"]["state"]["phase"] for _, _, job in cluster.history if "status" in job]
            assert phases.count("Running") == starts
            assert phases[-1] == ("Terminated" if kind is UserError else "Failed")


def granted() -> set[tuple[str, str]]:
    path = REPOSITORY / "manifests/overlays/ascend-mindcluster/volcano-role.yaml"
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
    moved = Work("t", "m", "C", {"videos": "/data/videos"}, wired, "f", {"task": None, "num_tasks": 2}).portable(folder)
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
    work = Work("t", "m", "C", {}, wired).portable(storage.join(root, "launched", "x"))
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
