import hashlib
import json
import os
from pathlib import Path

import click.testing
import numpy as np
import pytest

from latte import checkpoints, config, kinds
from latte.checkpoints import store
from latte.cli import cli
from latte.errors import UserError
from latte.steps import convert as step
from latte.steps.convert import ConvertConfig, run
from latte.storage import manifest
from tests import torch_files
from tests.published import Published, published, published_clip, published_vae, same

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Published:
    return published("convert-vae", published_vae, tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Published:
    return published("convert-clip", published_clip, tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("name", ["uncond", "class", "text"])
def test_latte_round_trip_is_equal_to_the_bit(tmp_path, name, capsys):
    source = DATA / f"{name}.pt"
    to_ckpt = run(ConvertConfig(kind="latte", source=str(source), target=str(tmp_path / "a.ckpt")))
    heads = {"num_heads": json.loads((DATA / f"{name}.json").read_text())["num_heads"]}
    run(
        ConvertConfig(
            kind="latte", source=str(tmp_path / "a.ckpt"), target=str(tmp_path / "a.safetensors"), model=heads
        )
    )
    assert same(checkpoints.read(str(tmp_path / "a.safetensors")), checkpoints.read(str(source)))

    published = json.loads((DATA / f"{name}.json").read_text())
    model = to_ckpt.config["model"]
    assert model["condition"] == {1: "none", 2: "class", 78: "text"}[published["extras"]]
    for key in ("input_size", "patch_size", "hidden_size", "depth", "num_heads", "num_frames", "mlp_ratio"):
        assert model[key] == published[key]
    if name == "class":
        assert model["num_classes"] == published["num_classes"]
    printed = capsys.readouterr().out
    assert "left out: ema is taken" in printed
    assert f"{to_ckpt.counts['parameters']:,}" in printed


@pytest.mark.peers
def test_every_kind_goes_round_to_the_bit(tmp_path, vae, clip):
    """.pt -> .ckpt -> .safetensors -> arrays by the names of the .pt, which for the autoencoder are the old ones."""
    text = {n: t for n, t in clip.weights.items() if n.startswith("text_model.")}
    i3d = kinds.i3d.random_weights(3)
    heads = {"num_attention_heads": 2}
    groups = {"norm_num_groups": 16}
    for kind, state, model in (("vae", vae.weights, groups), ("clip", text, heads), ("i3d", i3d, {})):
        old_name = kinds.vae.to_old_name if kind == "vae" else str
        torch_files.save({old_name(name): array for name, array in state.items()}, tmp_path / "a.pt")
        for source, target in (("a.pt", "b.ckpt"), ("b.ckpt", "c.safetensors")):
            paths = {"source": str(tmp_path / source), "target": str(tmp_path / target)}
            run(ConvertConfig(kind=kind, model=model, **paths))
        back = {old_name(name): array for name, array in checkpoints.read(str(tmp_path / "c.safetensors")).items()}
        assert same(back, checkpoints.read(str(tmp_path / "a.pt"))), kind
        assert same(back, {old_name(name): array for name, array in state.items()}), kind


def test_mindspore_reads_what_is_written(tmp_path):
    import mindspore as ms

    tensors = {**checkpoints.read(str(DATA / "uncond.pt")), "scalar": np.float32(2.5).reshape(())}
    store.save(tensors, tmp_path / "ours.ckpt")
    theirs = ms.load_checkpoint(str(tmp_path / "ours.ckpt"))
    assert same({name: parameter.asnumpy() for name, parameter in theirs.items()}, tensors)
    ms.save_checkpoint(
        [{"name": name, "data": parameter} for name, parameter in theirs.items()],
        str(tmp_path / "theirs.ckpt"),
        crc_check=True,
    )
    assert same(checkpoints.read(str(tmp_path / "theirs.ckpt")), tensors)


def test_load_is_strict_in_both_directions(tmp_path):
    from mindspore import nn

    net = nn.Dense(3, 2)
    weights = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(2, np.float32)}
    for ending in ("ckpt", "safetensors"):
        path = tmp_path / f"dense.{ending}"
        store.save(weights, path)
        checkpoints.load(net, str(path))
        assert np.array_equal(net.weight.asnumpy(), weights["weight"])
        assert np.array_equal(net.bias.asnumpy(), weights["bias"])
    mistakes = {
        "tensor bias is missing": {"weight": weights["weight"]},
        "tensor 'extra' is not part": {**weights, "extra": weights["bias"]},
        "tensor 'bn.num_batches_tracked' is not part": {**weights, "bn.num_batches_tracked": np.ones(1, np.int64)},
        r"tensor weight has shape \(3, 2\), expected \(2, 3\)": {**weights, "weight": weights["weight"].T},
        "tensor bias is float64, expected float32": {**weights, "bias": weights["bias"].astype(np.float64)},
    }
    for message, tensors in mistakes.items():
        store.save(tensors, path)
        with pytest.raises(UserError, match=message) as caught:
            checkpoints.load(net, str(path))
        assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("prefix", ["module._orig_mod.", "_orig_mod.module.", "ema_model.module.module."])
def test_wrappers_in_wrappers_are_taken_off(tmp_path, prefix):
    weights = checkpoints.read(str(DATA / "uncond.pt"))
    source, target = tmp_path / "wrapped.ckpt", tmp_path / "o.ckpt"
    store.save({prefix + name: array for name, array in weights.items()}, source)
    run(ConvertConfig(kind="latte", source=str(source), target=str(target), model={"num_heads": 4}))
    assert same(checkpoints.read(str(target)), weights)
    store.save({prefix + name: array for name, array in weights.items()} | {"n_averaged": np.ones(1)}, source)
    made = run(ConvertConfig(kind="latte", source=str(source), target=str(target), model={"num_heads": 4}))
    assert made.config["left_out"] == [["n_averaged", "a counter of training steps"]]
    store.save({prefix + name: array for name, array in weights.items()} | {"module.x": np.ones(1)}, source)
    if prefix.startswith("ema_model."):
        made = run(ConvertConfig(kind="latte", source=str(source), target=str(target), model={"num_heads": 4}))
        assert made.config["left_out"] == [["module.x", "ema_model.* is taken"]]
        return
    with pytest.raises(UserError, match="it has no tensor x_embedder"):
        run(ConvertConfig(kind="latte", source=str(source), target=str(target), model={"num_heads": 4}))


def renamed(weights, prefix, added=0.0):
    return {prefix + name: array + np.float32(added) for name, array in weights.items()}


@pytest.mark.parametrize("ending", ["pt", "safetensors", "ckpt"])
@pytest.mark.parametrize(
    ("raw", "average"),
    [
        ("model.", "ema."),
        ("", "ema."),
        ("model.", "ema_model.module."),
        ("net.", "model_ema."),
        ("a.net.", "a.net_ema."),
    ],
)
def test_an_average_beside_the_weights_is_told_by_its_names(tmp_path, ending, raw, average, capsys):
    weights = checkpoints.read(str(DATA / "uncond.pt"))
    source, target = tmp_path / f"flat.{ending}", tmp_path / "o.safetensors"
    both = renamed(weights, raw, 1.0) | renamed(weights, average)
    if "module" in average:
        both["ema_model.n_averaged"] = np.array(7)
    torch_files.save({"state_dict": both}, source) if ending == "pt" else store.save(both, source)
    settings = {"kind": "latte", "source": str(source), "target": str(target), "model": {"num_heads": 4}}
    made = run(ConvertConfig(**settings))
    assert same(checkpoints.read(str(target)), weights)
    assert any(why == f"{average.removesuffix('module.')}* is taken" for _, why in made.config["left_out"])
    assert "* is taken" in capsys.readouterr().out
    if raw:
        part = ("state_dict/" if ending == "pt" else "") + raw.removesuffix(".")
        other = run(ConvertConfig(**settings, part=part))
        assert same(checkpoints.read(str(target)), renamed(weights, "", 1.0))
        assert (other.config["part"], other.fingerprint == made.fingerprint) == (part, False)


def test_an_average_that_is_not_the_networks_is_not_passed_over(tmp_path):
    weights = checkpoints.read(str(DATA / "uncond.pt"))
    source, target = tmp_path / "flat.safetensors", tmp_path / "o.safetensors"
    settings = {"kind": "latte", "source": str(source), "target": str(target), "model": {"num_heads": 4}}
    dotless = {f"model_ema.{name.replace('.', '')}": array for name, array in weights.items()}
    begun_not = renamed(weights, "ema.module.") | {"ema.n_averaged": np.array(0)}
    for added, message in (
        (
            dotless,
            r"tensors model_ema\.\* look like .*, but their names are not the network's; choose with part=model$",
        ),
        (
            renamed(weights, "ema.") | renamed(weights, "ema2."),
            r"tensors ema\.\*, ema2\.\* look like .* several; choose with part=ema or part=ema2 or part=model$",
        ),
        (begun_not, "its average has not begun: n_averaged is 0"),
    ):
        store.save(renamed(weights, "model.", 1.0) | added, source)
        with pytest.raises(UserError, match=message) as caught:
            run(ConvertConfig(**settings))
        assert str(caught.value).startswith(f"{source}: ")
        assert not target.exists()
        run(ConvertConfig(**settings, part="model"))
        target.unlink()


def test_large_tensors_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_PIECE_BYTES", 1000)
    tensors = {"large": np.arange(3000, dtype=np.float32).reshape(30, 100), "small": np.ones(3, np.int8)}
    store.save(tensors, tmp_path / "pieces.ckpt")
    assert same(checkpoints.read(str(tmp_path / "pieces.ckpt")), tensors)
    import mindspore as ms

    theirs = ms.load_checkpoint(str(tmp_path / "pieces.ckpt"))
    assert same({name: parameter.asnumpy() for name, parameter in theirs.items()}, tensors)


@pytest.mark.peers
def test_text_encoder_of_a_whole_clip(tmp_path, clip, capsys):
    clip.save_pretrained(tmp_path, "model.safetensors")
    target = tmp_path / "text.safetensors"
    made = run(ConvertConfig(kind="clip", source=str(tmp_path / "model.safetensors"), target=str(target)))
    expected = {name: array for name, array in clip.weights.items() if name.startswith("text_model.")}
    assert same(checkpoints.read(str(target)), expected)
    assert made.config["model"]["num_attention_heads"] == 2  # config.json wins over what 64 channels suggest
    assert "left out: not part of the text encoder" in capsys.readouterr().out


def test_random_i3d_is_the_golden_one(tmp_path):
    published = json.loads((DATA / "i3d_names.json").read_text())
    shapes = kinds.i3d.shapes_of()
    assert {name: list(shape) for name, shape in shapes.items()} == {
        name: shape for name, shape in published.items() if not name.endswith("num_batches_tracked")
    }
    # The recipe of tests/data, written out once more.
    rng = np.random.RandomState(21)
    expected = {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith("running_var"):
            expected[name] = 0.5 + rng.random_sample(shape)
        elif name.endswith("bn.weight"):
            expected[name] = 0.8 + 0.4 * rng.random_sample(shape)
        elif len(shape) > 1:
            expected[name] = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            expected[name] = rng.standard_normal(shape) * 0.1
    made = run(ConvertConfig(kind="i3d", source="random", seed=21, root=tmp_path.as_uri(), name="i3d"))
    weights = checkpoints.read(made.shard("model.safetensors").uri)
    assert same(weights, {name: array.astype(np.float32) for name, array in expected.items()})
    assert made.config["random"] is True
    assert made.config["seed"] == 21
    other = run(ConvertConfig(kind="i3d", source="random", seed=22, root=tmp_path.as_uri(), name="i3d"))
    assert other.uri != made.uri

    state = dict(weights)
    counters = {name: np.array(7) for name in published if name.endswith("num_batches_tracked")}
    state |= counters
    torch_files.save(state, tmp_path / "i3d.pt")
    from_file = run(ConvertConfig(kind="i3d", source=str(tmp_path / "i3d.pt"), root=tmp_path.as_uri(), name="i3d"))
    assert same(checkpoints.read(from_file.shard("model.safetensors").uri), weights)
    assert from_file.config["random"] is False
    assert {why for _, why in from_file.config["left_out"]} == {"a counter of training steps"}

    # Under that name, but not the counter of any layer, or no counter.
    for name, array in (("x.num_batches_tracked", np.array(7)), (next(iter(counters)), np.ones(2, np.float32))):
        torch_files.save({**state, name: array}, tmp_path / "wrong.pt")
        with pytest.raises(UserError, match=f"tensor '{name}' is not part of the network"):
            run(ConvertConfig(kind="i3d", source=str(tmp_path / "wrong.pt"), target=str(tmp_path / "o.ckpt")))


def test_counters_of_a_network_are_passed_over(tmp_path):
    import mindspore as ms
    from mindspore import nn

    net = nn.Cell()
    net.running_mean = ms.Parameter(ms.Tensor(np.ones(2, np.float32)), name="bn.running_mean")
    arrays = {"bn.running_mean": np.full(2, 3, np.float32), "bn.num_batches_tracked": np.int64(3).reshape(())}
    store.save(arrays, tmp_path / "bn.safetensors")
    checkpoints.load(net, str(tmp_path / "bn.safetensors"))
    assert net.running_mean.asnumpy().tolist() == [3, 3]


def test_published_once_and_found_again(tmp_path, monkeypatch):
    settings = ConvertConfig(kind="latte", source=str(DATA / "class.pt"), root=tmp_path.as_uri(), name="latte")
    first = run(settings)
    shard = first.shard("model.safetensors")
    assert first.uri.startswith(f"{tmp_path.as_uri()}/weights/latte/")
    assert manifest.find(first.uri, "weights") == first
    assert manifest.read_record(shard.uri) is not None
    assert first.inputs["source"] == hashlib.sha256((DATA / "class.pt").read_bytes()).hexdigest()
    written = os.stat(tmp_path / "weights" / "latte" / first.fingerprint[:16] / "model.safetensors").st_mtime_ns
    monkeypatch.setattr(step, "_prepare", lambda *_: pytest.fail("the work is done already"))
    assert run(settings) == first
    assert os.stat(tmp_path / "weights" / "latte" / first.fingerprint[:16] / "model.safetensors").st_mtime_ns == written


def test_weights_that_are_there_are_not_written_again_for_want_of_a_manifest(tmp_path):
    settings = ConvertConfig(kind="latte", source=str(DATA / "class.pt"), root=tmp_path.as_uri(), name="latte")
    first = run(settings)
    folder = tmp_path / "weights" / "latte" / first.fingerprint[:16]
    written = os.stat(folder / "model.safetensors").st_mtime_ns
    (folder / "manifest.json").unlink()  # a run was killed between the two
    assert run(settings).shards == first.shards
    assert os.stat(folder / "model.safetensors").st_mtime_ns == written
    (folder / "model.safetensors").write_bytes(b"cut off")
    assert run(settings).shards == first.shards
    assert manifest.is_whole(first.shards[0])


def test_half_precision_is_widened_exactly(tmp_path):
    tensors = checkpoints.read(str(DATA / "uncond.pt"))
    halves = {name: array.astype(np.float16) for name, array in tensors.items()}
    brains = {name: (array.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, array in tensors.items()}
    for state, wide in (
        (halves, {name: array.astype(np.float32) for name, array in halves.items()}),
        ({name: torch_files.BFloat16(array) for name, array in tensors.items()}, brains),
    ):
        torch_files.save(state, tmp_path / "narrow.pt")
        target = tmp_path / "wide.safetensors"
        run(ConvertConfig(kind="latte", source=str(tmp_path / "narrow.pt"), target=str(target), model={"num_heads": 4}))
        assert same(checkpoints.read(str(target)), wide)


def test_shapes_are_those_of_the_networks():
    from latte.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
    from latte.models.clip_text import ClipTextConfig, ClipTextModel
    from latte.models.configs import I3DConfig
    from latte.models.i3d import I3D

    sizes = AutoencoderKLConfig(block_out_channels=(32, 64, 64), norm_num_groups=16, layers_per_block=1)
    text = ClipTextConfig(
        vocab_size=30, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    small = I3DConfig(num_classes=12, width=0.125, image_size=64)
    for net, shapes in (
        (ClipTextModel(text), kinds.clip.shapes_of(text)),
        (AutoencoderKL(sizes), kinds.vae.shapes_of(sizes)),
        (I3D(), kinds.i3d.shapes_of()),
        (I3D(small), kinds.i3d.shapes_of(small)),
    ):
        assert {parameter.name: tuple(parameter.shape) for parameter in net.get_parameters()} == shapes


def test_every_preset_is_a_sound_config():
    from latte.models.configs import ClipTextConfig, LatteConfig

    paths = sorted((ROOT / "configs" / "models").glob("*.yaml"))
    presets = {path.stem: config.load(ConvertConfig, path) for path in paths}
    assert {name: preset.kind for name, preset in presets.items()} == {
        "latte-ffs": "latte", "latte-skytimelapse": "latte", "latte-taichi-hd": "latte", "latte-ucf101": "latte",
        "sd-vae-ft-mse": "vae", "sd-vae-ft-ema": "vae", "clip-vit-large-patch14": "clip", "i3d-kinetics400": "i3d",
        "latte-1": "latte_t2v", "latte-1-vae": "vae", "t5-v1_1-xxl": "t5",
    }  # fmt: skip
    for preset in presets.values():
        assert preset.page.startswith("https://")
        assert preset.target.endswith(".safetensors")
        if preset.kind == "latte":
            model = dict(preset.model)
            size = LatteConfig.preset(model.pop("preset"), **model)
            # The published files have 2.7 GB: EMA weights alone.
            assert 4 * kinds.latte.num_parameters(size) == pytest.approx(2.696e9, rel=1e-3)
        if preset.kind == "clip":
            ClipTextConfig(**preset.model)


def test_a_preset_converts(tmp_path):
    """A file of the shape that a preset describes passes; one of another shape is named."""
    shapes = kinds.i3d.shapes_of()
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    torch_files.save(state, tmp_path / "i3d.pt")
    preset = ROOT / "configs" / "models" / "i3d-kinetics400.yaml"
    files = [f"source={tmp_path}/i3d.pt", f"target={tmp_path}/i3d.ckpt"]
    done = click.testing.CliRunner().invoke(cli, ["convert", "-c", str(preset), *files])
    assert done.exit_code == 0, done.output
    assert "not from the published file of I3D: a score by it is not called fvd" in done.output
    assert set(checkpoints.read(str(tmp_path / "i3d.ckpt"))) == set(shapes)
