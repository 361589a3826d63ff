"""Memory, previews, precision and recompute of a training run; whether a model learns what it is shown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from latte import rng, storage
from latte.cli import cli
from latte.config import build
from latte.data.latents import LatentClips
from latte.errors import UserError
from latte.models.configs import LatteConfig
from latte.planning import dry_run
from latte.steps import train
from latte.storage import manifest
from latte.training import memory, previews
from tests import small_latents

TINY = {"patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_frames": 8}


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_latents.once(tmp_path_factory)


@pytest.fixture(scope="module")
def plain(latents: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return metrics(run(tmp_path_factory.mktemp("plain"), latents))


def run(root: Path, latents: str, **other: Any) -> manifest.Manifest:
    values = {
        "root": root.as_uri(),
        "name": "options",
        "latents": latents,
        "model": TINY,
        "steps": 3,
        "frame_stride": 1,
        "learning_rate": 1e-3,
        **{"log_every": 1, **other},
    }
    return train.run(build(train.TrainConfig, values, "test"))


def metrics(done: manifest.Manifest) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(done.metrics["metrics_uri"]).splitlines()]


def test_recomputed_activations_give_the_same_losses_and_previews_show_the_average(
    plain: list[dict[str, Any]], latents: str, tmp_path: Path
) -> None:
    (vae,) = Path(storage.local_path(latents)).parents[3].glob("weights/vae/*/manifest.json")
    shown = {"preview_every": 2, "preview_clips": 3, "preview_steps": 2, "vae": vae.as_uri()}
    done = run(tmp_path, latents, recompute=True, **shown)
    for one, other in zip(plain, metrics(done), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    folder = storage.local_path(done.uri) / "previews"
    names = ["step-00000002-0.mp4", "step-00000002-1.mp4", "step-00000002-2.mp4", "step-00000002.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    drawn, titles = previews.read((folder / "step-00000002.safetensors").as_uri())
    assert titles == ["bikes", "carphone", "bikes"]
    assert drawn.shape == (3, 8, 4, 8, 8)
    assert np.isfinite(drawn).all()
    assert (folder / "step-00000002-0.mp4").read_bytes()[4:8] == b"ftyp"
    # As after a kill between a checkpoint and its preview.
    storage.delete(storage.join(done.uri, "manifest.json"))
    run(tmp_path, latents, **{**shown, "preview_every": 3, "vae": None})
    assert previews.listed(done.metrics["previews_uri"]).keys() == {2, 3}


def test_the_command_plans_instead_of_training_where_it_is_asked_to(
    latents: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "reason_against", lambda: "gcc not found")
    given = {"root": tmp_path.as_uri(), "name": "options", "latents": latents, "model": json.dumps(TINY)}
    words = [f"{key}={value}" for key, value in {**given, "precision": "bf16", "dry_run": "true"}.items()]
    done = CliRunner().invoke(cli, ["train", *words])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("options: planned, nothing is trained\n  parameters  ")
    assert "  Ascend      not planned: gcc not found\n" in done.output
    assert not list(tmp_path.iterdir())


def test_half_precision_scales_its_loss_and_steps_can_be_traced(
    plain: list[dict[str, Any]], latents: str, tmp_path: Path
) -> None:
    done = run(tmp_path, latents, precision="fp16", profile_steps="2:3")
    found = metrics(done)
    assert [line["loss_scale"] for line in found] == [65536.0] * 3
    for one, other in zip(plain, found, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-2)
    assert any(one["loss"] != other["loss"] for one, other in zip(plain, found, strict=True))
    (trace,) = (storage.local_path(done.uri) / "profile").rglob("trace_view.json")
    names = [event["name"] for event in json.loads(trace.read_bytes())]
    assert sum("MatMul" in name for name in names) > 10


def test_what_cannot_fit_is_refused_before_the_first_step(latents: str, tmp_path: Path) -> None:
    model = {"preset": "Latte-XL/2", "num_frames": 16}
    with pytest.raises(
        UserError, match=r"training needs about .* GB of memory, .* GB are free .*activations"
    ) as caught:
        run(tmp_path, latents, model=model, batch_size=1 << 16)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="bf16"):
        run(tmp_path, latents, precision="bf16")


def test_the_estimate_follows_what_a_run_is_made_of() -> None:
    model = LatteConfig.preset("Latte-S/2", condition="none")
    one = memory.estimate(model, 32_480_000, 2)
    assert memory.estimate(model, 32_480_000, 4).activations_bytes == 2 * one.activations_bytes
    assert memory.estimate(model, 32_480_000, 2, recompute=True).activations_bytes < one.activations_bytes / 4
    assert memory.estimate(model, 32_480_000, 2, workers=2).weights_bytes > one.weights_bytes
    sharded = memory.estimate(model, 32_480_000, 2, workers=2, shards=2)
    assert sharded.optimizer_bytes == one.optimizer_bytes // 2
    assert sharded.weights_bytes < memory.estimate(model, 32_480_000, 2, workers=2).weights_bytes
    assert memory.available_bytes() > 0
    memory.check(one, 1, device_bytes=64 << 30)
    with pytest.raises(UserError, match=r"of the device's 1\.1 GB"):
        memory.check(one, 1, device_bytes=1 << 30)


def test_a_preview_of_other_latents_is_refused(latents: str, tmp_path: Path) -> None:
    source = manifest.read(latents)
    other = tmp_path / "latents.json"
    manifest.write(source.model_copy(update={"inputs": {**source.inputs, "vae": "0" * 64}}), other)
    (vae,) = Path(storage.local_path(latents)).parents[3].glob("weights/vae/*/manifest.json")
    with pytest.raises(UserError, match="the latents are of another autoencoder"):
        run(tmp_path, str(other), preview_every=1, vae=vae.as_uri())


def test_a_model_memorises_two_clips(tmp_path: Path) -> None:
    """Samples with the label of a clip are nearer to that clip than to the other one, whatever the seed."""
    from latte import checkpoints
    from latte.diffusion import Diffusion
    from latte.models.latte import Latte

    two = small_latents.publish(tmp_path / "two", clips_per_class=1, num_frames=4)
    model = {"patch_size": 2, "hidden_size": 96, "depth": 2, "num_heads": 4, "num_frames": 4, "class_dropout_prob": 0.0}
    recipe = {"learning_rate": 3e-3, "lr_schedule": "cosine", "warmup_steps": 20, "clip_grad_norm": 1.0}
    done = run(tmp_path, two, model=model, steps=600, ema_decay=0.95, clip_start_step=1, log_every=100, **recipe)
    net = Latte(LatteConfig(**done.config["model"]))
    checkpoints.load(net, done.shard("step-00000600/ema.safetensors").uri)
    net.set_train(False)
    clips = LatentClips(manifest.read(two), tmp_path / "cache")
    shown = np.stack([clips.clip(index, 0, 1, 4)[0] for index in range(2)]) * clips.scaling_factor  # (2, F, C, h, w)
    seeds = range(6)
    noise = np.stack([rng.stream(seed, "learning test").standard_normal(shown.shape[1:], np.float32) for seed in seeds])
    y = np.array([0, 1] * len(seeds), np.int32)  # each seed with both labels

    def step_noise(step: int, shape: tuple[int, ...]) -> np.ndarray:
        return rng.stream(step, "learning test, steps").standard_normal(shape, np.float32)

    start = np.repeat(noise, 2, axis=0)  # (12, F, C, h, w)
    drawn = Diffusion(60).sample(net, start, method="ddpm", step_noise=step_noise, y=y)  # (12, F, C, h, w)
    distance = ((drawn[:, None] - shown[None]) ** 2).mean(axis=(2, 3, 4, 5))  # (12, 2)
    right, wrong = distance[np.arange(len(y)), y], distance[np.arange(len(y)), 1 - y]
    assert (right < wrong).all(), (right, wrong)
    assert right.mean() < 0.5 * wrong.mean(), (right, wrong)
