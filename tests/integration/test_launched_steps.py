"""Components whose work a Volcano Job does, its pods real processes: two nodes that train together, two that share out
a video set; what they make is what a single machine makes. And one that nobody waits for any more."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.placement import LAUNCH_ENV, Launch, Pod, Volcano
from components.sample.component import sample
from components.train.component import train
from components.volcano import lease
from components.work import Work
from latte import storage
from latte.config import build
from latte.steps import sample as sample_step
from latte.steps import train as train_step
from latte.storage import manifest
from latte.training import resume
from tests import kubernetes_server, small_latents
from tests.e2e.runs import REPOSITORY
from tests.launching import until

TRAIN = {
    "model": {"patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_frames": 4},
    "workers": 2,
    "batch_size": 2,
    "steps": 3,
    "frame_stride": 1,
    "checkpoint_every": 1000,
    "log_every": 1,
}
SAMPLE = {"num_videos": 3, "num_sampling_steps": 2, "batch_size": 2}
LAUNCH = Launch(image="latte-pipelines:0.1.0", pod=Pod(), volcano=Volcano(nodes=2))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[kubernetes_server.Cluster]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"LATTE_SCHEDULER_PORT": str(port), "PYTHONPATH": str(REPOSITORY)}
    with kubernetes_server.serve(tmp_path, runs_pods=True, environment=environment) as (served, of_step):
        for key, value in {**of_step, LAUNCH_ENV: LAUNCH.model_dump_json()}.items():
            monkeypatch.setenv(key, value)
        yield served


def artifact(path: Path | str) -> Any:
    return SimpleNamespace(path=str(path), metadata={}, log_metric=lambda *_: None)


def objects(uri: str) -> dict[str, str]:
    """SHA-256 of the objects of a place, by name; without the list that names their URIs."""
    shards = [shard for shard in manifest.read(uri).shards if not shard.uri.endswith("/items.json")]
    return {"/".join(shard.uri.rsplit("/", 2)[1:]): shard.sha256 for shard in shards}


def test_jobs_make_what_one_machine_makes(
    cluster: kubernetes_server.Cluster,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
) -> None:
    latents = small_latents.once(tmp_path_factory)
    vae = next(
        uri
        for uri in storage.list_uris(latents.split("/datasets/")[0])
        if "/weights/vae/" in uri and uri.endswith("manifest.json")
    )
    there, here = ((tmp_path / name).as_uri() for name in ("there", "here"))
    made = artifact(tmp_path / "checkpoint")
    checkpoints = train.python_func(there, "tiny", TRAIN, latents, vae, made, made)
    assert "/handed-on/" in checkpoints
    assert manifest.read(checkpoints) == manifest.read(made.path)
    (name,) = cluster.jobs
    assert [cluster.processes[f"{name}-worker-{index}"].returncode for index in (0, 1)] == [0, 0]
    said = capfd.readouterr().err
    assert "worker-0 | " in said
    assert "loss=" in said, "the first node's progress is shown"
    assert cluster.jobs[name]["spec"]["minAvailable"] == 2
    assert made.metadata["kind"] == "checkpoint"

    videos = artifact(tmp_path / "videos")
    sets = sample.python_func(there, "few", SAMPLE, -1, checkpoints, vae, videos)
    (shared,) = (cluster.jobs[job] for job in cluster.jobs if job != name)
    assert shared["spec"]["minAvailable"] == 1
    assert shared["spec"]["tasks"][0]["replicas"] == 2, "no more workers than batches; plan and merge launch nothing"
    assert {pod["status"]["phase"] for pod in cluster.pods.values() if pod["status"]} == {"Succeeded"}
    assert manifest.read(sets) == manifest.read(videos.path)
    assert videos.metadata["videos"] == 3

    alone = train_step.run(
        build(train_step.TrainConfig, {**TRAIN, "root": here, "name": "tiny", "latents": latents}, "t")
    )
    checkpoint = storage.join(alone.uri, "manifest.json")
    assert objects(made.path) == objects(checkpoint)
    wired = {"root": here, "name": "few", "checkpoint": checkpoint, "vae": vae}
    generated = sample_step.run(build(sample_step.SampleConfig, {**SAMPLE, **wired}, "t"))
    assert objects(videos.path) == objects(storage.join(generated.uri, "manifest.json"))


def test_training_saves_and_ends_when_nobody_waits(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    root, latents = (tmp_path / "root").as_uri(), small_latents.once(tmp_path_factory)
    settings = {**TRAIN, "workers": 1, "steps": 100_000, "checkpoint_every": 100_000}
    uri = storage.join(root, "launched/run/work/work.json")
    Work("train", "train", settings, {"root": root, "name": "tiny", "latents": latents}).write(uri)
    log = tmp_path / "log"
    with lease.renewed(lease.uri_of(uri), 2), log.open("wb") as file:
        command = [sys.executable, "-m", "components.volcano.pod", "2", uri]
        environment = {"PATH": "/usr/bin", "PYTHONPATH": str(REPOSITORY), "VC_WORKER_HOSTS": "here"}
        environment |= {"VC_TASK_INDEX": "0", "LATTE_FUSED_KERNELS": "0", "LATTE_PROGRESS_INTERVAL_S": "0.2"}
        pod = subprocess.Popen(command, env=environment, stderr=file)
        until(lambda: "loss=" in log.read_text(), 60)
    assert pod.wait(60) == lease.EXIT_CODE
    *_, saved, error = log.read_text().splitlines()
    assert error.startswith("error: ended without being done: ")
    last = resume.committed(next(uri for uri in storage.list_uris(f"{root}/runs")).partition("/checkpoints/")[0])[-1]
    assert saved == f"error: train: asked to stop: saved step {last.step}; run the same command again to go on"
    assert last.step > 0
    assert resume.is_sound(last)
