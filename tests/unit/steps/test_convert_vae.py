"""Autoencoders as diffusers publishes them: old and new names, and what the config.json beside the weights says."""

import json
import os

import pytest

from latte import checkpoints
from latte.errors import UserError
from latte.kinds.vae import to_old_name
from latte.steps.convert import ConvertConfig, run
from tests import torch_files
from tests.published import Published, published, published_vae, same


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Published:
    return published("convert-vae", published_vae, tmp_path_factory.mktemp("vae"))


@pytest.mark.peers
def test_old_and_new_vae_names(tmp_path, vae):
    new = vae.weights
    old = {}
    for name, array in new.items():
        old_name = to_old_name(name)
        # Some old files keep the attention's weights as 1x1 convolutions.
        is_conv = old_name != name and name.endswith("weight") and name.startswith("encoder")
        old[old_name] = array[..., None, None] if is_conv else array
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in old
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    vae.save_pretrained(tmp_path / "new")
    torch_files.save(old, tmp_path / "old" / "vae.bin")
    (tmp_path / "old" / "config.json").write_text((tmp_path / "new" / "config.json").read_text())
    sources = [tmp_path / "new" / "diffusion_pytorch_model.safetensors", tmp_path / "old" / "vae.bin"]
    for i, source in enumerate(sources):
        target = tmp_path / f"{i}.ckpt"
        made = run(ConvertConfig(kind="vae", source=str(source), target=str(target)))
        assert same(checkpoints.read(str(target)), new)
        assert made.config["model"]["block_out_channels"] == [32, 64]
        assert made.config["model"]["norm_num_groups"] == 16
        assert made.config["model"]["scaling_factor"] == 0.18215


@pytest.mark.peers
def test_vae_config_of_another_network_is_refused(tmp_path, vae):
    vae.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "act_fn": "gelu"}))
    with pytest.raises(UserError, match=r"config\.json.*act_fn"):
        run(
            ConvertConfig(
                kind="vae",
                source=str(tmp_path / "diffusion_pytorch_model.safetensors"),
                target=str(tmp_path / "o.ckpt"),
            )
        )
    assert not (tmp_path / "o.ckpt").exists()


def test_settings_that_the_config_json_contradicts(tmp_path, vae):
    vae.save_pretrained(tmp_path)
    source, target = tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "o.ckpt"
    for key, ours in (("scaling_factor", 0.13025), ("norm_num_groups", 8)):
        with pytest.raises(
            UserError, match=rf"config\.json beside it says {key} .*, the config says model\.{key}={ours}"
        ):
            run(ConvertConfig(kind="vae", source=str(source), target=str(target), model={key: ours}))
    assert not target.exists()
    # What it says as well, and what it does not say, may be given.
    said = json.loads((tmp_path / "config.json").read_text())
    said.pop("scaling_factor")
    (tmp_path / "config.json").write_text(json.dumps({**said, "sample_size": None}))
    given = {"scaling_factor": 0.13025, "norm_num_groups": 16, "sample_size": 64, "block_out_channels": [32, 64]}
    made = run(ConvertConfig(kind="vae", source=str(source), target=str(target), model=given))
    assert given.items() <= made.config["model"].items()


def test_a_config_json_that_is_too_large_or_too_deep(tmp_path, vae):
    vae.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    settings = ConvertConfig(
        kind="vae", source=str(tmp_path / "diffusion_pytorch_model.safetensors"), target=str(tmp_path / "o.ckpt")
    )
    for depth in (500, 900, 2_000, 10_000, 100_000, 1_000_000):
        path.write_text('{"a":' * depth + "1" + "}" * depth)
        with pytest.raises(UserError, match=r"config\.json") as caught:
            run(settings)
        assert "\n" not in str(caught.value)
    os.truncate(path, 1 << 40)
    with pytest.raises(UserError, match=r"config\.json: it has 1099511627776 bytes"):
        run(settings)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"config\.json: not a regular file"):
        run(settings)
