"""A set from captions: a tiny Latte and a shallow CLIP of the published width."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from latte import device, storage
from latte.errors import UserError
from latte.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from latte.models.configs import LatteConfig
from latte.models.latte import Latte
from latte.steps import sample
from latte.storage import manifest
from tests import small_clip

MODEL = {"input_size": 4, "hidden_size": 32, "depth": 2, "num_heads": 2, "condition": "text"}
VAE = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}


def publish(root: Path, kind: str, objects: dict[str, Any], **fields: Any) -> str:
    """Random weights of the networks under their names, with a manifest; returns its URI."""
    place = root / fields["name"]
    place.mkdir(parents=True)
    shards = []
    for seed, (name, net) in enumerate(objects.items()):
        rng = np.random.default_rng(seed)
        arrays = {p.name: (rng.standard_normal(tuple(p.shape)) * 0.1).astype(np.float32) for p in net.get_parameters()}
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, path)
        shards.append(manifest.publish_shard(path.read_bytes(), path.as_uri()))
    manifest.finish(manifest.Manifest(kind=kind, uri=place.as_uri(), fingerprint=place.name, shards=shards, **fields))
    return storage.join(place.as_uri(), "manifest.json")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("text")
    device.setup(seed=0)
    clip, tokenizer = small_clip.publish(root)
    narrow, _ = small_clip.publish(root, "narrow", hidden_size=24, num_attention_heads=2)
    vae = publish(
        root,
        "weights",
        {"model.safetensors": AutoencoderKL(AutoencoderKLConfig(**VAE))},
        name="vae",
        config={"kind": "vae", "model": VAE},
    )
    facts = {
        "model": LatteConfig(**MODEL).model_dump(),
        "diffusion": {"noise_schedule": "linear"},
        "classes": [],
        "image_size": 8,
        "scaling_factor": 0.2,
        "vae": manifest.read(vae).shards[0].sha256,
    }
    checkpoint = publish(
        root,
        "checkpoint",
        {"checkpoints/step-00000001/ema.safetensors": Latte(LatteConfig(**MODEL))},
        name="run",
        config=facts,
        metrics={"step": 1},
    )
    return SimpleNamespace(root=root, vae=vae, checkpoint=checkpoint, clip=clip, narrow=narrow, tokenizer=tokenizer)


def config(world: SimpleNamespace, root: Path, lines: str, **changes: Any) -> sample.SampleConfig:
    (root / "captions.txt").write_text(lines)
    values = {
        "root": root.as_uri(),
        "name": "set",
        "checkpoint": world.checkpoint,
        "vae": world.vae,
        "captions": str(root / "captions.txt"),
        "text_encoder": world.clip,
        "tokenizer": world.tokenizer,
        "num_videos": 3,
        "batch_size": 2,
        "num_sampling_steps": 2,
        "cfg_scale": 3.0,
    }
    return sample.SampleConfig(**{**values, **changes})


def digests(done: manifest.Manifest) -> list[str]:
    return [item["sha256"] for item in storage.read_json(storage.join(done.uri, "items.json"))]


def test_captions_are_taken_in_turn_and_change_the_videos(world: SimpleNamespace, tmp_path: Path) -> None:
    first = sample.run(config(world, tmp_path, "a cat\na dog\n"))
    items = storage.read_json(storage.join(first.uri, "items.json"))
    assert [item["caption"] for item in items] == ["a cat", "a dog", "a cat"]
    assert {item["label"] for item in items} == {None}
    other = sample.run(config(world, tmp_path, "a cat\na bird\n"))
    assert other.uri != first.uri
    assert [a == b for a, b in zip(digests(first), digests(other), strict=True)] == [True, False, True]
    unguided = sample.run(config(world, tmp_path, "a cat\na dog\n", cfg_scale=1.0))
    assert not set(digests(unguided)) & set(digests(first))


def test_what_cannot_embed_captions_is_refused_before_work(world: SimpleNamespace, tmp_path: Path) -> None:
    cases = [
        ({"text_encoder": world.narrow}, r"embeddings \(77, 24\), the model takes \(77, 768\)"),
        ({"text_encoder": world.vae}, "weights of vae, expected clip"),
        ({"tokenizer": str(tmp_path / "nowhere.json")}, r"tokenizer .*nowhere\.json: no such file"),
        ({"tokenizer": str(world.root)}, "no such file"),
        (dict.fromkeys(("captions", "text_encoder", "tokenizer")), "conditioned on text; give captions"),
        ({"labels": [0]}, "not conditioned on classes"),
    ]
    for changes, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            sample.plan(config(world, tmp_path, "a cat\n", **changes))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "videos").exists()
