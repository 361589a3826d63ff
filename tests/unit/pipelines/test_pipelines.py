"""What the compiled pipelines promise: nothing is promoted before all went well; settings are checked for each."""

import json
from pathlib import Path

import pytest
import yaml

from components.tries import NODE_ENV, RETRY_ENV, RUN_ENV, Retry
from latte.errors import UserError
from pipelines import compiled, settings
from pipelines.cluster import Cluster

REPOSITORY = Path(__file__).parents[3]
DEMO = REPOSITORY / "configs/demo"
NAMES = tuple(settings.PIPELINES)
VIDEOS = ["encode.dataset.videos=s3://bucket/videos"]


def tasks_of(name: str) -> dict[str, dict]:
    """Of the DAG whose end is told."""
    spec = next(yaml.safe_load_all((REPOSITORY / "pipelines" / f"{name}.yaml").read_text()))
    around = spec["root"]["dag"]["tasks"]
    assert set(around) == {"exit-handler-1", "tell"}
    assert around["tell"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert around["tell"]["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}
    return spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]


def upstream(tasks: dict[str, dict], name: str) -> set[str]:
    direct = set(tasks[name].get("dependentTasks", []))
    return direct.union(*(upstream(tasks, other) for other in direct))


def test_the_gate_comes_when_all_is_scored_and_the_report_tells_of_it() -> None:
    tasks = tasks_of("nightly_retrain")
    assert set(tasks) == upstream(tasks, "report-night") | {"report-night"}
    assert "promote" in upstream(tasks, "report-night")
    assert set(tasks) - upstream(tasks, "promote") == {"promote", "report-night"}
    assert "promote-start" in upstream(tasks, "train")


def test_a_pipeline_has_the_loops_that_its_settings_ask_for(tmp_path: Path) -> None:
    def looped(cluster: Cluster, *overrides: str) -> set[str]:
        checked = settings.load(DEMO / "bulk_sample.yaml", [*VIDEOS, *overrides], "bulk_sample")
        made = compiled.pipeline("bulk_sample", cluster, settings.fanned_out(checked))
        spec = next(yaml.safe_load_all(compiled.write(made, tmp_path / "bulk.yaml").read_text()))
        loops = [part["dag"]["tasks"] for key, part in spec["components"].items() if key.startswith("comp-for-loop")]
        return {task for tasks in loops for task in tasks}

    assert looped(Cluster()) == set()
    assert looped(Cluster(), "sample.num_tasks=4") == {"sample-shards"}
    shared = Cluster.model_validate({"sample": {"volcano": {"nodes": 4}}})
    assert looped(shared, "sample.num_tasks=4", "encode.num_tasks=2") == {"encode-shards"}, "one Job has all workers"
    # By default, and as it is kept in the repository, whatever the settings are.
    both = {"comp-encode-shards", "comp-sample-shards"}
    assert both <= set(next(yaml.safe_load_all((REPOSITORY / "pipelines/bulk_sample.yaml").read_text()))["components"])
    weights = {"vae": {"kind": "vae", "source": "s3://b/v.pt"}, "detector": {"kind": "i3d", "source": "random"}}
    rest = {"name": "b", "dataset": "d", "encode": {"dataset": {"videos": "s3://b/v"}}, "sample": {"num_videos": 2048}}
    unset = settings.check(settings.BulkConfig, {**weights, **rest, "model": "m"}, "x")
    assert settings.fanned_out(unset) == {"encode", "sample"}


@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_tried_again_in_its_pod_and_by_kfp(name: str) -> None:
    spec, platform = yaml.safe_load_all((REPOSITORY / "pipelines" / f"{name}.yaml").read_text())
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for label, executor in spec["deploymentSpec"]["executors"].items():
        (variable,) = executor["container"]["env"]
        assert Retry.model_validate_json(variable["value"]) == Retry()
        assert {each["name"] for each in kubernetes[label]["fieldPathAsEnv"]} == {RUN_ENV, NODE_ENV}
    dags = [spec["root"]["dag"], *(part["dag"] for part in spec["components"].values() if "dag" in part)]
    for key, task in ((key, task) for dag in dags for key, task in dag["tasks"].items()):
        if key.startswith(("for-loop", "exit-handler")):
            continue
        policy = task["retryPolicy"]
        assert (policy["maxRetryCount"], policy["backoffDuration"], policy["backoffFactor"]) == (2, "30s", 2)
        # Argo counts it from the first try's start: KFP's own hour would leave a long step without a second one.
        assert int(policy["backoffMaxDuration"].removesuffix("s")) >= 7 * 24 * 3600, key


def test_the_settings_of_tries_and_the_webhook_s_secret_reach_the_compiled_pipeline(tmp_path: Path) -> None:
    placed = Cluster.model_validate({"webhook_secret": "chat", "retry": {"tries": 5, "pods": 0}})
    path = compiled.write(compiled.pipeline("bulk_sample", placed), tmp_path / "bulk.yaml")
    spec, platform = yaml.safe_load_all(path.read_text())
    assert "retryPolicy" not in path.read_text()
    assert {
        json.loads(each["container"]["env"][0]["value"])["tries"]
        for each in spec["deploymentSpec"]["executors"].values()
    } == {5}
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    holders = {
        label for label, each in kubernetes.items() if "chat" in [one["secretName"] for one in each["secretAsEnv"]]
    }
    assert holders == {"exec-tell"}


def test_a_run_on_this_machine_has_no_exit_task_and_no_retries(tmp_path: Path) -> None:
    path = compiled.write(compiled.here("bulk_sample"), tmp_path / "bulk.yaml")
    text = path.read_text()
    assert "exit-handler" not in text
    assert "retryPolicy" not in text
    assert RETRY_ENV not in text


@pytest.mark.parametrize("name", NAMES)
def test_kfp_caches_nothing_and_parameters_are_those_of_the_settings(name: str) -> None:
    spec = next(yaml.safe_load_all((REPOSITORY / "pipelines" / f"{name}.yaml").read_text()))
    dags = [spec["root"]["dag"], *(part["dag"] for part in spec["components"].values() if "dag" in part)]
    tasks = [task for dag in dags for task in dag["tasks"].values() if "iteratorPolicy" not in task]
    assert len(tasks) > 8
    for task in tasks:
        assert not task.get("cachingOptions", {}).get("enableCache") or "parameterIterator" in task, task["taskInfo"]
    # What a step runs with is compiled in; MLflow is told beside the parameters.
    parameters = set(spec["root"]["inputDefinitions"]["parameters"])
    assert parameters == set(settings.PIPELINES[name].model_fields) - {"cluster", "mlflow"}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("train_and_evaluate", "pipeline.yaml"),
        ("nightly_retrain", "pipeline.yaml"),
        ("bulk_sample", "bulk_sample.yaml"),
    ],
)
def test_the_demo_s_settings_fit_and_have_no_null(name: str, file: str) -> None:
    checked = settings.load(DEMO / file, VIDEOS, name)
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
        ("nightly_retrain", "pipeline.yaml", "notify.webhook=chat.example.com/x", "webhook: expected a URL, http"),
        ("nightly_retrain", "pipeline.yaml", "notify.when=never", "notify.when"),
        ("nightly_retrain", "pipeline.yaml", "cluster.retry.factor=1.5", "cluster.retry.factor"),
        ("nightly_retrain", "pipeline.yaml", "report.about=set", "report.about is filled in by the pipeline"),
        ("bulk_sample", "bulk_sample.yaml", "train.steps=1", "unknown key train"),
    ],
)
def test_mistakes_in_settings_name_file_and_key(name: str, file: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        settings.load(DEMO / file, [*VIDEOS, override], name)
    assert file in str(caught.value)
