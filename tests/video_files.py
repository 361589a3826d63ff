"""Real video files of many kinds, made by the tests that read them."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from latte.video.decoders import Chunk, End, decode_all
from latte.video.sources import VideoSource
from latte.video.views import View

# Codec, pixel format and the codec's options of each.
KINDS: dict[str, tuple[Any, ...]] = {
    "a.mp4": ("libx264", "yuv420p"),
    "b.avi": ("mpeg4", "yuv420p"),
    "c.mkv": ("libx264", "yuv444p"),
    "d.webm": ("libvpx-vp9", "yuv420p"),
    "e.mov": ("libx264", "yuv420p"),
    "f.mpg": ("mpeg1video", "yuv420p"),
    "g.wmv": ("wmv2", "yuv420p"),
    "h.flv": ("flv", "yuv420p"),
    "i.m4v": ("mpeg4", "yuv420p"),
    "ten-bit.mp4": ("libx264", "yuv420p10le"),
    "lossless.mkv": ("ffv1", "bgr0"),
    "open-groups.mp4": ("libx264", "yuv420p", {"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    "hevc.mkv": ("libx265", "yuv420p", {"x265-params": "keyint=12:bframes=4:open-gop=1:log-level=none"}),
    "b-frames.avi": ("mpeg4", "yuv420p", {"g": "12", "bf": "2"}),
    "b-frames.mpg": ("mpeg2video", "yuv420p", {"g": "12", "bf": "2"}),
}


def moving(num_frames: int = 16, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth pictures that move, uint8 RGB, (F, H, W, 3), which survive lossy coding."""
    draw = np.random.default_rng(seed)
    phase = draw.uniform(0, 6, 3)
    y, x = np.mgrid[:height, :width]
    t = np.arange(num_frames)[:, None, None, None]
    waves = np.sin((x[..., None] + 3 * t) / 11 + phase) + np.cos(y[..., None] / 9 + phase[::-1] + t / 5)
    return (127 + 60 * waves).clip(0, 255).astype(np.uint8)


def panned(num_frames: int = 16, height: int = 48, width: int = 64, seed: int = 0, speed: int = 1) -> np.ndarray:
    """Rough pictures over which the view moves, uint8 RGB, (F, H, W, 3); no two seeds show the same."""
    draw = np.random.default_rng(seed)
    reach = speed * num_frames
    rough = draw.integers(0, 256, ((height + num_frames) // 8 + 1, (width + reach) // 8 + 1, 3), np.uint8)
    size = width + reach, height + num_frames
    whole = np.asarray(Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC))
    return np.stack([whole[t : t + height, speed * t : speed * t + width] for t in range(num_frames)])


def write(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    fps: int = 25,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        container.mux(stream.encode(samples))
        container.mux(stream.encode())
    return path


def write_gif(path: Path, num_frames: int = 4, size: int = 40) -> Path:
    """A red square that wanders over a transparent ground."""
    pictures = []
    for number in range(num_frames):
        pixels = np.zeros((size, size, 4), np.uint8)
        pixels[10:20, 5 * number : 5 * number + 10] = (255, 0, 0, 255)
        pictures.append(Image.fromarray(pixels, "RGBA"))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, loop=0, disposal=2)
    return path


def write_frames(folder: Path, frames: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame{number}.png")
    return folder


def decode(
    *paths: Path, size: int = 32, mirrored: bool = False, view: View | None = None, **options: object
) -> list[tuple[np.ndarray | None, End]]:
    """Frames (None where rejected) and end of each video."""
    done, frames = [], []
    for event in decode_all([VideoSource(path.as_uri(), None, mirrored, view=view) for path in paths], size, **options):
        if isinstance(event, Chunk):
            frames.append(event.frames)
            continue
        done.append((None if event.reject else np.concatenate(frames), event))
        frames = []
    return done
