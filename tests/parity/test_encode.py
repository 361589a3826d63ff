"""Latents of the encode step against the `diffusers` autoencoder on the same frames."""

from pathlib import Path

import numpy as np
import pytest

from latte import storage
from latte.checkpoints import store
from latte.data.latents import LatentClips
from latte.steps import encode
from latte.storage import manifest
from latte.video import clip_files
from tests import peers, small_vae, video_files

SIZE = 32


def published_net():
    import diffusers

    blocks = len(small_vae.MODEL["block_out_channels"])
    return diffusers.AutoencoderKL(
        **small_vae.MODEL,
        down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks,
    ).eval()


@pytest.mark.peers
def test_latents_equal_those_of_diffusers_within_fp16_rounding(tmp_path: Path) -> None:
    shapes = peers.shapes("encode-shapes", lambda: published_net().state_dict())
    weights = peers.weights(shapes, seed=0)
    root = tmp_path.as_uri()
    uri = storage.join(root, "weights", "vae")
    ref = store.save(weights, storage.join(uri, "model.safetensors"))
    manifest.finish(
        manifest.Manifest(
            kind="weights",
            name="vae",
            uri=uri,
            fingerprint="0",
            shards=[manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256)],
            config={"kind": "vae", "model": small_vae.MODEL},
        )
    )
    # Pictures of the size that is asked for are taken as they are, on every machine.
    pictures = [video_files.moving(7 + number, SIZE, SIZE, seed=number) for number in range(3)]
    for number, frames in enumerate(pictures):
        video_files.write_frames(tmp_path / "videos" / str(number), frames)

    def ask() -> dict[str, np.ndarray]:
        import torch

        net = published_net()
        net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        answers = {}
        for number, frames in enumerate(pictures):
            with torch.no_grad():
                given = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
                wanted = net.encode(given).latent_dist
            answers |= {f"mean-{number}": wanted.mean.numpy(), f"logvar-{number}": wanted.logvar.numpy()}
        return answers

    theirs = peers.answer("encode", ask)
    done = encode.run(
        encode.EncodeConfig(
            root=root,
            name="x",
            vae=storage.join(uri, "manifest.json"),
            image_size=SIZE,
            dataset={"videos": str(tmp_path / "videos"), "layout": "frames"},
        )
    )
    clips = LatentClips(done, tmp_path / "cache")
    for index, entry in enumerate(clips.videos):
        number = int(entry.uri.rstrip("/").rsplit("/", 1)[1])
        frames = clip_files.load_real_clip(entry.uri, 0, 1, entry.num_frames, SIZE)
        np.testing.assert_array_equal(frames, pictures[number])
        mean, logvar = clips.clip(index, 0, 1, entry.num_frames)
        # Half a unit in the last place of fp16, and what two float32 implementations differ by.
        for got, expected in ((mean, theirs[f"mean-{number}"]), (logvar, theirs[f"logvar-{number}"])):
            apart = np.abs(expected.same_places(got) - expected.values)
            assert (apart <= np.abs(expected.values) * 2.0**-11 + 2e-5).all()
