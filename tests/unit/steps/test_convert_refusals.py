"""What `latte convert` refuses: tensors, settings, targets and digests that do not fit."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from latte import checkpoints, config
from latte.checkpoints import store
from latte.errors import StorageError, UserError
from latte.steps.convert import ConvertConfig, run
from latte.storage import manifest
from tests import torch_files

DATA = Path(__file__).parents[2] / "data"


MISTAKES = {
    "missing": (lambda s: s.pop("blocks.1.mlp.fc1.bias"), r"tensor blocks\.1\.mlp\.fc1\.bias is missing"),
    "unknown": (lambda s: s.update(extra=np.ones(1, np.float32)), "tensor 'extra' is not part of the network"),
    "shape": (
        lambda s: s.update({"final_layer.linear.bias": np.ones(3, np.float32)}),
        r"final_layer\.linear\.bias has shape",
    ),
    "type": (
        lambda s: s.update({"pos_embed": s["pos_embed"].astype(np.float64)}),
        "tensor pos_embed is float64, expected float32",
    ),
    "axes": (lambda s: s.update({"pos_embed": s["pos_embed"][0]}), r"tensor pos_embed has shape \(16, 48\)"),
    "first block": (lambda s: s.pop("blocks.0.mlp.fc1.weight"), r"tensor blocks\.0\.mlp\.fc1\.weight is missing"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_tensors_must_match_in_both_directions(tmp_path, mistake):
    state = dict(checkpoints.read(str(DATA / "uncond.pt")))
    change, message = MISTAKES[mistake]
    change(state)
    source = tmp_path / "wrong.pt"
    torch_files.save(state, source)
    with pytest.raises(UserError, match=message) as caught:
        run(ConvertConfig(kind="latte", source=str(source), target=str(tmp_path / "o.ckpt"), model={"num_heads": 4}))
    assert str(caught.value).startswith(f"{source}: ")
    assert list(tmp_path.iterdir()) == [source]


def test_settings_that_the_tensors_contradict(tmp_path):
    for model, message in (
        ({"depth": 10**9}, "its tensors say depth 4, the settings say 1000000000"),
        ({"preset": "Latte-XL/2"}, "its own settings say num_heads 4, the config says num_heads 16 by its preset"),
        ({"preset": "Latte-XL/2", "num_heads": 4}, "its tensors say hidden_size 48, the settings say 1152"),
        ({"preset": "Latte-M/2"}, "Latte-M/2"),
        ({"num_heads": 5}, r"its own settings say num_heads 4, the config says model\.num_heads=5"),
        ({"class_dropout_prob": 0.5}, "its own settings say class_dropout_prob 0.1"),
        ({"heads": 4}, "unknown key heads"),
    ):
        with pytest.raises(UserError, match=message):
            run(
                ConvertConfig(
                    kind="latte", source=str(DATA / "uncond.pt"), target=str(tmp_path / "o.ckpt"), model=model
                )
            )
    assert list(tmp_path.iterdir()) == []


def test_the_source_is_never_overwritten(tmp_path):
    weights = checkpoints.read(str(DATA / "uncond.pt"))
    source, link = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    store.save(weights, source)
    link.symlink_to(source)
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, source.name)}))
    before = source.read_bytes()
    for given, target in ((source, source), (source, source.as_uri()), (link, source), (source, link), (index, source)):
        with pytest.raises(UserError, match="the target would overwrite the source"):
            run(ConvertConfig(kind="latte", source=str(given), target=str(target), model={"num_heads": 4}))
    with pytest.raises(UserError, match="the target would overwrite the source"):
        run(ConvertConfig(kind="latte", source="s3://bucket/a.ckpt", target="s3://bucket/a.ckpt"))
    assert source.read_bytes() == before


def test_nothing_is_left_where_the_manifest_cannot_be_written(tmp_path, monkeypatch):
    target = tmp_path / "out" / "o.ckpt"
    settings = ConvertConfig(kind="latte", source=str(DATA / "uncond.pt"), target=str(target))
    folder = tmp_path / "out" / "o.ckpt.manifest.json"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"o\.ckpt\.manifest\.json: a folder"):
        run(settings)
    folder.rmdir()

    def fail(*_):
        assert target.exists()
        raise StorageError("no space left on the disk")

    monkeypatch.setattr(manifest, "write", fail)
    with pytest.raises(StorageError):
        run(settings)
    assert list(target.parent.iterdir()) == []


def test_a_digest_of_a_single_file_is_not_asked_of_several(tmp_path):
    weights = checkpoints.read(str(DATA / "uncond.pt"))
    store.save(weights, tmp_path / "a.safetensors")
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, "a.safetensors")}))
    with pytest.raises(UserError, match="sha256 is that of a single file, the source has 2"):
        run(ConvertConfig(kind="latte", source=str(index), target=str(tmp_path / "o.ckpt"), sha256="0" * 64))


def test_a_digest_may_be_pasted_with_spaces_and_in_capitals(tmp_path):
    digest = hashlib.sha256((DATA / "text.pt").read_bytes()).hexdigest()
    target = str(tmp_path / "o.ckpt")
    made = run(ConvertConfig(kind="latte", source=str(DATA / "text.pt"), target=target, sha256=f" {digest.upper()}\n"))
    assert made.inputs["source"] == digest


def test_wrong_kind_says_which_it_is(tmp_path):
    source = str(DATA / "text.pt")
    for kind in ("vae", "i3d", "clip"):
        with pytest.raises(UserError, match=f"not weights of kind {kind}: it holds weights of kind latte"):
            run(ConvertConfig(kind=kind, source=source, target=str(tmp_path / "o.ckpt")))
    assert list(tmp_path.iterdir()) == []


def test_wrong_digest_stops_before_the_work(tmp_path):
    with pytest.raises(UserError, match="its SHA-256 is"):
        run(ConvertConfig(kind="latte", source=str(DATA / "text.pt"), target=str(tmp_path / "o.ckpt"), sha256="0" * 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "latte", "source": "x.pt"}, "give target=FILE, or root and name"),
        ({"kind": "latte", "source": "x.pt", "target": "x.bin"}, "write .safetensors or .ckpt"),
        ({"kind": "latte", "source": "x.pt", "root": "file:///x"}, "root and name go together"),
        ({"kind": "vae", "source": "random", "target": "x.ckpt"}, "source random is there for kind i3d"),
        ({"kind": "unet", "source": "x.pt", "target": "x.ckpt"}, "kind"),
        ({"kind": "vae", "source": "x.pt", "target": "x.ckpt", "sha": "0"}, "unknown key sha"),
        ({"kind": "vae", "source": "x.pt", "target": "x.ckpt", "sha256": "0" * 63}, "sha256: expected 64 hexadecimal"),
        ({"kind": "vae", "source": "file:///x%00.pt", "target": "x.ckpt"}, "no path has a zero byte"),
        ({"kind": "vae", "source": "x.pt", "target": "x\0.ckpt"}, "no path has a zero byte"),
        ({"kind": "vae", "source": "x.pt", "target": "x.ckpt", "sha256": ""}, "sha256: expected 64 hexadecimal"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        config.build(ConvertConfig, settings, "test")
