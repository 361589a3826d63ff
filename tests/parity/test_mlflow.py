"""What steps tell MLflow, read back by MLflow's own client from MLflow's own server."""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components import runtime
from latte import tracking
from latte.config import build
from latte.training.log import TrainingLog
from pipelines.tracking import MlflowConfig, of_run
from tests import mlflow_server

pytestmark = pytest.mark.live
SETTINGS = build(MlflowConfig, {"experiment": "latte demo"}, "test")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server.serve(tmp_path_factory.mktemp("mlflow")) as served:
        yield served


@pytest.fixture
def client(uri: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(tracking.URI_ENV, uri)
    import mlflow

    return mlflow.MlflowClient(uri)


def look(root: str) -> None:
    """A task that takes no time, as Kubeflow Pipelines starts it."""
    runtime.run_step("promoted", "promoted", {}, {"root": root, "name": "m"}, function="look_up")


def test_a_run_of_this_machine_has_a_run_below_it_for_every_task(client: Any, tmp_path: Path) -> None:
    root = (tmp_path / "root").as_uri()
    with of_run(SETTINGS, "nightly_retrain", "demo", sys.stderr):
        look(root)
        with pytest.raises(SystemExit):
            runtime.run_step("checkpoint", "promoted", {}, {"root": root, "name": "m"}, function="fetch")
    experiment = client.get_experiment_by_name("latte demo")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.run_name, parent.info.status) == ("nightly_retrain demo", "FINISHED")
    below = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert {name: run.info.status for name, run in below.items()} == {"promoted": "FINISHED", "checkpoint": "FAILED"}
    told = below["promoted"].data
    assert told.metrics == {"number": 0.0}
    assert told.tags["latte.kind"] == "promoted" and told.tags["latte.uri"] == f"{root}/registry/m"
    assert told.params == {"promoted.checkpoint": ""}
    assert tracking.PARENT_ENV not in os.environ and tracking.RUN_ENV not in os.environ


def test_a_run_that_fails_is_failed(client: Any) -> None:
    with pytest.raises(ValueError, match="bug"), of_run(SETTINGS, "bulk_sample", "sets", sys.stderr):
        raise ValueError("bug")
    experiment = client.get_experiment_by_name("latte demo")
    (run,) = client.search_runs([experiment.experiment_id], "run_name = 'bulk_sample sets'")
    assert run.info.status == "FAILED"


def test_the_curve_of_training_is_complete_and_no_point_comes_twice(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = client.create_run("0")
    monkeypatch.setenv(tracking.RUN_ENV, run.info.run_id)
    lines = [{"step": step, "loss": 1.0 / step, "rate": 1e-4} for step in range(5, 6005, 5)]
    log = TrainingLog(tmp_path.as_uri())
    for line in lines[:900]:
        log.add(line, {})
    log.publish(lambda uri, data: None)
    log.add({**lines[900], "loss": math.nan}, {})
    log.publish(lambda uri, data: None)
    again = TrainingLog(tmp_path.as_uri())  # the step was started anew, and reads what it has published
    again.lines = log.lines
    for line in lines[901:]:
        again.add(line, {})
    again.publish(lambda uri, data: None)
    tracker = tracking.of_environment()
    assert tracker is not None
    tracker.curve(again.lines)  # by the step that waits for a launched one
    loss = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in loss] == [line["step"] for line in lines]
    assert [point.value for point in loss[:900]] == [line["loss"] for line in lines[:900]]
    assert math.isnan(loss[900].value)
    assert len(client.get_metric_history(run.info.run_id, "train/rate")) == len(lines)


def test_what_mlflow_does_not_take_is_made_to_fit(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = client.create_run("0")
    monkeypatch.setenv(tracking.RUN_ENV, run.info.run_id)
    tracker = tracking.of_environment()
    assert tracker is not None
    params = {f"train.key{number}": "x" * 9000 for number in range(150)}
    tracker.batch(params, {"fvd tonight's model": 3.5, "k" * 300: math.inf}, {"latte.reason": "ä" * 9000})
    told = client.get_run(run.info.run_id).data
    assert len(told.params) == 150 and set(map(len, told.params.values())) == {6000}
    assert told.metrics["fvd tonight_s model"] == 3.5 and len(told.metrics) == 2
    assert len(told.tags["latte.reason"]) == 5000


def test_a_run_that_mlflow_does_not_know_is_one_line(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(tracking.RUN_ENV, "0" * 32)
    look((tmp_path / "root").as_uri())
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("MLflow: ")]
    assert "runs/log-batch was answered 404" in line and line.endswith("nothing more is tracked here")
