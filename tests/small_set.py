"""Tiny networks, real videos and their latents under one root, and settings of sets that these networks make."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from latte import storage
from latte.steps import convert, encode, sample
from latte.storage import manifest
from latte.video import clip_files

IMAGE_SIZE, CLASSES = 32, ["bright", "dark"]
MODEL = {"input_size": 16, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 2, "condition": "class"}
VAE = {
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "scaling_factor": 0.2,
}


def publish(root: str, kind: str, place: str, weights: dict[str, dict[str, np.ndarray]], **fields: Any) -> str:
    """Publish weights by name under a place, with a manifest; returns the manifest's URI."""
    uri = storage.join(root, place)
    shards = []
    for name, arrays in weights.items():
        path = storage.local_path(storage.join(uri, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, path)
        shards.append(manifest.publish_shard(path.read_bytes(), storage.join(uri, name)))
    manifest.finish(manifest.Manifest(kind=kind, name=kind, uri=uri, fingerprint=place, shards=shards, **fields))
    return storage.join(uri, "manifest.json")


def random_weights(net: Any, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        param.name: (rng.standard_normal(tuple(param.shape)) * 0.1).astype(np.float32) for param in net.get_parameters()
    }


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Real videos and their latents, a checkpoint with two steps, an autoencoder, a random detector."""
    from latte import device
    from latte.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
    from latte.models.latte import Latte, LatteConfig

    folder = tmp_path_factory.mktemp("world")
    root = (folder / "root").as_uri()
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / "videos" / name).mkdir(parents=True)
        for i in range(3):
            frames = rng.integers(128 * (1 - label), 256 - 128 * label, (20 + i, 40, 48, 3), dtype=np.uint8)
            clip_files.write_lossless(folder / "videos" / name / f"{i}.mkv", frames, 8)
    device.setup(seed=0)
    net = Latte(LatteConfig(**MODEL))
    vae = publish(
        root,
        "weights",
        "weights/vae/first",
        {"model.safetensors": random_weights(AutoencoderKL(AutoencoderKLConfig(**VAE)), 1)},
        config={"kind": "vae", "model": VAE, "random": True, "seed": 1},
    )
    latents = encode.run(
        encode.EncodeConfig(
            root=root, name="tiny", dataset={"videos": str(folder / "videos")}, vae=vae, image_size=IMAGE_SIZE
        )
    )
    checkpoint = publish(
        root,
        "checkpoint",
        "runs/tiny/first",
        {
            f"checkpoints/step-{step:08d}/{role}.safetensors": random_weights(net, 10 * step + number)
            for step in (0, 7)
            for number, role in enumerate(("model", "ema"))
        },
        config={
            "model": LatteConfig(**MODEL).model_dump(),
            "diffusion": {"noise_schedule": "linear"},
            "classes": CLASSES,
            "latent_size": 16,
            "image_size": IMAGE_SIZE,
            "scaling_factor": latents.config["scaling_factor"],
            "vae": latents.inputs["vae"],
        },
        metrics={"step": 7},
    )
    detector = convert.run(convert.ConvertConfig(kind="i3d", source="random", root=root, name="i3d", seed=21))
    return SimpleNamespace(
        folder=folder,
        root=root,
        vae=vae,
        latents=storage.join(latents.uri, "manifest.json"),
        checkpoint=checkpoint,
        detector=storage.join(detector.uri, "manifest.json"),
    )


def sampling(world: SimpleNamespace, root: str, **changes: Any) -> sample.SampleConfig:
    values = {
        "root": root,
        "name": "set",
        "checkpoint": world.checkpoint,
        "vae": world.vae,
        "num_videos": 7,
        "num_sampling_steps": 3,
        "method": "ddpm",
        "cfg_scale": 2.0,
        "batch_size": 3,
        "decode_frames": 20,
        "seed": 5,
    }
    return sample.SampleConfig(**{**values, **changes})


def files(done: manifest.Manifest, but: tuple[str, ...] = ("items.json",)) -> dict[str, bytes]:
    """Every object of a set by its name; items.json names its place and is left out."""
    shards = [shard for shard in done.shards if not shard.uri.endswith(but)]
    return {shard.uri.rsplit("/", 1)[1]: storage.read_bytes(shard.uri) for shard in shards}
