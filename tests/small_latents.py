"""Latents of a few real clips, as the convert and encode steps leave them: 8x8 pixels, 4 channels, 20 frames."""

from pathlib import Path

import numpy as np
import pytest

from latte import storage
from latte.config import build
from latte.steps import convert, encode
from latte.storage import manifest
from pipelines.demo import data
from tests import video_files

AUTOENCODER = Path(__file__).parents[1] / "configs/demo/autoencoder/diffusion_pytorch_model.safetensors"
FRAMES = 20

_published: list[str] = []


def once(factory: pytest.TempPathFactory) -> str:
    """The same latents for every module of a session; nobody changes them."""
    if not _published:
        _published.append(publish(factory.mktemp("latents")))
    return _published[0]


def publish(folder: Path, clips_per_class: int = 5, num_frames: int = FRAMES, **text: str) -> str:
    """Cut, convert and encode; returns the URI of the latents' manifest. Classes: bikes, carphone.

    With `text`, the encode step's keys `text_encoder` and `tokenizer`, clips have captions: "bikes 0" and so on.
    """
    rows = ["path,caption"]
    for source in data.SOURCES:
        if source.label not in ("bikes", "carphone"):
            continue
        frames, _ = data.read_source(source)
        for number in range(clips_per_class):
            shown = frames[number * 25 : number * 25 + num_frames]
            cropped = np.stack([data.crop(frame, 0.25 + 0.1 * number, 0.9) for frame in shown])  # (F, 64, 64, 3)
            video_files.write(folder / "videos" / source.label / f"{number}.mp4", cropped)
            rows.append(f"{source.label}/{number}.mp4,{source.label} {number}")
    (folder / "captions.csv").write_text("\n".join(rows))
    root = storage.from_path(folder / "root")
    weights = convert.run(
        build(convert.ConvertConfig, {"kind": "vae", "source": str(AUTOENCODER), "root": root, "name": "vae"}, "test")
    )
    settings = {
        "root": root,
        "name": "few",
        "vae": storage.join(weights.uri, "manifest.json"),
        "image_size": 64,
        "num_tasks": 1,
        "dataset": {"videos": str(folder / "videos"), **({"csv": str(folder / "captions.csv")} if text else {})},
        **text,
    }
    return storage.join(encode.run(build(encode.EncodeConfig, settings, "test")).uri, "manifest.json")


def copy(latents: str, root: str) -> str:
    """The same latents under another root; returns the URI of their manifest there."""
    source = manifest.read(latents)
    place = storage.join(root, "datasets/few")
    shards = []
    for shard in source.shards:
        uri = storage.join(place, shard.uri.removeprefix(source.uri + "/"))
        storage.write_bytes(uri, storage.read_bytes(shard.uri))
        shards.append(shard.model_copy(update={"uri": uri}))
    manifest.finish(source.model_copy(update={"uri": place, "shards": shards}))
    return storage.join(place, "manifest.json")
