"""Whether generated clips show what they were asked for: the class of the real clip whose latents are nearest."""

from typing import Any

import numpy as np

from latte import networks, owners, storage
from latte.data.latents import LatentClips
from latte.facts import LatentsFacts
from latte.storage import manifest
from latte.video import clip_files


def nearest_classes(
    latents: manifest.Manifest, generated: manifest.Manifest, vae: manifest.Manifest
) -> list[tuple[str, str]]:
    """For each clip of a class-conditional set the class that was asked for, and that of the nearest real clip.

    The distance is that between all latents of both clips, (F, C, h, w) each.

    Args:
        latents: the encoded real clips, with classes, all as long as the generated ones.
        generated: the set.
        vae: the autoencoder of both.
    """
    from latte.models.autoencoder_kl import encode_in_chunks

    real, labels = _real(latents)
    net = networks.converted("vae", vae)
    classes = LatentsFacts.of(latents).classes
    found = []
    for item in manifest.items(generated):
        frames = read_clip(item)
        images = np.ascontiguousarray(frames.transpose(0, 3, 1, 2), np.float32) / 127.5 - 1  # (F, 3, H, W)
        mean, _ = encode_in_chunks(net, images, len(images))  # (F, C, h, w)
        nearest = int(np.linalg.norm(real - mean.ravel(), axis=1).argmin())
        found.append((classes[item["label"]], classes[labels[nearest]]))
    return found


def read_clip(item: dict[str, Any]) -> np.ndarray:
    """The frames (F, H, W, 3) uint8 of a generated clip, an entry of items.json."""
    with storage.as_local_file(item["video"], item["sha256"]) as path:
        return clip_files.read_lossless(path)


def share_right(found: list[tuple[str, str]]) -> float:
    """Share of the clips whose nearest real clip is of the class that was asked for."""
    return float(np.mean([asked == nearest for asked, nearest in found]))


def _real(latents: manifest.Manifest) -> tuple[np.ndarray, list[int]]:
    """Latents (N, F C h w) float32 of whole videos, and their labels."""
    with owners.Folder("latents") as cache:
        clips = LatentClips(latents, cache)
        rows = [clips.clip(index, 0, 1, entry.num_frames)[0].ravel() for index, entry in enumerate(clips.videos)]
        return np.stack(rows), [int(entry.label or 0) for entry in clips.videos]
