"""A long video needs no more memory than a short one, neither in its decoder nor where it is encoded."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from latte import storage
from latte.data.encoding import Planned, PlannedShard, Settings, ShardWriter
from latte.storage import manifest
from latte.video.decoders import Chunk, Limits, decode_all
from latte.video.sources import VideoSource
from tests import memory, video_files
from tests.soak import scaled

SIZE, ROW_SHAPE = 32, (2, 4, 16, 16)
SETTINGS = Settings(SIZE, 32, "float16", ROW_SHAPE, None, 1, Limits())
# At 25 frames a second. Ten seconds are written, the rest is copied from them.
WRITTEN_FRAMES, SHORT_FRAMES, TWO_HOURS_FRAMES = 250, 5000, 2 * 60 * 60 * 25
# A frame has 3 kB, its latents 4 kB: even the tenth of two hours has 40 MB more of them than the short video.
MORE_BYTES = 16 << 20
# What the decoder's table of frames may take for each of them.
INDEX_BYTES = 200


def encode(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents of the right shape without a network, which would take an hour."""
    mean = frames[:, ::2, ::2].transpose(0, 3, 1, 2)[:, [0, 1, 2, 2]].astype(np.float32)  # (n, 4, 16, 16)
    return mean, -mean


def shard_of(path: Path, root: Path) -> manifest.Shard:
    """Make a shard of one video."""
    video = Planned(path.name, path.as_uri(), path.stem, None, path.stat().st_size)
    writer = ShardWriter(
        PlannedShard(storage.join(root.as_uri(), f"{path.stem}.safetensors"), (video,)), SETTINGS, encode
    )
    for event in decode_all([VideoSource(video.uri)], SIZE, workers=1):
        if isinstance(event, Chunk):
            writer.add(event.frames)
        else:
            assert event.reject is None
            writer.end_video(video, event)
    writer.flush()
    return writer.publish()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_hours_take_the_memory_of_three_minutes(tmp_path: Path) -> None:
    written = video_files.write(tmp_path / "written.mp4", video_files.moving(WRITTEN_FRAMES))
    frames = {"short": SHORT_FRAMES, "long": scaled(TWO_HOURS_FRAMES)}
    for name, count in frames.items():
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-stream_loop", str(count // WRITTEN_FRAMES - 1)]
        subprocess.run([*command, "-i", written, "-c", "copy", tmp_path / f"{name}.mp4"], check=True)
    with memory.watched() as of_short:
        shard_of(tmp_path / "short.mp4", tmp_path)
    with memory.watched() as of_long:
        shard = shard_of(tmp_path / "long.mp4", tmp_path)
    assert shard.bytes > frames["long"] * np.prod(ROW_SHAPE) * 2
    assert of_long.own_bytes < of_short.own_bytes + MORE_BYTES
    assert of_long.decoder_bytes < of_short.decoder_bytes + MORE_BYTES + INDEX_BYTES * frames["long"]
