"""What the compiled pipelines promise: nothing is promoted before all went well; settings are checked for each."""

import json
from pathlib import Path

import pytest
import yaml

from latte.errors import UserError
from pipelines import settings

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "configs/demo"
NAMES = tuple(settings.PIPELINES)


def tasks_of(name: str) -> dict[str, dict]:
    spec = next(yaml.safe_load_all((REPOSITORY / "pipelines" / f"{name}.yaml").read_text()))
    return spec["root"]["dag"]["tasks"]


def upstream(tasks: dict[str, dict], name: str) -> set[str]:
    direct = set(tasks[name].get("dependentTasks", []))
    return direct.union(*(upstream(tasks, other) for other in direct))


def test_the_gate_is_the_last_task_of_a_night() -> None:
    tasks = tasks_of("nightly_retrain")
    assert set(tasks) == upstream(tasks, "promote") | {"promote"}
    assert "promote-start" in upstream(tasks, "train")


@pytest.mark.parametrize("name", NAMES)
def test_kfp_caches_nothing_and_parameters_are_those_of_the_settings(name: str) -> None:
    spec = next(yaml.safe_load_all((REPOSITORY / "pipelines" / f"{name}.yaml").read_text()))
    dags = [spec["root"]["dag"], *(part["dag"] for part in spec["components"].values() if "dag" in part)]
    tasks = [task for dag in dags for task in dag["tasks"].values() if "iteratorPolicy" not in task]
    assert len(tasks) > 8
    for task in tasks:
        assert not task.get("cachingOptions", {}).get("enableCache") or "parameterIterator" in task, task["taskInfo"]
    # What a step runs with is compiled in.
    parameters = set(spec["root"]["inputDefinitions"]["parameters"])
    assert parameters == set(settings.PIPELINES[name].model_fields) - {"cluster"}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("train_and_evaluate", "pipeline.yaml"),
        ("nightly_retrain", "pipeline.yaml"),
        ("bulk_sample", "bulk_sample.yaml"),
    ],
)
def test_the_demo_s_settings_fit_and_have_no_null(name: str, file: str) -> None:
    checked = settings.load_remote(DEMO / file, pipeline=name)
    parameters = settings.parameters(checked, "s3://bucket/prefix")
    assert "null" not in json.dumps(parameters)


@pytest.mark.parametrize(
    ("name", "file", "override", "message"),
    [
        ("train_and_evaluate", "pipeline.yaml", "promote.margin=0.1", "unknown key promote"),
        ("nightly_retrain", "pipeline.yaml", "promote.margin=2", "promote.margin"),
        ("nightly_retrain", "pipeline.yaml", "promote.score=x", "score is filled in by the pipeline"),
        ("train_and_evaluate", "pipeline.yaml", "score.protocol=sky", "protocol: no preset 'sky' .known: demo,"),
        ("train_and_evaluate", "pipeline.yaml", "score.protocol.seeed=1", "protocol: unknown key seeed"),
        ("nightly_retrain", "pipeline.yaml", "promote={margin: 0.1, tolerance: 0.1}", "margin or tolerance, not both"),
        ("bulk_sample", "bulk_sample.yaml", "model=", "model"),
        ("bulk_sample", "bulk_sample.yaml", 'model=""', "name a model of the registry, or a checkpoint"),
        ("bulk_sample", "bulk_sample.yaml", "train.steps=1", "unknown key train"),
    ],
)
def test_mistakes_in_settings_name_file_and_key(name: str, file: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        settings.load_remote(DEMO / file, [override], name)
    assert file in str(caught.value)
