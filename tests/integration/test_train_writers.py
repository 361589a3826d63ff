"""One run of training, two who would write to it: stopped and woken processes, parts already there, cut logs."""

import functools
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from latte import storage
from latte.errors import LatteError, StorageError, UserError
from latte.storage import documents, manifest, publishing
from latte.training import optim, resume
from tests import small_latents
from tests.integration.test_train import LATTE, metrics, run, settings, start
from tests.soak import scaled

QUICK = {"steps": 4, "checkpoint_every": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_latents.once(tmp_path_factory)


def configured(folder: Path, root: str, latents: str, **other: Any) -> Path:
    path = folder / "train.json"
    path.write_text(json.dumps(settings(root, latents, **other)))
    return path


def committed_steps(root: str) -> list[int]:
    names = [uri.split("/")[-2] for uri in storage.list_uris(root) if uri.endswith("/checkpoint.json")]
    return sorted(int(name.removeprefix("step-")) for name in names)


def content(root: str) -> dict[str, str]:
    """Everything below runs/, by its digest."""
    return {uri: publishing.sha256_of(uri) for uri in storage.list_uris(storage.join(root, "runs"))}


def stop_at(process: "subprocess.Popen[str]", root: str, step: int, wait_s: float) -> None:
    while process.poll() is None and max(committed_steps(root), default=0) < step:
        time.sleep(0.01)
    time.sleep(wait_s)
    process.send_signal(signal.SIGSTOP)


@pytest.mark.soak
@pytest.mark.parametrize("root", ["file", "seaweedfs"], indirect=True)
def test_a_writer_that_was_stopped_wakes_up_and_leaves_all_as_it_is(root: str, latents: str, tmp_path: Path) -> None:
    draw = random.Random(5)
    for number in range(scaled(10)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        stopped_and_woken(storage.join(root, f"{number}"), latents, folder, draw.uniform(0, 0.2))


def stopped_and_woken(root: str, latents: str, folder: Path, wait_s: float) -> None:
    latents = small_latents.copy(latents, root) if storage.path(root) is None else latents
    config = configured(folder, root, latents, steps=60)
    first = start(config)
    try:
        stop_at(first, root, 20, wait_s)
        at = committed_steps(root)[-1]
        second = start(config, "steps=40")
        _, said = second.communicate()
        assert second.returncode == 0, said
        (uri,) = [uri for uri in storage.list_uris(storage.join(root, "runs")) if uri.endswith("/manifest.json")]
        done = manifest.read(uri, "checkpoint")
        assert [line["step"] for line in metrics(done)] == list(range(1, 41))
        before = content(root)
    finally:
        first.send_signal(signal.SIGCONT)
    _, said = first.communicate()
    assert first.returncode == 1
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert f"error: run tiny ({done.uri}) is held by process {second.pid} on {socket.gethostname()}" in error
    assert "Traceback" not in said
    assert at < 40
    after = content(root)
    assert after.items() >= before.items()
    # Stopped while it put a part where nothing was, it ends that; nobody takes the part for a checkpoint's.
    assert {uri.rpartition("/")[2] for uri in after.keys() - before.keys()} <= {*resume.PART_NAMES}


def test_what_cannot_start_does_not_end_the_run_that_is_at_work(latents: str, tmp_path: Path) -> None:
    done = run(tmp_path, latents, **QUICK)
    before = content(tmp_path.as_uri())
    (tmp_path / "runs" / done.uri.split("/runs/")[1] / "manifest.json").unlink()
    with pytest.raises(UserError, match="is at step 4 already"):
        run(tmp_path, latents, **{**QUICK, "steps": 1})
    assert content(tmp_path.as_uri()).items() <= before.items()


def test_a_part_that_is_there_with_other_bytes_is_not_overwritten(
    latents: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "prune", lambda *_: None)
    quick = {**QUICK, "checkpoint_every": 4}
    clean = run(tmp_path / "clean", latents, **quick)
    other = tmp_path / "other" / "runs" / clean.uri.split("/runs/")[1] / "checkpoints" / "step-00000004"
    other.mkdir(parents=True)
    (other / "ema.safetensors").write_bytes(b"of another writer")
    done = run(tmp_path / "other", latents, **quick)
    assert (other / "ema.safetensors").read_bytes() == b"of another writer"
    wanted, shard = (each.shard("step-00000004/ema.safetensors") for each in (clean, done))
    assert shard.sha256 == wanted.sha256
    assert shard.uri != (other / "ema.safetensors").as_uri()
    monkeypatch.undo()
    longer = run(tmp_path / "other", latents, **{**quick, "steps": 6})
    assert [line["step"] for line in metrics(longer)] == list(range(1, 7))
    assert not (other / "ema.safetensors").exists(), "nobody names it"


def test_parts_that_were_never_committed_go_with_the_next_checkpoint(latents: str, tmp_path: Path) -> None:
    done = run(tmp_path, latents, **QUICK)
    left = storage.local_path(done.uri) / "checkpoints" / "step-00000003" / "model.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"killed before its commit")
    run(tmp_path, latents, **{**QUICK, "steps": 6})
    assert not left.exists()


def test_a_run_whose_last_checkpoint_does_not_read_back_does_not_count_as_trained(
    latents: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = storage.copy_new

    def answered_and_damaged(path: Path, uri: str) -> bool:
        done = put(path, uri)
        if uri.endswith("step-00000004/optimizer.safetensors"):
            target = storage.local_path(uri)
            data = bytearray(target.read_bytes())
            data[-9] ^= 1
            target.write_bytes(data)
        return done

    monkeypatch.setattr(storage, "copy_new", answered_and_damaged)
    with pytest.raises(StorageError, match=r"step-00000004/optimizer\.safetensors: the store does not give back"):
        run(tmp_path, latents, **QUICK)
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_log_that_was_cut_is_told_and_made_whole(
    latents: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(tmp_path, latents, **QUICK)
    log = storage.local_path(done.metrics["metrics_uri"])
    whole = log.read_bytes()
    log.write_bytes(whole[: whole.index(b"\n") + 1])
    capsys.readouterr()
    again = run(tmp_path, latents, **QUICK)
    assert log.read_bytes() == whole
    assert "1 of the 4 lines up to the checkpoint were there; written anew" in capsys.readouterr().err
    assert "1 of the 4 lines" in again.config["notes"][0]
    log.unlink()
    longer = run(tmp_path, latents, **{**QUICK, "steps": 6})
    assert [line["step"] for line in metrics(longer)] == list(range(1, 7))
    # A checkpoint of before kept no log, and no document a digest of itself.
    for path in tmp_path.rglob("checkpoint.json"):
        record = json.loads(path.read_text())
        del record["shards"]["log"], record[documents.SEAL]
        path.write_text(json.dumps(record))
    log.write_bytes(whole[: whole.index(b"\n") + 1])
    run(tmp_path, latents, **{**QUICK, "steps": 8})
    assert "1 of the 6 lines up to the checkpoint were there; the others are lost" in capsys.readouterr().err


def test_a_run_whose_steps_are_all_left_out_is_not_trained(
    latents: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "LossScale", functools.partial(optim.LossScale, value=2.0**60))
    for _ in range(2):
        with pytest.raises(LatteError) as caught:
            run(tmp_path, latents, **QUICK, precision="fp16")
        said = str(caught.value)
        assert said.startswith("run tiny: none of its 4 steps made an update")
        assert said.endswith("use bf16 or fp32")
        assert "\n" not in said
    assert not list(tmp_path.rglob("manifest.json"))
    (place,) = (tmp_path / "runs").glob("*/*")
    assert resume.committed(place.as_uri())[-1].step < 4, "the last step is not saved as if it were one"


def test_ctrl_c_saves_and_gives_130(latents: str, tmp_path: Path) -> None:
    config = configured(tmp_path, tmp_path.as_uri(), latents, steps=100_000, checkpoint_every=1000)
    with subprocess.Popen([*LATTE, "train", "-c", str(config)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while not re.search(r"[1-9]\d/100000", said):  # it computes, and compiles no more
            said += process.stderr.read(1)
        os.kill(process.pid, signal.SIGINT)
        said += process.communicate()[1]
    assert process.returncode == 130, said
    assert "error: asked to stop: saved step" in said
