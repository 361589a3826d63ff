"""Latents of the encode step against the `diffusers` autoencoder on the same frames."""

from pathlib import Path

import diffusers
import numpy as np
import torch

from latte import manifest, storage, video
from latte.checkpoints import store
from latte.latents import LatentClips
from latte.steps import encode
from tests import small_vae, video_files


def test_latents_equal_those_of_diffusers_within_fp16_rounding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = len(small_vae.MODEL["block_out_channels"])
    net = diffusers.AutoencoderKL(
        **small_vae.MODEL,
        down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks,
    ).eval()
    root = tmp_path.as_uri()
    uri = storage.join(root, "weights", "vae")
    tensors = {name: value.numpy() for name, value in net.state_dict().items()}
    ref = store.save(tensors, storage.join(uri, "model.safetensors"))
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
    for number in range(3):
        video_files.write(tmp_path / "videos" / f"{number}.mp4", video_files.moving(7 + number, seed=number))
    done = encode.run(
        encode.EncodeConfig(
            root=root,
            name="x",
            vae=storage.join(uri, "manifest.json"),
            image_size=32,
            dataset={"videos": str(tmp_path / "videos")},
        )
    )
    clips = LatentClips(done, tmp_path / "cache")
    for index, entry in enumerate(clips.videos):
        frames = video.load_real_clip(entry.uri, 0, 1, entry.num_frames, 32)
        with torch.no_grad():
            pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
            wanted = net.encode(pictures).latent_dist
        mean, logvar = clips.clip(index, 0, 1, entry.num_frames)
        # Half a unit in the last place of fp16, and what two float32 implementations differ by.
        for got, theirs in ((mean, wanted.mean.numpy()), (logvar, wanted.logvar.numpy())):
            assert (np.abs(got - theirs) <= np.abs(theirs) * 2.0**-11 + 2e-5).all()
