"""The logs of recorded runs of a real Kubeflow Pipelines: from the pods, from the bucket, and followed."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latte import storage
from latte.errors import LatteError, UserError
from pipelines import run_logs, run_status
from pipelines.client import Client
from pipelines.status import Status
from tests import kfp_server
from tests import recorded_kfp as recorded

TRAIN_POD = "latte-train-and-evaluate-ghhsq-system-container-impl-1468862637"


def test_logs_are_the_steps_own_lines(server: kfp_server.KfpServer, client: Client) -> None:
    run_id = recorded.play(server, recorded.SUCCEEDED)
    server.logs[(run_id, TRAIN_POD)] = recorded.TRAIN_LOG.replace("50s/", "50\x1b[2Js/")
    status = run_status.brief(client, run_id)
    chosen = run_logs.choose(status, "train")
    assert [task.name for task in chosen] == ["train"]  # not "sample trained: plan"
    own = list(run_logs.lines(client, status, chosen))
    assert len(own) == 8
    assert own[0] == run_logs.Line("train", "Volcano Job latte-train-a61d84e204: created, 2 pod(s)")
    assert all("\x1b" not in line.text for line in own)
    server.logs[(run_id, "latte-train-and-evaluate-ghhsq-system-container-driver-2504932096")] = "I am the driver\n"
    every = list(run_logs.lines(client, status, chosen, everything=True))
    assert run_logs.Line("train (driver)", "I am the driver") in every
    assert len(every) > 200
    with pytest.raises(UserError, match="no task 'nothing'; tasks: convert vae, convert i3d, encode: plan"):
        run_logs.choose(status, "nothing")


@pytest.mark.parametrize("s3_root", ["seaweedfs"], indirect=True)
def test_logs_come_from_the_bucket_when_the_pods_are_gone(
    server: kfp_server.KfpServer, client: Client, s3_root: str
) -> None:
    run_id = recorded.play(server, recorded.FAILED_STEP)
    moved = json.dumps(server.workflows[run_id]).replace("s3://latte/kfp", s3_root)
    server.workflows[run_id] = json.loads(moved)
    status = run_status.brief(client, run_id)
    pod = status.failed.pods[-1]
    assert pod.log_uri.startswith(f"{s3_root}/latte-train-and-evaluate/{run_id}/encode-shards/")
    with pytest.raises(UserError, match=r"its pod is gone; in the bucket: .*/executor-logs-0: not there"):
        list(run_logs.lines(client, status, [status.failed]))
    storage.write_bytes(pod.log_uri, recorded.FAILED_LOG.encode())
    lines = list(run_logs.lines(client, status, [status.failed]))
    assert [line.source for line in lines] == ["encode: shards 1 of 1"]
    assert lines[0].text.startswith("error: encode (all of 1)")
    assert "queue latte is not Open" in run_status.status(client, run_id).failed.reason


def test_a_log_that_the_server_cannot_read_is_one_line_and_the_others_are_shown(
    server: kfp_server.KfpServer, client: Client
) -> None:
    run_id = recorded.play(server, recorded.SUCCEEDED)
    status = run_status.brief(client, run_id)
    server.logs[(run_id, TRAIN_POD)] = (
        'half a line\n{"error_message":"stream cut","error_details":"stream cut\\nat x.go"}'
    )
    chosen = run_logs.choose(status, "train")
    with pytest.raises(UserError, match="stream cut; in the bucket: ") as caught:
        list(run_logs.lines(client, status, chosen))
    assert "{" not in str(caught.value) and "\n" not in str(caught.value)
    vae = next(pod.name for pod in status.tasks[0].pods if not pod.driver)
    server.logs[(run_id, vae)] = "converted\n"
    both = list(run_logs.lines(client, status, (status.tasks[0], *chosen)))
    assert [line.source for line in both] == ["convert vae", "train"]
    assert both[0].text == "converted" and "stream cut" in both[1].text


def test_a_task_that_has_not_begun_has_no_log_and_says_what_it_waits_for(
    server: kfp_server.KfpServer, client: Client
) -> None:
    status = run_status.brief(client, recorded.play(server, recorded.FAILED_STEP))
    with pytest.raises(UserError, match="no log yet: report is SKIPPED"):
        list(run_logs.lines(client, status, run_logs.choose(status, "report")))


def test_a_pod_that_waits_has_no_log_but_a_reason(server: kfp_server.KfpServer, client: Client) -> None:
    run_id = recorded.train_again(server)
    value = json.loads(server.workflows[run_id]["pipeline_runtime"]["workflow_manifest"])
    pod = next(each for each in value["status"]["nodes"].values() if each["name"].endswith("train(0).executor(0)"))
    pod.update(phase="Pending", message="Unschedulable: 0/3 nodes are available: 3 Insufficient memory.")
    server.workflows[run_id]["pipeline_runtime"]["workflow_manifest"] = json.dumps(value)
    status = run_status.brief(client, run_id)
    with pytest.raises(UserError, match=r"no log yet: train is PENDING \(no node fits: 0/3 nodes are available"):
        list(run_logs.lines(client, status, run_logs.choose(status, "train")))
    looks = iter([status, status, dataclasses.replace(status, state="CANCELED")])
    said = [line.text for line in run_logs.follow(client, lambda: next(looks), "train", poll_s=0.01)]
    assert len(said) == 1 and said[0].startswith("(waits: no node fits: 0/3 nodes")


def test_following_tells_each_line_once_until_the_task_ends(server: kfp_server.KfpServer, client: Client) -> None:
    run_id = recorded.train_again(server)
    looks = 0

    def look() -> Status:
        nonlocal looks
        looks += 1
        # A line is told once it is whole; later the head of the log is turned over.
        server.logs[(run_id, TRAIN_POD)] = ["one\ntw", "one\ntwo\nthree\n", "three\nfour\n", "three\nfour\nfive"][
            min(looks, 4) - 1
        ]
        if looks == 4:
            recorded.play(server, recorded.SUCCEEDED)
        return run_status.brief(client, run_id)

    said = [line.text for line in run_logs.follow(client, look, "train", poll_s=0.01)]
    assert said == ["one", "two", "three", "four", "five"]
    assert looks == 4


def test_following_bridges_an_outage_and_gives_up_on_one_that_lasts(
    server: kfp_server.KfpServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = recorded.play(server, recorded.SUCCEEDED)
    server.logs[(run_id, TRAIN_POD)] = "one\ntwo\n"
    server.broken = {"log"}
    looks = 0

    def look() -> Status:
        nonlocal looks
        looks += 1
        server.broken = server.broken if looks < 3 else set()
        return run_status.brief(client, run_id)

    assert [line.text for line in run_logs.follow(client, look, "train", poll_s=0.01)] == ["one", "two"]
    monkeypatch.setattr(run_logs, "_MOST_MISSES", 1)
    server.broken = {"log"}
    with pytest.raises(LatteError, match=r"the server failed \(503\): the database is away"):
        list(run_logs.follow(client, lambda: run_status.brief(client, run_id), "train", poll_s=0.01))


@given(st.lists(st.sampled_from("ab"), max_size=6), st.integers(0, 6), st.lists(st.sampled_from("cd"), max_size=3))
def test_what_is_new_in_a_log_is_told_once_whatever_became_of_its_head(
    before: list[str], cut: int, new: list[str]
) -> None:
    assert run_logs._after(before, before + new) == new
    kept = before[cut:]
    assert run_logs._after(before, kept + new)[-len(new) or len(kept + new) :] == new
    assert set(run_logs._after(before, ["x", *new])) >= set(new)
