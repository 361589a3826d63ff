"""doctor without a way to Kubernetes, and its tiny run; what it sees on a cluster: tests/cluster/test_doctor.py."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from latte import storage
from latte.errors import UserError
from latte.steps import hello
from pipelines import compiled, trial
from pipelines.cli import cli
from pipelines.client import Client
from pipelines.cluster import Cluster
from tests import conftest, kfp_server
from tests.e2e.runs import REPOSITORY


@pytest.fixture
def called(server: kfp_server.KfpServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
    monkeypatch.setenv("KFP_TOKEN", "right")
    return lambda *arguments: CliRunner().invoke(cli, ["doctor", *arguments], catch_exceptions=False)


def told(done: Result) -> dict[str, tuple[str, str]]:
    """Mark and text of each line, by what it is about."""
    found = {}
    for line in done.stdout.splitlines():
        mark, _, rest = line.strip().partition("  ")
        what, _, text = rest.partition(": ")
        found[what] = (mark, text)
    return found


def problems(done: Result) -> list[str]:
    assert done.exit_code == 1, done.stdout
    return [f"{what}: {text}" for what, (mark, text) in told(done).items() if mark == "PROBLEM"]


VOLCANO = {"heavy": {"accelerator": {"resource": "huawei.com/Ascend910"}, "volcano": {"queue": "latte"}}}


def settings_file(folder: Path, **section: object) -> tuple[str, str]:
    (folder / "settings.yaml").write_text(yaml.safe_dump({"cluster": section}))
    return "-c", str(folder / "settings.yaml")


@pytest.fixture
def ending(server: kfp_server.KfpServer) -> Iterator[dict[str, str]]:
    """What becomes of the runs that are started, and why."""
    over, fate = threading.Event(), {"state": "SUCCEEDED", "why": ""}

    def go_on() -> None:
        while not over.wait(0.05):
            for run in list(server.runs.values()):
                if run["state"] == "PENDING" and fate["state"]:
                    run.update(state=fate["state"], **({"error": {"message": fate["why"]}} if fate["why"] else {}))

    thread = threading.Thread(target=go_on)
    thread.start()
    yield fate
    over.set()
    thread.join()


def test_a_tiny_run_is_started_seen_to_its_end_and_deleted(
    request: pytest.FixtureRequest, server: kfp_server.KfpServer, called: Callable[..., Result],
    ending: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(trial, "POLL_S", 0.05)
    monkeypatch.setenv("KFP_SERVICE_ACCOUNT", "latte-runner")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    root = conftest.in_store(request, "seaweedfs")
    done = called("--root", root, "--run")
    assert done.exit_code == 0, done.stdout
    assert told(done)["run"][1].startswith("a run wrote, read, reported and was deleted again (hello ")
    assert server.runs == {}
    version = list(server.versions.values())[-1]
    assert [each["display_name"] for each in server.experiments.values()] == ["latte", "latte-doctor"]
    assert list(version["pipeline_spec"]["pipeline_spec"]["root"]["dag"]["tasks"]) == ["hello"]

    ending.update(state="FAILED", why="pod hello: ImagePullBackOff: no such image")
    failed = called("--root", root, "--run")
    (line,) = problems(failed)
    (run_id,) = server.runs  # left to be looked at
    assert f"run {run_id}: failed: pod hello: ImagePullBackOff: no such image; latte-pipeline logs" in line
    assert server.runs[run_id]["service_account"] == "latte-runner"


def test_a_tiny_run_that_does_not_end_is_stopped_and_says_what_it_waited_for(
    server: kfp_server.KfpServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "POLL_S", 0.05)
    started = time.monotonic()
    with pytest.raises(Exception, match=r"run .*: not ended after 0 s, and stopped: "):
        trial.run(client, "s3://bucket/x", Cluster(), lambda line: None, patience_s=0.2)
    assert time.monotonic() - started < 30
    assert [run["state"] for run in server.runs.values()] == ["CANCELING"]


def test_hello_by_volcano_where_steps_are(tmp_path: Path) -> None:
    path = compiled.write(compiled.pipeline("hello", Cluster.model_validate(VOLCANO)), tmp_path / "hello.yaml")
    spec = next(yaml.safe_load_all(path.read_text()))
    assert list(spec["root"]["dag"]["tasks"]) == ["hello", "hello-2"]
    environments = [
        [each["name"] for each in executor["container"].get("env", [])]
        for executor in spec["deploymentSpec"]["executors"].values()
    ]
    assert environments == [["LATTE_RETRY"], ["LATTE_LAUNCH", "LATTE_RETRY"]]


def test_the_dag_of_the_tiny_run_works_as_compiled(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place = conftest.in_store(request, "seaweedfs")
    code = (
        "from kfp import local\n"
        "from pipelines.hello import hello\n"
        f"local.init(local.SubprocessRunner(use_venv=False), pipeline_root={str(tmp_path)!r}, raise_on_error=True)\n"
        f"hello(root={place!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = tmp_path.rglob("greeting")
    assert storage.read_json(str(written))["counts"]["bytes_written"] > 0
    assert storage.list_uris(place) == []


def test_the_hello_step_leaves_nothing(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = hello.run(hello.HelloConfig(root=root))
    assert made.counts["bytes_written"] > 0
    assert storage.list_uris(root) == []
    monkeypatch.setattr(storage, "list_uris", lambda prefix: [])
    with pytest.raises(Exception, match="does not list what was written"):
        hello.run(hello.HelloConfig(root=root))


def test_hello_with_a_wrong_secret_is_a_line(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    place = conftest.in_store(request, "seaweedfs")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="check AWS_SECRET_ACCESS_KEY"):
        hello.run(hello.HelloConfig(root=place))
