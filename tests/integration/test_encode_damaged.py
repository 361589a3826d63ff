"""Damaged videos among good ones: each is listed with its reason or decoded, and none costs the others anything."""

import random
from pathlib import Path

import pytest

from latte.config import build
from latte.data.latents import LatentClips
from latte.steps import encode
from tests import memory, small_vae, video_files
from tests.soak import scaled


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A damaged copy: bytes changed, a piece left out, doubled or cut off at the end."""
    damaged = bytearray(data)
    kind = draw.choice(["flip", "flip", "drop", "double", "cut", "zero"])
    start = draw.randrange(len(data))
    stop = min(len(data), start + draw.randrange(1, 400))
    if kind == "flip":
        for _ in range(draw.randrange(1, 40)):
            damaged[draw.randrange(len(data))] = draw.randrange(256)
    elif kind == "drop":
        del damaged[start:stop]
    elif kind == "double":
        damaged[start:start] = damaged[start:stop]
    elif kind == "cut":
        del damaged[start:]
    else:
        damaged[start:stop] = bytes(stop - start)
    return bytes(damaged)


@pytest.mark.soak
def test_damaged_videos_are_listed_or_decoded_and_good_ones_encoded(tmp_path: Path) -> None:
    draw = random.Random(1)
    folder = tmp_path / "videos"
    kinds = [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("mkv", "ffv1"), ("mov", "libx264")]
    for number in range(20):
        ending, codec = kinds[number % len(kinds)]
        pixels = "bgr0" if codec == "ffv1" else "yuv420p"
        video_files.write(folder / f"good{number}.{ending}", video_files.moving(10, seed=number), codec, pixels)
    good = sorted(folder.iterdir())
    values = {
        "root": (tmp_path / "root").as_uri(),
        "name": "damaged",
        "vae": small_vae.publish((tmp_path / "vae").as_uri()),
        "dataset": {"videos": str(folder)},
        "image_size": 32,
        "num_tasks": 1,
        "max_reject_share": 1.0,
        "decode_limit_s": 20.0,
    }
    settings = build(encode.EncodeConfig, values, "test")
    with memory.watched() as of_good:
        assert encode.run(settings).counts["videos"] == len(good)
    for number in range(scaled(500)):
        source = draw.choice(good)
        (folder / f"bad{number}{source.suffix}").write_bytes(mutated(source.read_bytes(), draw))
    with memory.watched() as of_all:
        done = encode.run(settings)
    # A damaged header may ask for larger frames; those of all videos together must not pile up.
    assert of_all.own_bytes < of_good.own_bytes + (64 << 20)
    assert of_all.decoder_bytes < of_good.decoder_bytes + (256 << 20)
    encoded_ids = {entry.id for entry in LatentClips(done, tmp_path / "cache").videos}
    rejected = {reject.item: reject.reason for reject in done.rejects}
    assert {path.name for path in good} <= encoded_ids
    assert encoded_ids | set(rejected) == {path.name for path in folder.iterdir()}
    assert not encoded_ids & set(rejected)
    assert rejected
    assert all(reason and "\n" not in reason for reason in rejected.values())
