"""`latte convert` as a user runs it: a process of its own, its exit code, what it prints and what it leaves."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click.testing
import numpy as np
import pytest

from latte import checkpoints, storage
from latte.checkpoints import store as checkpoint_store
from latte.cli import cli
from latte.kinds.latte import shapes_of
from latte.models.configs import LatteConfig
from latte.steps.convert import ConvertConfig, run
from latte.storage import manifest
from tests import peers
from tests.unit.checkpoints import hostile

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"


def latte(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "latte.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "GLOG_v": "3"},
    )


def test_converts_a_published_file(tmp_path):
    target = tmp_path / "class.ckpt"
    done = latte("convert", "--kind", "latte", "--source", str(DATA / "class.pt"), "--target", str(target))
    assert done.returncode == 0, done.stderr
    for words in ("y_embedder", "191,792", "left out: ema is taken", "source sha256 617055a2"):
        assert words in done.stdout
    ours, published = checkpoints.read(str(target)), checkpoints.read(str(DATA / "class.pt"))
    assert all(np.array_equal(ours[name], published[name]) for name in published)
    assert manifest.read(f"{target}.manifest.json", "weights").config["model"]["num_classes"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["class.ckpt", "class.ckpt.manifest.json"]


def test_bad_files_end_with_2_one_line_and_no_output(tmp_path):
    canary = tmp_path / "canary"
    good = (DATA / "uncond.pt").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) - 300_000] ^= 4  # in the EMA weights, which lie at the end
    weights = dict(checkpoints.read(str(DATA / "uncond.pt")))
    weights["final_layer.linear.bias"] = weights["final_layer.linear.bias"][:-1]
    sources = {
        "hostile.pt": (hostile.archive(hostile.hostile_pickles(str(canary))["os.system"]), "os.system"),
        "truncated.pt": (good[:-1000], "truncated"),
        "flipped.pt": (bytes(flipped), "checksum"),
        "bomb.pt": (hostile.bad_archives()["deflate bomb"], "claims to inflate"),
        "shape.safetensors": (weights, "final_layer.linear.bias has shape"),
    }
    for name, (content, words) in sources.items():
        source, target = tmp_path / name, tmp_path / "out" / "weights.ckpt"
        if isinstance(content, bytes):
            source.write_bytes(content)
        else:
            checkpoint_store.save(content, source)
        done = latte(
            "convert", "--kind", "latte", "--source", str(source), "--target", str(target), "model.num_heads=4"
        )
        assert done.returncode == 2, (name, done.stderr)
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"error: {source}: ")
        assert words in done.stderr, (name, done.stderr)
        assert not target.parent.exists()
    assert not canary.exists()


def refusal(kind: str, source: Path, target: Path) -> str:
    """What `latte convert` says of a file that it must refuse: one line, exit code 2, nothing left behind."""
    arguments = ["convert", "--kind", kind, "--source", str(source), "--target", str(target)]
    done = click.testing.CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2, (source.name, done.output, done.exception)
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {source}: ")
    assert done.stderr.count("\n") == 1
    assert not target.parent.exists()
    return done.stderr


def test_every_hostile_file_is_refused(tmp_path):
    """None of them is a Latte: what the reader passes as inert, the check of names refuses."""
    canary = tmp_path / "canary"
    source = tmp_path / "hostile.pt"
    for content in hostile.collection(str(canary)).values():
        source.write_bytes(content)
        refusal("latte", source, tmp_path / "out" / "weights.ckpt")
    assert not canary.exists()


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, Path]:
    """Weights of a Latte in every format."""
    folder = tmp_path_factory.mktemp("published")
    arrays = checkpoints.read(str(DATA / "uncond.pt"))
    (folder / "new.pt").write_bytes((DATA / "uncond.pt").read_bytes())

    def write(path: Path) -> None:
        import torch

        small = shapes_of(LatteConfig(input_size=4, hidden_size=12, depth=2, num_heads=2, num_frames=2))
        state = {name: torch.from_numpy(array) for name, array in peers.weights(small, seed=0).items()}
        torch.save({"ema": state}, path, _use_new_zipfile_serialization=False)

    (folder / "old.pt").write_bytes(peers.file("latte-legacy.pt", tmp_path_factory.mktemp("live"), write).read_bytes())
    for ending in ("safetensors", "ckpt"):
        checkpoint_store.save(arrays, folder / f"weights.{ending}")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.peers
@pytest.mark.parametrize("file", ["new.pt", "old.pt", "weights.safetensors", "weights.ckpt"])
def test_truncated_files_are_refused_wherever_they_end(tmp_path, published, file):
    content = published[file].read_bytes()
    names = list(checkpoints.read(str(published[file])))
    source = tmp_path / file
    for share in (0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999):
        source.write_bytes(content[: int(share * len(content))])
        line = refusal("latte", source, tmp_path / "out" / "weights.ckpt")
        # A zip archive's directory is at its end: without it nothing is known of the tensors.
        if share >= 0.1 and file != "new.pt":
            assert "truncated" in line
            assert any(repr(name) in line for name in names), line


@pytest.mark.peers
def test_flipped_bits_are_named_by_their_tensor(tmp_path, published):
    """In formats with checksums; elsewhere the source's SHA-256 tells (`sha256=` of the published page)."""
    content = bytearray(published["new.pt"].read_bytes())
    weight = checkpoints.read(str(published["new.pt"]))["blocks.2.mlp.fc1.weight"].tobytes()
    content[content.index(weight) + 100] ^= 1
    source = tmp_path / "flipped.pt"
    source.write_bytes(content)
    line = refusal("latte", source, tmp_path / "out" / "weights.ckpt")
    assert "tensor 'blocks.2.mlp.fc1.weight': " in line
    assert "checksum" in line


@pytest.mark.peers
def test_files_of_another_kind_and_missing_shards_are_named(tmp_path, published):
    target = tmp_path / "out" / "weights.ckpt"
    assert "it holds weights of kind latte" in refusal("vae", published["new.pt"], target)
    for name, words in {"none.pt": "no such object", "model.safetensors.index.json": "no such object"}.items():
        assert words in refusal("clip", tmp_path / name, target)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "model-00001-of-00002.safetensors"}}))
    done = click.testing.CliRunner().invoke(
        cli, ["convert", "--kind", "clip", "--source", str(index), "--target", str(target)]
    )
    assert done.exit_code == 2
    assert "model-00001-of-00002.safetensors, which the index names, is not there beside it" in done.stderr


def test_source_and_target_in_a_store(root, tmp_path):
    source = storage.join(root, "published", "text.pt")
    storage.upload(DATA / "text.pt", source)
    target = storage.join(root, "out", "text.safetensors")
    made = run(ConvertConfig(kind="latte", source=source, target=target, root=root, name="text"))
    published = checkpoints.read(str(DATA / "text.pt"))
    for uri in (target, made.shard("model.safetensors").uri):
        ours = checkpoints.read(uri)
        assert all(np.array_equal(ours[name], published[name]) for name in published)
    assert manifest.find(made.uri, "weights") == made


def test_settings_may_all_be_overrides(tmp_path):
    target = tmp_path / "class.ckpt"
    given = ["kind=latte", f"source={DATA / 'class.pt'}", f"target={target}"]
    done = click.testing.CliRunner().invoke(cli, ["convert", *given])
    assert done.exit_code == 0, done.output
    assert target.exists()
    done = click.testing.CliRunner().invoke(cli, ["convert"])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing_half_written(tmp_path, monkeypatch, number):
    before = signal.getsignal(number)

    def write(_tensors, file, *_):
        file.write(b"half of it")
        assert [path.name[:5] for path in (tmp_path / "out").iterdir()] == [".tmp-"]
        os.kill(os.getpid(), number)

    monkeypatch.setattr(checkpoint_store, "_write_mindspore", write)
    given = ["kind=latte", f"source={DATA / 'class.pt'}", f"target={tmp_path / 'out' / 'class.ckpt'}"]
    done = click.testing.CliRunner().invoke(cli, ["convert", *given])
    assert done.exit_code == 128 + number
    assert done.stderr == "interrupted; run the same command again to go on\n"
    assert list((tmp_path / "out").iterdir()) == []
    assert signal.getsignal(number) == before


def test_target_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    target = tmp_path / "file" / "a.ckpt"
    done = latte("convert", "--kind", "latte", "--source", str(DATA / "class.pt"), "--target", str(target))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "not a folder"
