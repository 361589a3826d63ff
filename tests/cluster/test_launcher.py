"""A step that launches a Volcano Job, on a real API server with Volcano's definitions, with the rights of its role."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from components.placement import Pod, Volcano
from components.volcano import api, job, launcher
from components.work import Work
from latte.errors import LatteError, UserError
from tests.cluster import conftest as definitions
from tests.cluster.control_plane import ControlPlane
from tests.cluster.launching_namespace import NAME, LaunchingNamespace
from tests.launching import LAUNCH, Waiting, done_by_hand, promoted, start_step, until


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return promoted(tmp_path)


def the_job(there: LaunchingNamespace) -> dict[str, Any]:
    return dict(until(there.job, 30))


def test_a_retried_step_adopts_the_job_that_it_left(
    there: LaunchingNamespace, work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Waiting(work)
    made = the_job(there)
    name = made["metadata"]["name"]
    there.set_phase(name, "Running")
    second = Waiting(work)
    until(lambda: "adopted from an earlier try of this step, " in capsys.readouterr().err)
    result = done_by_hand(made, work)
    there.set_phase(name, "Completed")
    assert first.end() == second.end() == result
    assert list(there.jobs()) == [name]
    # A step that comes after the end finds it, too.
    assert Waiting(work).end() == result
    assert there.job()["metadata"]["uid"] == made["metadata"]["uid"]


def test_volcano_s_definition_keeps_the_whole_job(there: LaunchingNamespace, work: Work) -> None:
    launch = LAUNCH.model_copy(update={"pod": Pod(deadline_s=77, memory="1Gi", shm="64Mi")})
    waiting = Waiting(work, launch)
    kept = the_job(there)
    name = kept["metadata"]["name"]
    pod = kept["spec"]["tasks"][0]["template"]["spec"]
    uri = pod["containers"][0]["command"][-1]
    wanted = job.build(launch, uri, 1, True, "promoted", there.workflow)
    assert kept["spec"] == wanted["spec"], "no key is unknown to it"
    assert kept["metadata"]["ownerReferences"] == [there.workflow]
    assert pod["activeDeadlineSeconds"] == 77
    assert not pod["automountServiceAccountToken"]
    secrets = [each for each in pod["containers"][0]["env"] if "secretKeyRef" in each.get("valueFrom", {})]
    assert {each["valueFrom"]["secretKeyRef"]["name"] for each in secrets} == {"latte-s3"}
    there.delete(name)
    assert "somebody deleted it" in str(waiting.end())


def test_the_job_goes_with_the_run_s_workflow(there: LaunchingNamespace, work: Work, cluster: ControlPlane) -> None:
    waiting = Waiting(work)
    name = the_job(there)["metadata"]["name"]
    there.set_phase(name, "Running")
    cluster.kubectl("delete", "workflows.argoproj.io", there.workflow["name"], "-n", NAME)
    assert "somebody deleted it" in str(waiting.end(90)), "Kubernetes' own collector has"
    assert not there.jobs()
    gone = f"pod/{there.environment['KFP_POD_NAME']}"
    cluster.kubectl("wait", "--for=delete", gone, "-n", NAME, "--timeout=60s")
    kind = {"apiVersion": there.workflow["apiVersion"], "kind": "Workflow"}
    cluster.apply({**kind, "metadata": {"name": there.workflow["name"], "namespace": NAME}})


def test_a_name_taken_by_another_spec_is_refused(there: LaunchingNamespace, work: Work) -> None:
    waiting = Waiting(work)
    name = the_job(there)["metadata"]["name"]
    there.patch(name, {"metadata": {"annotations": {job.HASH: "other"}}})
    with pytest.raises(UserError, match=f"{name}: the name is taken by a Job with another spec; kubectl delete vcjob"):
        launcher.run(work, LAUNCH)
    there.delete(name)
    waiting.end()


def test_a_job_that_failed_before_is_made_anew_once_it_has_gone(there: LaunchingNamespace, work: Work) -> None:
    first = Waiting(work)
    made = the_job(there)
    name, uid = made["metadata"]["name"], made["metadata"]["uid"]
    there.set_phase(name, "Aborted", reason="JobAborted", message="drained")
    assert "Aborted; its pods left no logs" in str(first.end())
    # Somebody holds it: it is there for a while after it was deleted.
    there.patch(name, {"metadata": {"finalizers": ["latte.example/held"]}})
    second = Waiting(work)
    until(lambda: there.jobs()[name]["metadata"].get("deletionTimestamp"), 30)
    time.sleep(0.5)
    assert second.result is None
    there.patch(name, {"metadata": {"finalizers": None}})
    until(lambda: there.jobs().get(name, {"metadata": {"uid": uid}})["metadata"]["uid"] != uid, 30)
    result = done_by_hand(made, work)
    there.set_phase(name, "Completed")
    assert second.end() == result


def test_an_api_server_that_is_started_anew_changes_nothing(
    there: LaunchingNamespace, work: Work, cluster: ControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = Waiting(work)
    made = the_job(there)
    name = made["metadata"]["name"]
    there.set_phase(name, "Running")
    until(lambda: f"Volcano Job {name}: Running" in capsys.readouterr().err)
    cluster.stop_api_server()
    time.sleep(1)  # the step asks, and nobody answers
    cluster.start_api_server()
    assert waiting.result is None
    result = done_by_hand(made, work)
    there.set_phase(name, "Completed", reason="seen after it")
    assert waiting.end() == result
    assert f"Volcano Job {name}: Completed (seen after it)" in capsys.readouterr().err


def test_a_watch_from_a_state_that_is_forgotten_is_taken_up_anew(
    there: LaunchingNamespace, work: Work, cluster: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the API server cannot answer out of what it remembers either.
    waiting = Waiting(work)
    made = the_job(there)
    name, version = made["metadata"]["name"], made["metadata"]["resourceVersion"]
    for count in range(3):
        there.set_phase(name, "Running", message=str(count))
    cluster.stop_api_server()
    cluster.start_api_server()
    cluster.compact()
    raw = f"/apis/batch.volcano.sh/v1alpha1/namespaces/{NAME}/jobs?watch=1&timeoutSeconds=5&resourceVersion={version}"
    assert '"code":410' in until(lambda: answered(cluster, raw), 30), "it is forgotten"
    asked = api.Api(NAME)
    before = time.monotonic()
    assert list(asked.changes(made, 30)) == []
    assert time.monotonic() - before < 10, "it does not wait for what never comes"
    # A step that saw nothing since looks, and goes on from what is there now.
    states = launcher._states(asked, made, lambda: 30.0)
    assert next(states)["status"]["state"] == {"phase": "Running", "message": "2"}
    result = done_by_hand(made, work)
    there.set_phase(name, "Completed")
    assert next(states)["status"]["state"]["phase"] == "Completed"
    assert waiting.end() == result


def test_a_job_that_takes_too_long_is_deleted(
    there: LaunchingNamespace, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_SLACK_S", 0.0)
    waiting = Waiting(work, LAUNCH.model_copy(update={"pod": Pod(deadline_s=4)}))
    there.set_phase(the_job(there)["metadata"]["name"], "Pending")
    assert "Pending, not done 4 s after its creation, and deleted; raise the step's deadline_s" in str(waiting.end())
    assert not there.jobs()


def test_sigterm_deletes_the_job_and_the_step_fails(there: LaunchingNamespace, tmp_path: Path) -> None:
    step = start_step((tmp_path / "root").as_uri(), there.environment)
    name = the_job(there)["metadata"]["name"]
    there.set_phase(name, "Running")
    time.sleep(1)  # it watches
    sent = time.monotonic()
    step.send_signal(signal.SIGTERM)
    until(lambda: not there.jobs())
    assert time.monotonic() - sent < 2, "KFP leaves about a second"
    assert step.communicate()[1].splitlines()[-1].startswith(f"error: promoted: asked to stop: Volcano Job {name}")
    assert step.returncode == 1


def answered(cluster: ControlPlane, path: str) -> str:
    """What a GET answers; "" while the server is still reading its store."""
    try:
        return cluster.request(path)
    except OSError:
        return ""


def refused(work: Work, volcano: Volcano | None = None) -> LatteError:
    with pytest.raises(LatteError) as caught:
        launcher.run(work, LAUNCH.model_copy(update={"volcano": volcano or Volcano()}))
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_the_cluster_refuses_is_one_line(
    there: LaunchingNamespace, work: Work, cluster: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No rights: the account that every namespace has, and the runner without the component.
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig("default", cluster.token(NAME, "default"), NAME)))
    said = str(refused(work))
    assert (
        f"pod {there.environment['KFP_POD_NAME']}: the step's service account may not do that in namespace latte"
        in said
    )
    assert "add manifests/components/volcano to the overlay and run with KFP_SERVICE_ACCOUNT=latte-runner" in said
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig("nobody", "a-token-of-nobody", NAME)))
    assert "the step's service account is not known to the cluster" in str(refused(work))
    monkeypatch.setenv("KUBECONFIG", there.environment["KUBECONFIG"])

    # Not valid by Volcano's definition.
    error = refused(work, Volcano(queue="a..b"))
    assert type(error) is UserError
    assert "refused: Job.batch.volcano.sh" in str(error)
    assert 'spec.queue: Invalid value: "a..b"' in str(error)

    # A quota is a refusal with the code of missing rights.
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "no-jobs", "namespace": NAME}}
    cluster.apply({**quota, "spec": {"hard": {"count/jobs.batch.volcano.sh": "0"}}})
    try:
        # The controllers count objects of kinds that are new to them at their leisure; the API server alone refuses.
        counted = {"count/jobs.batch.volcano.sh": "0"}
        status = json.dumps({"status": {"hard": counted, "used": counted}})
        cluster.kubectl("patch", "quota", "no-jobs", "-n", NAME, "--subresource=status", "--type=merge", "-p", status)
        error = refused(work)
    finally:
        cluster.kubectl("delete", "quota", "no-jobs", "-n", NAME)
    assert type(error) is UserError
    assert "exceeded quota: no-jobs, requested: count/jobs.batch.volcano.sh=1" in str(error)
    assert "service account" not in str(error)

    monkeypatch.setenv("KFP_POD_NAME", "gone")
    assert "pod gone: not there" in str(refused(work))
    monkeypatch.setenv("KFP_POD_NAME", there.environment["KFP_POD_NAME"])
    cluster.kubectl("delete", "-f", definitions.VOLCANO)
    try:
        said = str(refused(work))
    finally:
        definitions.install(cluster)
    assert "no Volcano (jobs.batch.volcano.sh is not known); install it, or leave cluster." in said


def test_jobs_of_a_run_that_have_not_ended_are_found(there: LaunchingNamespace, work: Work) -> None:
    waiting = Waiting(work)
    name = the_job(there)["metadata"]["name"]
    asked = api.Api(NAME)
    assert asked.unfinished(there.workflow["uid"]) == [name]
    assert asked.unfinished("another") == []
    there.set_phase(name, "Failed")
    assert "Failed; its pods left no logs" in str(waiting.end())
    assert asked.unfinished(there.workflow["uid"]) == []
    asked.delete(name)
    asked.delete(name)
    assert not there.jobs()
