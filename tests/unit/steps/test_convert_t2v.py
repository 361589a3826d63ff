"""A folder as Latte-1 is published, transformer/, text_encoder/, vae/ and scheduler/, converted part by part."""

import json
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
from safetensors.numpy import save_file

from latte import checkpoints
from latte.cli import cli
from latte.errors import UserError
from latte.facts import LatteFacts
from latte.kinds.scheduler import PublishedScheduler
from latte.models.t2v_configs import LatteT2VConfig
from latte.steps.convert import ConvertConfig, run
from tests import published
from tests.published import T2V, T5, Published, same, save_sharded

SCHEDULER = {
    "_class_name": "DDIMScheduler", "_diffusers_version": "0.24.0", "beta_end": 0.02, "beta_schedule": "linear",
    "beta_start": 0.0001, "clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "epsilon",
    "set_alpha_to_one": True, "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None,
}  # fmt: skip
STRAY = "caption_projection.y_embedding"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Published]:
    builders = {"vae": published.published_vae, "t2v": published.published_t2v, "t5": published.published_t5}
    folder = tmp_path_factory.mktemp("parts")
    return {name: published.published(f"convert-{name}", build, folder) for name, build in builders.items()}


@pytest.fixture
def folder(parts: dict[str, Published], tmp_path: Path) -> Path:
    """All of it, the large parts in several files."""
    root = tmp_path / "Latte-1"
    stray = {STRAY: np.ones((5, 24), np.float32)}
    save_sharded({**parts["t2v"].weights, **stray}, root / "transformer", "diffusion_pytorch_model", 3)
    (root / "transformer" / "config.json").write_text(parts["t2v"].config.read_text())
    half = {name: value.astype(np.float16) for name, value in parts["t5"].weights.items()}
    save_sharded(half, root / "text_encoder")
    (root / "text_encoder" / "config.json").write_text(parts["t5"].config.read_text())
    (root / "vae").mkdir()
    parts["vae"].save_pretrained(root / "vae")
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return root


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def converted(kind: str, source: Path, target: Path, **more: Any) -> Any:
    return run(ConvertConfig(kind=kind, source=str(source), target=str(target), **more))


@pytest.mark.peers
def test_each_part_of_the_folder_is_converted_as_it_is(
    folder: Path, parts: dict[str, Published], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "t2v.safetensors"
    made = converted("latte_t2v", folder, target)
    assert same(checkpoints.read(str(target)), parts["t2v"].weights)
    digest = made.inputs["source"]
    assert made.config["model"] == T2V
    assert made.config["left_out"] == [[STRAY, "the caption dropped in training; the empty one takes its place"]]
    assert STRAY in capsys.readouterr().out
    facts = LatteFacts.of(made)
    assert (facts.kind, facts.image_size, facts.latent_size) == ("latte_t2v", 32, 4)
    assert facts.latte == LatteT2VConfig(**T2V)
    assert facts.diffusion.scheduler == PublishedScheduler(steps_offset=1)

    made = converted("t5", folder, tmp_path / "t5.safetensors")
    expected = {
        name: value.astype(np.float16).astype(np.float32)
        for name, value in parts["t5"].weights.items()
        if "embed_tokens" not in name
    }
    assert same(checkpoints.read(str(tmp_path / "t5.safetensors")), expected)
    assert T5.items() <= made.config["model"].items()
    made = converted("vae", folder, tmp_path / "vae.safetensors")
    assert made.config["model"]["block_out_channels"] == [32, 64]
    # The part itself, and its index, are the same source.
    for source in (folder / "transformer", folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"):
        again = converted("latte_t2v", source, tmp_path / "again.safetensors")
        assert again.inputs["source"] == digest


MISTAKES = {
    "a shard is missing": (
        lambda root: (root / "transformer" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink(),
        "latte_t2v",
        r"index\.json: diffusion_pytorch_model-00002-of-00003\.safetensors, which the index names, is not there",
    ),
    "another index": (
        lambda root: (root / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(
            (root / "text_encoder" / "model.safetensors.index.json").read_text()
        ),
        "latte_t2v",
        r"index\.json: model-00001-of-00002\.safetensors, which the index names, is not there",
    ),
    "the weights of another part": (
        lambda root: [
            path.rename(root / "transformer" / path.name) for path in (root / "text_encoder").iterdir()
        ] and (root / "transformer" / "diffusion_pytorch_model.safetensors.index.json").unlink(),
        "latte_t2v",
        "not weights of kind latte_t2v: it holds weights of kind t5",
    ),
    "a part is missing": (
        lambda root: (root / "text_encoder").rename(root / "text"),
        "t5",
        "a published folder without text_encoder/, which weights of kind t5 lie in",
    ),
    "an empty part": (
        lambda root: [path.unlink() for path in (root / "text_encoder").iterdir()],
        "t5",
        r"no weights in this folder; expected diffusion_pytorch_model\.safetensors\.index\.json",
    ),
    "a T5 of the first version": (
        lambda root: change(root / "text_encoder" / "config.json", feed_forward_proj="relu"),
        "t5",
        "feed_forward_proj: only 'gated-gelu' is supported",
    ),
    "a T5 of another size": (
        lambda root: change(root / "text_encoder" / "config.json", d_model=4096),
        "t5",
        "its tensors say d_model 24, the settings say 4096",
    ),
    "another transformer": (
        lambda root: change(root / "transformer" / "config.json", norm_type="layer_norm"),
        "latte_t2v",
        "norm_type: only 'ada_norm_single' is supported",
    ),
    "another width of the cross-attention": (
        lambda root: change(root / "transformer" / "config.json", cross_attention_dim=8),
        "latte_t2v",
        "cross_attention_dim: only 16 is supported",
    ),
    "a key that is not known": (
        lambda root: change(root / "transformer" / "config.json", rotary=True), "latte_t2v", "unknown key rotary",
    ),
    "heads that do not divide": (
        lambda root: change(root / "transformer" / "config.json", num_attention_heads=3),
        "latte_t2v",
        "its tensors have 16 channels, which 3 heads do not divide",
    ),
    "another prediction": (
        lambda root: change(root / "scheduler" / "scheduler_config.json", prediction_type="v_prediction"),
        "latte_t2v",
        "prediction_type: only 'epsilon' is supported",
    ),
    "a scheduler that clips": (
        lambda root: (root / "scheduler" / "scheduler_config.json").write_text("{}"),
        "latte_t2v",
        "clip_sample: only False is supported",
    ),
    "a scheduler that is none": (
        lambda root: (root / "scheduler" / "scheduler_config.json").write_text("[1]"),
        "latte_t2v",
        "expected a JSON object",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(mistake: str, folder: Path, tmp_path: Path) -> None:
    break_it, kind, words = MISTAKES[mistake]
    break_it(folder)
    with pytest.raises(UserError, match=words) as caught:
        converted(kind, folder, tmp_path / "o.safetensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o.safetensors").exists()


def test_the_command_says_it_in_one_line_with_exit_code_2(folder: Path, tmp_path: Path) -> None:
    (folder / "text_encoder" / "model-00001-of-00002.safetensors").unlink()
    arguments = ["convert", "--kind", "t5", "--source", str(folder), "--target", str(tmp_path / "o.safetensors")]
    done = click.testing.CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert "model-00001-of-00002.safetensors, which the index names, is not there" in done.output
    assert len(done.output.splitlines()) == 1


def test_a_first_version_of_t5_is_told_by_its_tensors_too(parts: dict[str, Published], tmp_path: Path) -> None:
    first = {
        name.replace("wi_0", "wi"): value for name, value in parts["t5"].weights.items() if "wi_1" not in name
    }  # fmt: skip
    save_file(first, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"a T5 of the first version.*take T5 v1\.1"):
        converted("t5", tmp_path / "model.safetensors", tmp_path / "o.safetensors")


def test_without_settings_beside_it_heads_have_to_be_said(parts: dict[str, Published], tmp_path: Path) -> None:
    save_file(parts["t2v"].weights, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"say how many heads it has with model\.num_attention_heads=N"):
        converted("latte_t2v", tmp_path / "a.safetensors", tmp_path / "o.safetensors")
    model = {"num_attention_heads": 2, "sample_size": 4, "video_length": 2}
    made = converted("latte_t2v", tmp_path / "a.safetensors", tmp_path / "o.safetensors", model=model)
    assert made.config["model"] == T2V
    assert LatteFacts.of(made).diffusion.scheduler is None


def test_shapes_are_those_of_the_networks() -> None:
    from latte.kinds import latte_t2v, t5
    from latte.models.latte_t2v import LatteT2V
    from latte.models.t2v_configs import T5Config
    from latte.models.t5 import T5Encoder

    video, text = LatteT2VConfig(**{**T2V, "out_channels": 4, "patch_size": 4}), T5Config(**T5)
    for net, shapes in ((LatteT2V(video), latte_t2v.shapes_of(video)), (T5Encoder(text), t5.shapes_of(text))):
        assert {parameter.name: tuple(parameter.shape) for parameter in net.get_parameters()} == shapes


def test_published_sizes_have_the_published_number_of_parameters() -> None:
    from latte.kinds import latte_t2v, t5
    from latte.models.t2v_configs import T5Config

    assert latte_t2v.num_parameters(LatteT2VConfig()) == 1_057_246_880  # as diffusers counts them
    assert sum(int(np.prod(shape)) for shape in t5.shapes_of(T5Config()).values()) == 4_762_310_656
