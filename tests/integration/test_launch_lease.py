"""A step that waits for a Volcano Job is killed: a second try adopts the Job, and without one its devices get free.

Steps and pods are processes here; a killed step has no time to say anything, as on a cluster.
"""

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from components.placement import LAUNCH_ENV, Launch, Pod, Volcano
from components.volcano import lease
from components.work import Work
from latte.errors import LatteError
from tests import kubernetes_server
from tests.e2e.runs import REPOSITORY
from tests.integration.test_launcher import calls, leave_result, the_job
from tests.launching import Waiting, until
from tests.soak import scaled

LEASE_S = 5
# What a busy machine may need to run and to end processes.
SLACK_S = 3
LAUNCH = Launch(image="latte-pipelines:0.1.0", pod=Pod(), volcano=Volcano(nodes=2, lease_s=LEASE_S))
# Two nodes that train together; each waits for the first one, whose name here is none that anybody could know. A step
# begins when it is told to: how long a cluster takes to try again is not looked at here.
STEP = """
import kubernetes, sys
from components.runtime import run_step
sys.stdin.readline()
wired = {"root": ROOT, "name": "m", "latents": "file:///nowhere/manifest.json"}
run_step("train", "train", {"workers": 2, "batch_size": 2}, wired)
"""
UNKNOWN_HOSTS = {"VC_WORKER_HOSTS": "::g,::g", "PYTHONPATH": str(REPOSITORY)}


def start_step(root: str, environment: dict[str, str], log: Path) -> "subprocess.Popen[str]":
    given = {LAUNCH_ENV: LAUNCH.model_dump_json(), "PATH": "/usr/bin", "PYTHONPATH": str(REPOSITORY)}
    with log.open("wb") as file:
        code = STEP.replace("ROOT", repr(root))
        command, variables = [sys.executable, "-c", code], {**environment, **given}
        return subprocess.Popen(command, env=variables, stderr=file, stdin=subprocess.PIPE, text=True)


def begin(step: "subprocess.Popen[str]") -> None:
    assert step.stdin is not None
    step.stdin.write("\n")
    step.stdin.flush()


def at_work(root: str) -> list[psutil.Process]:
    """The processes that work in the pods: what holds the devices."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "components.volcano.worker" in command and any(part.startswith(root) for part in command):
            found.append(process)
    return found


def kill_twice(folder: Path, seed: int) -> None:
    """Kill a step and the one that adopts its Job; what becomes of the pods."""
    rng, root = random.Random(seed), (folder / "root").as_uri()
    folder.mkdir()
    with kubernetes_server.serve(folder, runs_pods=True, environment=UNKNOWN_HOSTS) as (cluster, environment):
        first, second = (start_step(root, environment, folder / f"{log}.log") for log in ("first", "second"))
        begin(first)
        name = the_job(cluster)
        uid = cluster.jobs[name]["metadata"]["uid"]
        time.sleep(rng.uniform(0, 2))  # its pods start, or wait for the first one
        first.kill()
        killed = time.monotonic()
        first.wait()
        begin(second)
        until(lambda: "adopted" in (folder / "second.log").read_text(), LEASE_S)
        time.sleep(max(0.0, killed + LEASE_S + rng.uniform(0.5, 1) - time.monotonic()))
        assert cluster.jobs[name]["status"]["state"]["phase"] == "Running", "it was renewed in time"
        assert [job["metadata"]["uid"] for job in cluster.jobs.values()] == [uid], "no second one"
        pods = [cluster.processes[f"{name}-worker-{index}"] for index in (0, 1)]
        working = at_work(root)
        assert len(working) == 2
        second.kill()
        second.wait()
        assert not psutil.wait_procs(working, LEASE_S + SLACK_S)[1]
        until(lambda: cluster.jobs[name]["status"]["state"]["phase"] == "Terminated")
        codes = [pod.wait() for pod in pods]  # the first one to end has the other one ended
        assert lease.EXIT_CODE in codes
        assert 0 not in codes
        phases = [job["status"]["state"]["phase"] for _, _, job in cluster.history if "status" in job]
        assert phases.count("Running") == 1, "it did not start anew"
        log = cluster.logs[f"{name}-worker-{codes.index(lease.EXIT_CODE)}"]
        until(lambda: any(line.startswith("error: ended without being done: the Job's lease ") for _, line in log))


@pytest.mark.soak
def test_pods_end_within_the_lease_of_a_step_that_was_killed_and_a_second_one_adopts_them(tmp_path: Path) -> None:
    rounds = scaled(20)
    with ThreadPoolExecutor(2) as pool:  # they mostly wait
        done = [pool.submit(kill_twice, tmp_path / str(seed), seed) for seed in range(rounds)]
    for each in done:
        each.result()


def test_of_pods_that_leave_together_the_one_with_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Work
) -> None:
    with kubernetes_server.serve(tmp_path) as (cluster, environment):
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        waiting = Waiting(work, LAUNCH)
        name = the_job(cluster)
        cluster.add_pod(name, 0, "Failed", ["error: promoted: asked to stop"], 1)
        cluster.add_pod(name, 1, "Failed", ["error: ended without being done"], lease.EXIT_CODE)
        cluster.set_phase(name, "Terminated")
        assert str(waiting.end()).startswith(f"ended without being done (pod {name}-worker-1 of Volcano Job {name}, ")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work("promoted", "promoted", {}, {"root": (tmp_path / "root").as_uri(), "name": "m"}, "look_up")


def test_a_job_that_gave_up_while_it_was_adopted_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Work
) -> None:
    launch = LAUNCH.model_copy(update={"volcano": Volcano(lease_s=LEASE_S)})
    with kubernetes_server.serve(tmp_path) as (cluster, environment):
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        first = Waiting(work, launch)
        name = the_job(cluster)
        uid = cluster.jobs[name]["metadata"]["uid"]
        cluster.set_phase(name, "Running")
        second = Waiting(work, launch)
        until(lambda: len(calls(cluster, "POST")) == 2)
        cluster.add_pod(name, 0, "Failed", ["error: ended without being done"], lease.EXIT_CODE)
        cluster.set_phase(name, "Terminated")
        # Whoever made it could not renew it: trying again is for KFP.
        assert type(first.end()) is LatteError
        until(lambda: cluster.jobs.get(name, {"metadata": {"uid": uid}})["metadata"]["uid"] != uid)
        made = leave_result(cluster, work, name)
        cluster.set_phase(name, "Completed")
        assert second.end() == made
