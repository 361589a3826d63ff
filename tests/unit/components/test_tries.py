"""A task is tried again in its own pod: real processes that fail, are killed, are told to stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components import tries
from components.tries import NODE_ENV, RUN_ENV, Retry
from latte.steps import tell
from tests import recorded_kfp

EVENTS = "EVENTS"
NODE = "latte-nightly-abcde(0).root(0).exit-handler-1(0).train(0).executor"
# Leaves with the next of the codes in a file, and tells why as a step does; "k" is killed as for want of memory.
WORKER = """
import json, os, signal, sys
codes = open(sys.argv[1]).read().split()
open(sys.argv[1], "w").write(" ".join(codes[1:]))
code = codes[0]
if code == "k":
    os.kill(os.getpid(), signal.SIGKILL)
if code != "0":
    with open(os.environ["EVENTS"], "a") as file:
        file.write(json.dumps({"event": "failed", "message": f"outage {os.environ['LATTE_TRY']}"}) + "\\n")
sys.exit(int(code))
"""
QUICK = Retry(tries=3, wait_s=0)


@pytest.fixture(autouse=True)
def pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_ENV, "1f3c")
    monkeypatch.setenv(NODE_ENV, f"{NODE}(0)")


def supervised(root: Path, codes: str, retry: Retry = QUICK) -> tuple[int, str]:
    """The exit code, and the codes that no try has used."""
    file = root / "codes"
    file.write_text(codes)
    code = tries.supervise("train", root.as_uri(), retry, EVENTS, [sys.executable, "-c", WORKER, str(file)])
    return code, file.read_text()


def word(root: Path) -> dict | None:
    return tell.failure(root.as_uri(), "1f3c", NODE)


@pytest.mark.parametrize(
    ("codes", "code", "left", "lines"),
    [
        ("0 1", 0, "1", 0),
        ("1 0 9", 0, "9", 1),
        ("1 k 0", 0, "", 2),
        ("1 1 1 0", 1, "0", 2),
        ("2 0", 2, "0", 0),  # a user's mistake
        ("1 2 0", 2, "0", 1),
        ("130 0", 130, "0", 0),
        ("143 0", 143, "0", 0),
    ],
)
def test_what_fails_is_tried_again_and_a_mistake_is_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], codes: str, code: int, left: str, lines: int
) -> None:
    assert supervised(tmp_path, codes) == (code, left)
    assert len(capfd.readouterr().err.splitlines()) == lines
    assert (word(tmp_path) is None) == (code == 0)


def test_the_last_word_of_a_task_names_its_error_and_its_tries(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    supervised(tmp_path, "1 1 k", Retry(tries=3, wait_s=0))
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "train: try 1 of 3 failed: outage 1; again in 0 s"
    found = word(tmp_path)
    assert found is not None
    assert found["error"] == "its process was ended by signal 9, as for want of memory (3 tries)"
    assert (found["task"], found["exit_code"]) == ("train", 128 + signal.SIGKILL)
    assert supervised(tmp_path, "0") == (0, "")
    assert word(tmp_path) is None, "it went well after all"


def test_of_a_task_that_does_several_things_the_one_that_failed_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = [
        {"event": "started", "task": "convert vae"},
        {"event": "finished", "task": "convert vae"},
        {"event": "started", "task": "convert i3d"},
        {"event": "failed", "task": "convert i3d", "message": "no such\nfile"},
    ]
    worker = (
        "import json, os, signal, sys\n"
        f"told = {told!r}\n"
        "told = told if os.environ['LATTE_TRY'] == '2' else told[:3]\n"
        "open(os.environ['EVENTS'], 'w').writelines(json.dumps(each) + '\\n' for each in told)\n"
        "sys.exit(2) if os.environ['LATTE_TRY'] == '2' else os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", worker]
    assert tries.supervise("convert vae", tmp_path.as_uri(), QUICK, EVENTS, command) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("convert i3d: try 1 of 3 failed: its process was ended by signal 9"), "it had begun last"
    found = word(tmp_path)
    assert found is not None
    assert (found["task"], found["error"]) == ("convert i3d", "no such file (2 tries)")


def test_a_new_pod_says_the_last_word_again_and_does_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert supervised(tmp_path, "2 0") == (2, "0")
    capfd.readouterr()
    monkeypatch.setenv(NODE_ENV, f"{NODE}(1)")  # KFP starts a pod anew, whatever the exit code was
    assert supervised(tmp_path, "0") == (2, "0")
    assert capfd.readouterr().err == "error: train: outage 1 (as in the try before; not tried again)\n"
    monkeypatch.setenv(NODE_ENV, f"{NODE}(0)")  # a person retries the run, after having mended it
    assert supervised(tmp_path, "0") == (0, "")


def test_a_new_pod_after_one_that_was_lost_does_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NODE_ENV, f"{NODE}(1)")
    assert supervised(tmp_path, "0") == (0, "")


def test_waits_grow_and_have_an_end() -> None:
    retry = Retry(wait_s=30, factor=3, longest_s=200)
    assert [retry.wait_before_s(number) for number in (2, 3, 4, 5)] == [30, 90, 200, 200]


def test_a_stop_is_passed_on_and_not_tried_again(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    worker = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
        f"pathlib.Path({str(ready)!r}).write_text('x')\n"
        "time.sleep(60)"
    )
    supervisor = (
        "import sys; from components import tries\n"
        f"sys.exit(tries.supervise('train', {tmp_path.as_uri()!r}, tries.Retry(wait_s=0), 'EVENTS', "
        f"[sys.executable, '-c', {worker!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", supervisor], env=dict(os.environ))
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        assert process.wait(20) == 1
    finally:
        process.kill()
    assert word(tmp_path) is None


def test_the_number_of_a_try_is_that_of_the_recorded_nodes() -> None:
    value = json.loads(recorded_kfp.manifest(recorded_kfp.FAILED_STEP))
    nodes = [node for node in value["status"]["nodes"].values() if node["templateName"] == "system-container-impl"]
    pods = [node["name"] for node in nodes if node["type"] == "Pod"]
    retries = {node["name"] for node in nodes if node["type"] == "Retry"}
    assert {tries.attempt_of(name) for name in pods} == {0}
    assert {tries.key_of(name) for name in pods} <= retries, "the key is the name of what Argo tries again"
    assert tries.attempt_of("w(0).root(0).for-loop-1(0).iteration-iterations(7:7)(0).encode-shards(0).executor(2)") == 2
    assert (tries.key_of(""), tries.attempt_of("")) == ("", 0)


def test_kfp_did_not_try_the_recorded_failure_again_and_lost_its_exit_code() -> None:
    """What the choice rests on: the step left with 2, Argo saw 1, and its default retried pods in error only."""
    value = json.loads(recorded_kfp.manifest(recorded_kfp.FAILED_STEP))
    failed = [n for n in value["status"]["nodes"].values() if n["type"] == "Pod" and n["phase"] == "Failed"]
    (pod,) = failed
    assert (pod["outputs"]["exitCode"], pod["message"]) == ("1", "main: Error (exit code 1)")
    assert pod["name"].endswith("executor(0)")


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.write_text('{"event": "failed", "message": "no space left"}\n{"event": "fai')
    assert tries._said(events, 1) == ("", "no space left")
