"""MLflow that is not asked for, not there, or told wrongly: a line, and the step goes on. Real: test_mlflow.py."""

import io
import socket
from pathlib import Path

import pytest

from components import runtime
from latte import tracking
from latte.config import build
from latte.errors import UserError
from latte.training.log import TrainingLog
from pipelines.tracking import MlflowConfig, of_run, plugins_input, variables

SETTINGS = build(MlflowConfig, {"experiment": "latte"}, "test")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables():
        monkeypatch.delenv(name)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment names a server that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(tracking, "_TRIES", 0)
    monkeypatch.setenv(tracking.URI_ENV, uri)
    return uri


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("MLflow: ")]


def test_nothing_is_tracked_unless_the_environment_names_a_run(nobody: str) -> None:
    assert tracking.of_environment() is None
    with tracking.of_task("train") as tracker:
        assert tracker is None


def test_a_server_that_is_away_is_one_line_and_the_step_is_done(
    nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(tracking.RUN_ENV, "1")
    root = (tmp_path / "root").as_uri()
    done = runtime.run_step("promoted", "promoted", {}, {"root": root, "name": "m"}, function="look_up")
    assert done.metrics["number"] == 0
    (line,) = told(capsys)
    assert line == "MLflow: 127.0.0.1: no answer (ConnectionError); nothing more is tracked here"


def test_training_goes_on_without_it(
    nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(tracking.RUN_ENV, "1")
    log = TrainingLog(tmp_path.as_uri())
    kept: list[bytes] = []
    for step in (1, 2):
        log.add({"step": step, "loss": 1.0}, {})
        log.publish(lambda uri, data: kept.append(data))
    assert len(kept) == 2 and len(told(capsys)) == 1


def test_a_run_of_this_machine_goes_on_without_it(nobody: str, capsys: pytest.CaptureFixture[str]) -> None:
    with of_run(SETTINGS, "bulk_sample", "sets", io.StringIO()):
        assert tracking.PARENT_ENV not in variables()
    (line,) = told(capsys)
    assert line.endswith("this run is not tracked")


def test_without_an_address_the_run_says_so() -> None:
    terminal = io.StringIO()
    with of_run(SETTINGS, "bulk_sample", "sets", terminal):
        pass
    assert terminal.getvalue() == "mlflow: MLFLOW_TRACKING_URI is not set; this run is not tracked\n"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MLFLOW_TRACKING_URI": "sqlite:///secret.db"}, "MLFLOW_TRACKING_URI: expected a URL"),
        (
            {"MLFLOW_TRACKING_URI": "https://me:secret@example.com"},
            "MLFLOW_TRACKING_URI: a user or password in the URL",
        ),
        ({"MLFLOW_TRACKING_TOKEN": "sec\nret"}, "MLFLOW_TRACKING_TOKEN: there is a line break"),
        ({"MLFLOW_TRACKING_AUTH": "kubernetes"}, "this process has no token of a service account"),
    ],
)
def test_a_mistake_in_the_variables_is_told_without_secrets(
    nobody: str,
    variables: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {tracking.RUN_ENV: "1", **variables}.items():
        monkeypatch.setenv(name, value)
    tracker = tracking.of_environment()
    assert tracker is not None
    tracker.batch(metrics={"loss": 1.0})
    (line,) = told(capsys)
    assert said in line and "sec" not in line


def test_the_experiment_must_have_a_name() -> None:
    with pytest.raises(UserError, match=r"mlflow\.experiment"):
        build(MlflowConfig, {"experiment": ""}, "test", "mlflow.")
    assert plugins_input(None) is None
