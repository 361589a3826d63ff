"""Numbers that overflow end a step with one line that names what they are of; no black video is published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save_file

from latte import device, storage
from latte.config import build
from latte.errors import LatteError, UserError
from latte.models.configs import LatteConfig
from latte.steps import encode, sample, train
from latte.storage import manifest
from latte.training import resume
from tests import small_latents, small_vae, video_files
from tests.small_set import publish, random_weights

MODEL = {"input_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2, "condition": "none"}
TINY = {"patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_frames": 16}

Weights = dict[str, np.ndarray]


def times(name: str, factor: float) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        weights[name] = weights[name] * np.float32(factor)

    return change


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tmp_path_factory.mktemp("root").as_uri()


@pytest.fixture(scope="module")
def weights() -> Weights:
    from latte.models.latte import Latte

    device.setup(seed=0)
    return random_weights(Latte(LatteConfig(**MODEL)), 1)


def autoencoder(root: str, change: Callable[[Weights], None]) -> str:
    """The small autoencoder with other weights; returns the URI of its manifest."""
    good = manifest.read(small_vae.publish(root))
    state = load(storage.read_bytes(good.weights_file().uri))
    change(state)
    place = f"weights/changed-{manifest.fingerprint([array.tobytes().hex() for array in state.values()])[:8]}"
    return publish(root, "weights", place, {"model.safetensors": state}, config=good.config)


def sampling(root: str, vae: str, weights: Weights, **settings: Any) -> sample.SampleConfig:
    place = f"runs/{manifest.fingerprint([array.tobytes().hex() for array in weights.values()], vae)[:8]}"
    facts = {
        "model": LatteConfig(**MODEL).model_dump(),
        "diffusion": {"noise_schedule": "linear"},
        "classes": [],
        "latent_size": 8,
        "image_size": 16,
        "scaling_factor": 0.2,
        "vae": manifest.read(vae).weights_file().sha256,
    }
    files = {"checkpoints/step-00000007/ema.safetensors": weights}
    checkpoint = publish(root, "checkpoint", place, files, config=facts, metrics={"step": 7})
    values = {"num_videos": 3, "batch_size": 2, "num_sampling_steps": 3, "decode_frames": 16, **settings}
    return sample.SampleConfig(root=root, name="set", checkpoint=checkpoint, vae=vae, **values)


@pytest.mark.parametrize("method", ["ddim", "ddpm", "dpm-solver++"])
def test_a_video_whose_latents_overflow_is_named_with_the_step(root: str, weights: Weights, method: str) -> None:
    large = dict(weights)
    times("final_layer.linear.weight", 1e38)(large)
    with pytest.raises(UserError) as caught:
        sample.run(sampling(root, small_vae.publish(root), large, method=method))
    assert str(caught.value).startswith("video 0: its latents are not finite from denoising step 1 on")
    assert "\n" not in str(caught.value)
    assert not [uri for uri in storage.list_uris(storage.join(root, "videos")) if uri.endswith((".mkv", ".mp4"))]


def test_what_is_too_much_for_fp16_is_told_the_way_out(tmp_path: Path, weights: Weights) -> None:
    large = dict(weights)
    times("blocks.1.mlp.fc1.weight", 1e6)(large)
    root = tmp_path.as_uri()
    made = sampling(root, small_vae.publish(root), large, num_videos=1, batch_size=1)
    with pytest.raises(UserError, match=r"^video 0: .* too much for fp16; use precision=fp32, or bf16 on Ascend$"):
        sample.run(made.model_copy(update={"precision": "fp16"}))
    assert sample.run(made).counts == {"videos": 1}


def test_a_video_that_decodes_to_no_pixels_is_named(tmp_path: Path, weights: Weights) -> None:
    root = tmp_path.as_uri()
    vae = autoencoder(root, times("decoder.conv_norm_out.weight", 3e38))
    with pytest.raises(UserError, match=r"^video 0: decoded to numbers that are not finite in frames 0 to 15; are"):
        sample.run(sampling(root, vae, weights))
    assert not [uri for uri in storage.list_uris(storage.join(root, "videos")) if uri.endswith((".mkv", ".mp4"))]


def test_videos_beyond_the_range_of_float16_are_rejects_and_float32_holds_them(tmp_path: Path) -> None:
    root = tmp_path.as_uri()
    vae = autoencoder(root, times("quant_conv.weight", 1e6))
    for number in range(2):
        video_files.write(tmp_path / "videos" / f"{number}.mp4", video_files.moving(17, seed=number))
    settings = {
        "root": root,
        "name": "d",
        "vae": vae,
        "image_size": 16,
        "dataset": {"videos": str(tmp_path / "videos")},
    }
    with pytest.raises(LatteError) as caught:
        encode.run(build(encode.EncodeConfig, settings, "test"))
    assert "2 of 2 videos are rejected" in str(caught.value)
    assert "2  its latents are beyond the range of float16 in frames … to …; dtype=float32" in str(caught.value)
    assert encode.run(build(encode.EncodeConfig, {**settings, "dtype": "float32"}, "test")).counts["videos"] == 2


def training(root: Path, latents: str, **other: Any) -> manifest.Manifest:
    values = {"root": storage.from_path(root), "name": "tiny", "latents": latents, "model": TINY, "frame_stride": 1}
    return train.run(build(train.TrainConfig, {**values, "steps": 2, "batch_size": 2, **other}, "test"))


def test_a_start_that_is_not_finite_is_named_before_the_first_step(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    latents = small_latents.once(tmp_path_factory)
    done = training(tmp_path, latents)
    start = load(storage.read_bytes(done.shard("step-00000002/ema.safetensors").uri))
    start["blocks.1.attn.proj.bias"][3] = np.nan
    save_file(start, tmp_path / "start.safetensors")
    with pytest.raises(
        UserError, match=r"^init_from .*start\.safetensors: tensor blocks\.1\.attn\.proj\.bias holds NaN"
    ):
        training(tmp_path, latents, name="again", init_from=str(tmp_path / "start.safetensors"))
    assert storage.list_uris(storage.join(tmp_path.as_uri(), "runs/again")) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_that_the_last_update_broke_are_not_published(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, precision: str
) -> None:
    with pytest.raises(LatteError) as caught:
        training(tmp_path, small_latents.once(tmp_path_factory), steps=1, learning_rate=1e39, precision=precision)
    assert str(caught.value).startswith("a weight or a moment is NaN or infinite at step 1; videos ")
    assert str(caught.value).endswith("too much for fp16: use precision=bf16 or fp32") == (precision == "fp16")
    (place,) = (tmp_path / "runs").glob("*/*")
    assert [checkpoint.step for checkpoint in resume.committed(place.as_uri())] == [0]
