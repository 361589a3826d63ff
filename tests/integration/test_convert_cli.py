"""`latte convert` as a user runs it: a process of its own, its exit code, what it prints and what it leaves."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from latte import checkpoints, manifest, storage
from latte.checkpoints import store as checkpoint_store
from latte.steps.convert import ConvertConfig, run
from tests.unit import hostile

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


def test_target_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    target = tmp_path / "file" / "a.ckpt"
    done = latte("convert", "--kind", "latte", "--source", str(DATA / "class.pt"), "--target", str(target))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "not a folder"
