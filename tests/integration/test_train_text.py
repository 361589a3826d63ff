"""Training on captions: batches, a short run, a set sampled from it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latte import checkpoints, storage
from latte.config import build
from latte.data.latents import LatentClips
from latte.errors import UserError
from latte.steps import sample, train
from latte.storage import manifest
from latte.training import batches, previews
from tests import small_clip, small_latents

STEPS = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("text")
    text_encoder, tokenizer = small_clip.publish(folder)
    keys = {"text_encoder": text_encoder, "tokenizer": tokenizer}
    return SimpleNamespace(latents=small_latents.publish(folder, 2, 8, **keys), keys=keys, folder=folder)


def run(root: Path, latents: str, **other: Any) -> manifest.Manifest:
    values = {
        "root": root.as_uri(),
        "name": "captioned",
        "latents": latents,
        "model": {"hidden_size": 32, "depth": 2, "num_heads": 2, "num_frames": 4, "condition": "text"},
        "steps": STEPS,
        "batch_size": 4,
        "frame_stride": 1,
        "learning_rate": 3e-3,
        "ema_decay": 0.5,
        **other,
    }
    return train.run(build(train.TrainConfig, values, "test"))


def test_a_model_trained_on_captions_makes_videos_from_captions(world: SimpleNamespace, tmp_path: Path) -> None:
    done = run(tmp_path, world.latents, preview_every=STEPS, preview_clips=2, preview_steps=2)
    name = "text_embedding_projection.1.weight"
    start, end = (checkpoints.read(done.shard(f"step-{step:08d}/model.safetensors").uri)[name] for step in (0, STEPS))
    assert np.abs(end - start).max() > 1e-4, "captions reach the loss"
    drawn, titles = previews.read(storage.join(done.metrics["previews_uri"], f"step-{STEPS:08d}.safetensors"))
    assert titles == ["bikes 0", "bikes 1"]
    assert drawn.shape == (2, 4, 4, 8, 8)

    (tmp_path / "captions.txt").write_text("bikes 0\ncarphone 1\n")
    (vae,) = world.folder.glob("root/weights/vae/*/manifest.json")
    keys = {
        "root": tmp_path.as_uri(),
        "name": "set",
        "checkpoint": storage.join(done.uri, "manifest.json"),
        "vae": vae.as_uri(),
        "captions": str(tmp_path / "captions.txt"),
        "num_videos": 2,
        "batch_size": 2,
        "num_sampling_steps": 2,
        "cfg_scale": 2.0,
        **world.keys,
    }
    made = sample.run(sample.SampleConfig(**keys))
    items = storage.read_json(storage.join(made.uri, "items.json"))
    assert [item["caption"] for item in items] == ["bikes 0", "carphone 1"]
    other, _ = small_clip.publish(tmp_path, "other", seed=2)
    with pytest.raises(UserError, match="the model was trained with another encoder or tokenizer"):
        sample.plan(sample.SampleConfig(**{**keys, "text_encoder": other}))


def test_captions_are_dropped_by_each_items_own_stream(world: SimpleNamespace, tmp_path: Path) -> None:
    clips = LatentClips(manifest.read(world.latents), tmp_path)
    plan = batches.BatchPlan(
        seed=1,
        batch_size=64,
        num_frames=4,
        frame_stride=1,
        num_timesteps=1000,
        scaling_factor=1.0,
        num_classes=0,
        class_dropout_prob=0.25,
        text=True,
    )
    usable = batches.usable_videos(clips, plan)
    batch = batches.make_batch(clips, usable, plan, 0, range(64))
    assert (batch.condition.shape, batch.condition.dtype) == ((64, 77, 768), np.float32)
    texts = {video.id: clips.text(i) for i, video in enumerate(clips.videos)}
    dropped = [bool((text == clips.null_text()).all()) for text in batch.condition]
    assert 6 <= sum(dropped) <= 26
    for text, gone, video in zip(batch.condition, dropped, batch.videos, strict=True):
        assert gone or (text == texts[video]).all()
    part = batches.make_batch(clips, usable, plan, 0, range(48, 64))
    np.testing.assert_array_equal(part.condition, batch.condition[48:])


def test_latents_without_captions_are_refused(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="carry no text embeddings; encode again with text_encoder") as caught:
        run(tmp_path, small_latents.once(tmp_path_factory))
    assert "\n" not in str(caught.value)
