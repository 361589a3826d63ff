"""The train step on latents of real clips: stopped, killed, finetuned, misused."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tensorboardX.proto import event_pb2

from latte import checkpoints, storage
from latte.config import build
from latte.errors import LatteError, StorageError, UserError
from latte.steps import train
from latte.storage import manifest
from latte.training import resume
from tests import fault_proxy, small_latents
from tests.soak import scaled

LATTE = [sys.executable, "-m", "latte.cli"]
TINY = {"patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_frames": 16}
STEPS = 60


@dataclass(frozen=True)
class Run:
    """A run of the command that nothing stopped."""

    root: Path
    config: Path
    seconds: float
    result: manifest.Manifest


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_latents.once(tmp_path_factory)


def settings(root: Path | str, latents: str, **other: Any) -> dict[str, Any]:
    values = {
        "root": storage.from_path(root),
        "name": "tiny",
        "latents": latents,
        "model": TINY,
        "steps": STEPS,
        "frame_stride": 1,
        "learning_rate": 3e-3,
        "ema_decay": 0.9,
        "clip_start_step": 5,
        "log_every": 1,
        "checkpoint_every": 4,
        "keep_last": 2,
    }
    return {**values, **other}


def run(root: Path, latents: str, **other: Any) -> manifest.Manifest:
    return train.run(build(train.TrainConfig, settings(root, latents, **other), "test"))


def write_config(folder: Path, latents: str, **other: Any) -> Path:
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(settings(folder / "root", latents, **other)))
    return path


def start(config: Path, *overrides: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*LATTE, "train", "-c", str(config), *overrides],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def metrics(done: manifest.Manifest) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(done.metrics["metrics_uri"]).splitlines()]


def scalars(events: bytes) -> list[tuple[str, int]]:
    """Tag and step of every scalar in a TensorBoard file: records of length, checksum, event, checksum."""
    found, at = [], 0
    while at < len(events):
        length = int.from_bytes(events[at : at + 8], "little")
        event = event_pb2.Event.FromString(events[at + 12 : at + 12 + length])
        found += [(value.tag, event.step) for value in event.summary.value]
        at += length + 16
    return found


def finished(root: Path) -> manifest.Manifest:
    (place,) = root.glob("runs/*/*/manifest.json")
    return manifest.read(place.as_uri(), "checkpoint")


def digests(root: Path | str) -> dict[str, str]:
    """What a run leaves, by name: tensors and the loss log; not clocks."""
    listed = storage.list_uris(storage.join(storage.from_path(root), "runs"))
    (run_uri,) = [uri.removesuffix("manifest.json") for uri in listed if uri.endswith("/manifest.json")]
    kept = [uri for uri in listed if uri.endswith(("/metrics.jsonl", ".safetensors"))]
    return {uri.removeprefix(run_uri): storage.sha256_bytes(storage.read_bytes(uri)) for uri in kept}


def commits(root: Path) -> set[str]:
    return {path.parent.name for path in root.rglob("checkpoint.json")}


@pytest.fixture(scope="module")
def whole(latents: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(folder, latents)
    started = time.monotonic()
    process = start(config)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return Run(folder / "root", config, time.monotonic() - started, finished(folder / "root"))


def test_a_run_learns_and_tells(whole: Run) -> None:
    lines = metrics(whole.result)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert set(lines[0]) == {"step", "loss", "mse", "vb", "grad_norm", "lr"}
    assert np.mean([line["mse"] for line in lines[-8:]]) < 0.9 * np.mean([line["mse"] for line in lines[:8]])
    assert commits(whole.root) == {"step-00000000", f"step-{STEPS - 4:08d}", f"step-{STEPS:08d}"}
    assert whole.result.config["classes"] == ["bikes", "carphone"]
    (events,) = whole.root.rglob("tensorboard/*tfevents*")
    shown = scalars(events.read_bytes())
    assert [step for tag, step in shown if tag == "train/loss"] == list(range(1, STEPS + 1))
    assert {tag for tag, _ in shown} > {"train/grad_norm", "train/lr", "train/steps_per_s", "train/data_wait_share"}


@pytest.mark.soak
def test_killed_anywhere_it_ends_with_the_same_bits(whole: Run, latents: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, latents)
    root = tmp_path / "root"
    draw = random.Random(0)
    for number in range(scaled(20)):
        process = start(config)
        if number % 2:
            time.sleep(draw.uniform(0, 1) * whole.seconds)
        else:  # around the writing of a checkpoint
            before, wanted = len(commits(root)), draw.randrange(1, 3)
            while len(commits(root) - {"step-00000000"}) < wanted and process.poll() is None:
                time.sleep(0.005)
                if len(commits(root)) != before and draw.random() < 0.1:
                    break
            time.sleep(draw.uniform(0, 0.3))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(config)
    assert process.wait() == 0
    assert digests(root) == digests(whole.root)


@pytest.mark.parametrize("s3_root", ["seaweedfs"], indirect=True)
def test_an_outage_is_ridden_out_for_a_set_time(
    whole: Run, latents: str, proxy: fault_proxy.Proxy, s3_root: str, tmp_path: Path
) -> None:
    # Without a cache every clip is a request.
    values = settings(s3_root, small_latents.copy(latents, s3_root), cache_gb=0)
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump(values))

    def end(retry_s: int) -> tuple[int, list[str]]:
        with start(config, LATTE_S3_RETRY_S=str(retry_s)) as process:
            _, said = process.communicate()
        assert "Traceback" not in said
        return process.returncode, [line for line in said.splitlines() if line.startswith("error: ")]

    proxy.fail(after=("PUT", "/step-00000004/"), path="/shards/")  # the reader's requests
    code, (line,) = end(retry_s=1)
    assert code == 1
    assert "/shards/" in line
    assert "the store did not answer for 1 s" in line

    proxy.fail(after=("PUT", "/step-00000016/"), path="/checkpoints/")  # the writer's: the model is through, no more
    code, (line,) = end(retry_s=1)
    assert code == 1
    assert "checkpoint not written: " in line
    assert "/step-00000016/ema.safetensors: the store did not answer for 1 s" in line

    proxy.fail(after=("PUT", "/step-00000024/"), for_s=2)
    assert end(retry_s=60) == (0, [])
    for part in ("/shards/", "/step-00000024/ema.safetensors"):
        assert any(part in path for path in proxy.refused)
    assert digests(s3_root) == digests(whole.root)


def test_asked_to_stop_it_saves_and_goes_on(whole: Run, latents: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, latents, checkpoint_every=1000)
    process = start(config)
    while not commits(tmp_path) and process.poll() is None:  # step 0: the loop is about to begin
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 1
    assert "asked to stop: saved step" in said
    assert "Traceback" not in said
    saved = max(commits(tmp_path))
    assert "step-00000000" < saved < f"step-{STEPS:08d}"
    assert start(config).wait() == 0
    last = f"checkpoints/step-{STEPS:08d}"
    wanted = {name: digest for name, digest in digests(whole.root).items() if name.startswith((last, "metrics"))}
    assert digests(tmp_path / "root").items() >= wanted.items()


def test_a_longer_run_goes_on_and_a_done_one_does_nothing(whole: Run) -> None:
    code = (
        "import sys; from latte.cli import cli; cli(sys.argv[1:], standalone_mode=False); "
        "print('mindspore' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "train", "-c", str(whole.config)]
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert again.stdout.splitlines()[-1] == "False"
    process = start(whole.config, f"steps={STEPS - 10}", "checkpoint_every=1000")
    assert process.wait() == 0, "a shorter run is done already"


def test_a_run_that_ends_between_two_lines_of_its_log_knows_its_step(latents: str, tmp_path: Path) -> None:
    facts = {"log_every": 3, "checkpoint_every": 2}
    place = storage.local_path(run(tmp_path, latents, steps=4, **facts).uri)
    (place / "manifest.json").unlink()
    (place / "checkpoints" / "step-00000004" / "checkpoint.json").unlink()
    assert run(tmp_path, latents, steps=2, **facts).metrics["step"] == 2


def test_accumulated_parts_equal_the_whole_batch(latents: str, tmp_path: Path) -> None:
    runs = [
        run(tmp_path, latents, steps=3, learning_rate=1e-3, accumulation=parts, name=f"parts{parts}")
        for parts in (1, 2)
    ]
    for one, other in zip(*map(metrics, runs), strict=True):
        for key in ("loss", "mse", "vb", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-5, abs=1e-6), (one, other)
    weights = [checkpoints.read(done.shard("step-00000003/model.safetensors").uri) for done in runs]
    for name, tensor in weights[0].items():
        # Adam turns gradients near zero into steps of either sign: those few are bounded by the step size.
        close = np.isclose(tensor, weights[1][name], rtol=1e-5, atol=1e-5)
        assert close.mean() > 0.999, name
        np.testing.assert_allclose(tensor, weights[1][name], atol=7e-3)


def test_finetuning_names_what_was_reinitialised(whole: Run, latents: str, tmp_path: Path) -> None:
    source = storage.join(whole.result.uri, "manifest.json")
    model = {**TINY, "num_frames": 8, "num_classes": 5}
    done = run(tmp_path, latents, init_from=source, model=model, steps=1)
    assert done.config["reinitialised"] == ["temp_embed"]
    start = checkpoints.read(done.shard("step-00000000/model.safetensors").uri)
    given = checkpoints.read(whole.result.shard(f"step-{STEPS:08d}/ema.safetensors").uri)
    np.testing.assert_array_equal(start["blocks.0.attn.qkv.weight"], given["blocks.0.attn.qkv.weight"])
    rows, known = (weights["y_embedder.embedding_table.weight"] for weights in (start, given))
    assert rows.shape == (6, 32)
    np.testing.assert_array_equal(rows[[0, 1, 5]], known)
    assert start["temp_embed"].shape == (1, 8, 32)


def test_label_rows_are_taken_by_the_names_of_their_classes(whole: Run, latents: str, tmp_path: Path) -> None:
    table = "y_embedder.embedding_table.weight"
    given = checkpoints.read(whole.result.shard(f"step-{STEPS:08d}/ema.safetensors").uri)[table]
    assert whole.result.config["classes"] == ["bikes", "carphone"]
    known = manifest.read(storage.join(whole.result.uri, "manifest.json"))
    fresh = checkpoints.read(run(tmp_path, latents, steps=1, name="fresh").shard("step-00000000/model.safetensors").uri)

    def rows(classes: list[str], name: str) -> tuple[np.ndarray, list[str]]:
        other = tmp_path / f"{name}.json"
        manifest.write(known.model_copy(update={"config": {**known.config, "classes": classes}}), other)
        done = run(tmp_path, latents, steps=1, name=name, init_from=str(other))
        return checkpoints.read(done.shard("step-00000000/model.safetensors").uri)[table], done.config["reinitialised"]

    swapped, left = rows(["carphone", "bikes"], "swapped")
    np.testing.assert_array_equal(swapped, given[[1, 0, 2]])
    assert left == []
    others, left = rows(["carphone", "cats"], "others")
    np.testing.assert_array_equal(others[1], given[0], "the row of carphone")
    np.testing.assert_array_equal(others[2], given[2], "the row of no class")
    np.testing.assert_array_equal(others[0], fresh[table][0], "nobody has learned bikes")
    assert left == [f"{table}: bikes"]


def test_weights_that_changed_since_they_were_recorded_are_refused(whole: Run, latents: str, tmp_path: Path) -> None:
    known = manifest.read(storage.join(whole.result.uri, "manifest.json"))
    shard = known.shard(f"step-{STEPS:08d}/ema.safetensors")
    data = bytearray(storage.read_bytes(shard.uri))
    data[-1] ^= 0x80  # a flipped sign
    flipped = storage.write_bytes((tmp_path / f"step-{STEPS:08d}" / "ema.safetensors").as_uri(), bytes(data))
    other = shard.model_copy(update={"uri": flipped.uri})
    manifest.write(known.model_copy(update={"shards": [other]}), tmp_path / "flipped.json")
    with pytest.raises(StorageError, match="damaged"):
        run(tmp_path, latents, steps=1, init_from=str(tmp_path / "flipped.json"))


def test_a_model_without_classes_starts_from_one_with_classes(whole: Run, latents: str, tmp_path: Path) -> None:
    source = storage.join(whole.result.uri, "manifest.json")
    done = run(tmp_path, latents, init_from=source, model={**TINY, "condition": "none"}, steps=1)
    assert done.config["reinitialised"] == []
    assert "y_embedder.embedding_table.weight" not in checkpoints.read(
        done.shard("step-00000000/model.safetensors").uri
    )


def test_a_diverging_run_stops_with_step_videos_and_checkpoint(latents: str, tmp_path: Path) -> None:
    with pytest.raises(LatteError) as caught:
        run(tmp_path, latents, learning_rate=1e30, clip_grad_norm=None, checkpoint_every=1)
    message = str(caught.value)
    assert "NaN or infinite at step" in message
    assert "bikes/" in message
    (place,) = (tmp_path / "runs").glob("*/*")
    good = resume.committed(place.as_uri())[-1]
    assert message.endswith(f"last good checkpoint {good.uri}")
    assert np.isfinite(resume.load_part(good, "model")["blocks.0.attn.qkv.weight"]).all()


def test_mistakes_are_one_line(whole: Run, latents: str, tmp_path: Path) -> None:
    def mistake(text: str, **other: Any) -> None:
        with pytest.raises(UserError, match=text) as caught:
            run(tmp_path, **{"latents": latents, **other})
        assert "\n" not in str(caught.value)

    checkpoint = storage.join(whole.result.uri, "manifest.json")
    mistake("model.input_size=16, but the latents of few have input_size=8", model={**TINY, "input_size": 16})
    mistake("batch_size 8 is not divisible by workers 1 x accumulation 3", accumulation=3)
    mistake("unknown key batchsize", batchsize=3)
    mistake(r"unknown key model\.hidden", model={"hidden": 3})
    mistake("model.num_classes=1, but the latents have 2 classes", model={**TINY, "num_classes": 1})
    mistake("none of 10 videos has the 46 frames", frame_stride=3)
    mistake("no such object", init_from=str(tmp_path / "none.safetensors"))
    mistake("tensor .* has shape .*, this model has", init_from=checkpoint, model={**TINY, "hidden_size": 64})
    mistake("tensor blocks.2.* is missing, this model has", init_from=checkpoint, model={**TINY, "depth": 4})
    mistake("a manifest of latents, expected checkpoint or weights", init_from=latents)
    mistake("a manifest of checkpoint, expected latents", latents=checkpoint)
    source = manifest.read(latents)
    foreign = tmp_path / "latents.json"
    manifest.write(source.model_copy(update={"inputs": {**source.inputs, "vae": "0" * 64}}), foreign)
    mistake("that model knows the latents of another autoencoder", init_from=checkpoint, latents=str(foreign))


def test_a_missing_shard_is_named_before_any_work(latents: str, tmp_path: Path) -> None:
    source = manifest.read(latents)
    gone = source.shards[0].model_copy(update={"uri": source.shards[0].uri + ".gone"})
    broken = tmp_path / "latents.json"
    manifest.write(source.model_copy(update={"shards": [gone, *source.shards[1:]]}), broken)
    with pytest.raises(UserError, match=r"shard .*\.gone \(1 in all\) is missing or cut off"):
        run(tmp_path, str(broken))
