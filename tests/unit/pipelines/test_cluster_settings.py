"""The section cluster of the settings: mistakes in it, the pipelines and the Volcano Jobs that are made from it."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from components.placement import LAUNCH_ENV, MAX_NODES, Launch, Pod, Volcano, launch_of_this_step
from components.tries import RETRY_ENV
from components.volcano import job
from latte.errors import UserError
from pipelines import cluster, compiled, settings
from tests import kubernetes_schemas
from tests.e2e.runs import REPOSITORY
from tests.kubernetes_server import WORKFLOW

DEMO = REPOSITORY / "configs/demo/pipeline.yaml"
PRESETS = sorted((REPOSITORY / "configs/clusters").glob("*.yaml"))
NAMES = {"train_and_evaluate": 5, "nightly_retrain": 5, "bulk_sample": 2}


def of(values: dict[str, Any]) -> cluster.Cluster:
    return settings.check(
        settings.PipelineConfig, {**yaml.safe_load(DEMO.read_text()), "cluster": values}, "here"
    ).cluster


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[dict, dict]]:
    """Every pipeline, compiled for every preset: the spec and its Kubernetes part."""
    folder = tmp_path_factory.mktemp("compiled")
    made = {}
    for preset in PRESETS:
        for name in compiled.PIPELINES:
            path = compiled.write(compiled.pipeline(name, cluster.load(preset)), folder / f"{name}.yaml")
            made[preset.stem, name] = tuple(yaml.safe_load_all(path.read_text()))
    for name in compiled.PIPELINES:
        made["", name] = tuple(yaml.safe_load_all((REPOSITORY / f"pipelines/{name}.yaml").read_text()))
    return made


def check_compiled(spec: dict, platform: dict) -> None:
    """Against the messages that KFP publishes, which know no further key."""
    from google.protobuf import json_format
    from kfp.kubernetes import kubernetes_executor_config_pb2 as published
    from kfp.pipeline_spec import pipeline_spec_pb2

    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    # To a PipelineSpec its executors are any JSON; a message of their own knows the keys.
    for executor in spec["deploymentSpec"]["executors"].values():
        json_format.ParseDict(executor, pipeline_spec_pb2.PipelineDeploymentConfig.ExecutorSpec())
    for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        json_format.ParseDict(executor, published.KubernetesExecutorConfig())


def launches(spec: dict) -> dict[str, Launch]:
    found = {}
    for name, executor in spec["deploymentSpec"]["executors"].items():
        for variable in executor["container"].get("env", []):
            assert variable["name"] in (LAUNCH_ENV, RETRY_ENV)
            if variable["name"] == LAUNCH_ENV:
                found[name] = Launch.model_validate_json(variable["value"])
    return found


def test_every_compiled_pipeline_is_valid_and_a_seeded_mistake_is_caught(
    documents: dict[tuple[str, str], tuple[dict, dict]],
) -> None:
    from google.protobuf import json_format

    assert len(documents) == 3 * (len(PRESETS) + 1) >= 12
    for spec, platform in documents.values():
        check_compiled(spec, platform)
        executor = next(iter(spec["deploymentSpec"]["executors"]))
        broken_spec, broken_platform = copy.deepcopy(spec), copy.deepcopy(platform)
        broken_spec["deploymentSpec"]["executors"][executor]["container"]["imgae"] = "x"
        kubernetes = broken_platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        kubernetes[executor]["tolerations"] = [{"key": "npu", "efect": "NoSchedule"}]
        for pair in ((broken_spec, platform), (spec, broken_platform)):
            with pytest.raises(json_format.ParseError, match="no field named"):
                check_compiled(*pair)


def test_light_steps_get_no_accelerator_and_heavy_ones_all_that_is_set(
    documents: dict[tuple[str, str], tuple[dict, dict]],
) -> None:
    heavy = re.compile(
        r"exec-(convert-and-encode|encode-shards|sample|sample-two|sample-shards|score|score-two|train)(-\d+)?$"
    )
    for (preset, name), (spec, platform) in documents.items():
        kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        computing = {key for key in spec["deploymentSpec"]["executors"] if heavy.match(key)}
        assert len(computing) >= 3
        with_accelerator = {
            key
            for key, executor in spec["deploymentSpec"]["executors"].items()
            if "accelerator" in executor["container"].get("resources", {})
        }
        launched = set(launches(spec))
        wanted = {"ascend-default-scheduler": (computing, set()), "ascend-mindcluster": (set(), computing)}
        assert (with_accelerator, launched) == wanted.get(preset, (set(), set())), (preset, name)
        for key in with_accelerator:
            assert kubernetes[key]["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
            resources = spec["deploymentSpec"]["executors"][key]["container"]["resources"]["accelerator"]
            assert resources["resourceType"] == "huawei.com/Ascend910"


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_fit_the_pipelines(preset: Path) -> None:
    values = yaml.safe_load(preset.read_text())
    workers = {"train.workers": 16, "train.batch_size": 16} if preset.stem == "ascend-mindcluster" else {}
    workers = {"train.workers": 8} if preset.stem == "ascend-default-scheduler" else workers
    overrides = [f"cluster={json.dumps(values['cluster'])}", *(f"{key}={value}" for key, value in workers.items())]
    assert settings.load(DEMO, ["encode.dataset.videos=s3://bucket/videos", *overrides]).cluster == cluster.load(preset)


def built(launch: Launch, workers: int = 2, task: str = "sample trained: shards all of 2") -> dict:
    return job.build(launch, "s3://bucket/root/launched/a/b/work.json", workers, False, task, WORKFLOW)


def test_every_launched_job_is_valid_and_a_seeded_mistake_is_caught(
    documents: dict[tuple[str, str], tuple[dict, dict]],
) -> None:
    found = [launch for spec, _ in documents.values() for launch in launches(spec).values()]
    assert len(found) >= 10
    for launch in found:
        made = built(launch)
        kubernetes_schemas.check(made)
        pod = made["spec"]["tasks"][0]["template"]["spec"]["containers"][0]
        resource = launch.accelerator.resource
        assert pod["resources"]["requests"][resource] == pod["resources"]["limits"][resource]
    spec = made["spec"]
    task = spec["tasks"][0]
    for place, key, value in [
        (made, "specs", {}),
        (spec, "minAvailabel", 1),
        (spec, "minAvailable", 3),
        (spec, "queue", 1),
        (spec["policies"][2], "event", "PodFialed"),
        (spec["policies"][2], "exitCode", 3),
        (spec["plugins"], "svcs", []),
        (task, "replica", 2),
        (task["template"], "specs", {}),
        (task["template"]["spec"], "schedulrName", "volcano"),
        (task["template"]["spec"]["containers"][0]["resources"], "request", {}),
        (made["metadata"], "lables", {}),
        (made["metadata"], "name", "x" * 60),
    ]:
        before = dict(place)
        place[key] = value
        with pytest.raises(kubernetes_schemas.Invalid):
            kubernetes_schemas.check(made)
        place.clear()
        place |= before
    kubernetes_schemas.check(made)


def test_a_job_s_pods_pass_the_restricted_pod_security() -> None:
    launch = Launch.model_validate({"image": "x", "pod": {"shm": "1Gi"}, "volcano": {}})
    pod = built(launch)["spec"]["tasks"][0]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} == {"emptyDir"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    more = built(launch.model_copy(update={"volcano": Volcano(groups=[1000])}))["spec"]["tasks"][0]["template"]["spec"]
    assert more["securityContext"] == {**pod["securityContext"], "supplementalGroups": [1000]}


@given(st.text(max_size=80), st.integers(0, MAX_NODES - 1), st.sampled_from("0123456789abcdef"))
def test_names_are_dns_labels_of_at_most_63_characters(task: str, index: int, digit: str) -> None:
    name = job.name_of(task, digit * 64)
    for each in (name, f"{name}-{job.TASK}-{index}"):  # as Volcano names the Job's pods
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", each), each


def test_names_follow_from_run_task_and_spec() -> None:
    launch = Launch.model_validate({"image": "x", "pod": {}, "volcano": {}})
    other_run = {**WORKFLOW, "uid": "other"}
    made = [
        built(launch),
        built(launch.model_copy(update={"image": "y"})),
        built(launch, workers=3),
        built(launch, task="train"),
        job.build(
            launch, "s3://bucket/root/launched/a/b/work.json", 2, False, "sample trained: shards all of 2", other_run
        ),
    ]
    assert len({each["metadata"]["name"] for each in made}) == len(made)
    assert built(launch) == made[0]


def test_steps_take_the_keys_of_heavy_and_change_some() -> None:
    placed = of(
        {
            "heavy": {
                "memory": "64Gi",
                "volcano": {"queue": "npus", "nodes": 4},
                "accelerator": {"resource": "huawei.com/npu"},
            },
            "encode": {"volcano": {"nodes": 2}},
            "sample": {"memory": 32},
            "train": {"volcano": None, "accelerator": {"count": 1}},
            "score": {"volcano": {"nodes": 1}},
        }
    )
    assert (placed.encode.volcano.nodes, placed.encode.volcano.queue, placed.encode.memory) == (2, "npus", "64Gi")
    assert (placed.sample.memory, placed.together("sample"), placed.together("train")) == ("32", 4, 0)
    assert placed.train.accelerator.resource == "huawei.com/npu"
    # What was checked once is the same when it is checked again.
    assert of(placed.model_dump()) == placed == of(placed.model_dump(exclude_unset=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"haevy": {}}, "unknown key cluster.haevy"),
        ({"heavy": {"accelerator": {"cuont": 8}}}, "unknown key cluster.heavy.accelerator.cuont"),
        ({"heavy": {"accelerator": {"resource": "Ascend910"}}}, "cluster.heavy.accelerator.resource"),
        ({"train": {"accelerator": {"count": 0}}}, "cluster.train.accelerator.count"),
        ({"light": {"accelerator": {"count": 1}}}, "unknown key cluster.light.accelerator"),
        ({"train": {"memory": "64 Gb"}}, "cluster.train.memory"),
        ({"train": {"tolerations": [{"effect": "Never"}]}}, "cluster.train.tolerations.0.effect"),
        ({"train": {"volcano": {"nodes": 1000}}}, "cluster.train.volcano.nodes"),
        ({"train": {"volcano": {"nodes": 2}}}, "train.workers=1: not divisible by cluster.train.volcano.nodes=2"),
        ({"train": {"accelerator": {"count": 8}}}, "cluster.train has 1 x 8 huawei.com/Ascend910; set train.workers=8"),
        (
            {"encode": {"accelerator": {"count": 8}}},
            "a worker of encode uses one; set it to 1 and encode.volcano.nodes",
        ),
        ({"score": {"volcano": {"nodes": 2}}}, "score.volcano.nodes=2: scoring is done by one pod; set it to 1"),
    ],
)
def test_mistakes_name_the_key_once_and_say_what_to_change(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        of(values)
    assert str(caught.value).count(message) == 1, caught.value
    assert "\n" not in str(caught.value)


def test_a_store_that_wants_buckets_as_hosts_is_told_to_every_pod(tmp_path: Path) -> None:
    variable = {"name": "LATTE_S3_ADDRESSING_STYLE", "value": "virtual"}
    launch = Launch(image="i", addressing_style="virtual", pod=Pod(), volcano=Volcano())
    (container,) = built(launch)["spec"]["tasks"][0]["template"]["spec"]["containers"]
    assert variable in container["env"]
    placed = of({"addressing_style": "virtual"})
    path = compiled.write(compiled.pipeline("bulk_sample", placed), tmp_path / "bulk_sample.yaml")
    spec, _ = yaml.safe_load_all(path.read_text())
    for executor in spec["deploymentSpec"]["executors"].values():
        assert variable in executor["container"]["env"]


def test_a_launch_of_another_version_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCH_ENV, '{"image": "x"}')
    with pytest.raises(UserError, match=f"{LAUNCH_ENV}: .*compile the pipeline with the version that is in the image"):
        launch_of_this_step()
    monkeypatch.setenv(LAUNCH_ENV, "")
    assert launch_of_this_step() is None
