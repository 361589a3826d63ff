"""Clips of encoded videos: any clip of any video is one ranged read, or a read of a local copy of its shard."""

import contextlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latte import finite, manifest, storage
from latte.errors import NotThereError, StorageError, UserError

INDEX = "index.json"
_CACHE_ENDING = ".safetensors"
# The folder is the user's: whatever else lies in it stays.
_COPY = re.compile(rf"[0-9a-f]{{64}}{re.escape(_CACHE_ENDING)}")
# What `latte.storage` calls a download under way; one that has not grown for so long was killed.
_UNDER_WAY = re.compile(r"\.tmp-[0-9a-f]{32}(\..*)?")
_LEFT_BEHIND_S = 3600.0


@dataclass(frozen=True, slots=True)
class EncodedVideo:
    """One video of an encoded dataset.

    Attributes:
        id: its path in the dataset.
        label: index into the dataset's classes, or None.
        num_frames: frames that were encoded, one in every `frame_stride` of the dataset.
        uri: the video itself, a file or a folder of frames.
        shard: which shard of the index holds it.
        offset: where its first frame begins in that shard, in bytes.
        fps: of these frames a second, None where unknown.
        caption: text that describes it, or None.
        text: shard of the index and offset in bytes of its caption's embedding, or None.
        mirrored: the same of the first frame of its mirrored copy, which has as many frames, or None.
    """

    id: str
    label: int | None
    num_frames: int
    uri: str
    shard: int
    offset: int
    fps: float | None = None
    caption: str | None = None
    text: Sequence[int] | None = None
    mirrored: Sequence[int] | None = None


class LatentClips:
    """Reads clips of an encoded dataset; may be used by several threads.

    A frame's mean and log-variance lie side by side, frame after frame, so that a clip is one range of bytes. Shards
    in S3 are copied to `cache_dir` when they are first touched, those that come first in the index, as long as
    `cache_bytes` suffice (files of other datasets make room, the oldest first); the others are read by ranges. A copy
    is checked against its SHA-256.

    Attributes:
        videos: what is known of each.
        scaling_factor: of the autoencoder's latents.
        image_size: side of the encoded frames in pixels.
        frame_stride: distance between encoded frames in the video; every other stride and start counts encoded frames.

    Args:
        latents: manifest of the encoded dataset.
        cache_dir: folder for copies of shards; may be kept and shared between runs.
        cache_bytes: how much the copies may take.

    Raises:
        UserError: the manifest is of something else, or its index is missing.
    """

    def __init__(self, latents: manifest.Manifest, cache_dir: str | Path, cache_bytes: int = 32 << 30) -> None:
        if latents.kind != "latents":
            raise UserError(f"{latents.uri}: a manifest of {latents.kind}, expected latents")
        ref = latents.shard(f"/{INDEX}")
        data = storage.read_bytes(ref.uri)
        if storage.sha256_bytes(data) != ref.sha256:
            raise StorageError(f"{ref.uri}: damaged: its content does not have the recorded SHA-256 {ref.sha256[:12]}…")
        index = storage.parse_json(data, ref.uri)
        self.videos = [EncodedVideo(**video) for video in index["videos"]]
        self.scaling_factor = float(latents.config["scaling_factor"])
        self.image_size = int(latents.config["image_size"])
        self.frame_stride = int(latents.config.get("frame_stride", 1))
        self._row_shape: tuple[int, ...] = tuple(index["row_shape"])  # (2, C, h, w): mean and log-variance
        self._dtype = np.dtype(index["dtype"])
        by_uri = {shard.uri: shard for shard in latents.shards}
        self._shards = [by_uri[storage.join(latents.uri, name)] for name in index["shards"]]
        self._cache = _Cache(Path(cache_dir), cache_bytes, self._shards)
        self._text: dict[str, Any] | None = index.get("text")

    def real_clip(self, index: int, start: int, stride: int, num_frames: int) -> np.ndarray:
        """The frames that `clip` has the latents of, from the video itself, uint8 RGB, (F, S, S, 3); never mirrored.

        Args:
            index: which of `videos`.
            start: first frame.
            stride: distance between frames.
            num_frames: F.

        Raises:
            DecodeError: the video cannot be decoded any more, or has become shorter.
            UserError: the video is gone.
        """
        from latte import video

        # In the video there are frames between the encoded ones.
        start, stride = start * self.frame_stride, stride * self.frame_stride
        return video.load_real_clip(self.videos[index].uri, start, stride, num_frames, self.image_size)

    @property
    def has_text(self) -> bool:
        """Whether the captions' embeddings are there."""
        return self._text is not None

    def text(self, index: int) -> np.ndarray:
        """The CLIP embedding of a video's caption, (77, 768) float32.

        Args:
            index: which of `videos`.

        Raises:
            UserError: the dataset was encoded without a text encoder.
            StorageError: the store stayed away, or a shard is damaged.
        """
        return self._embedding(self.videos[index].text)

    def null_text(self) -> np.ndarray:
        """The embedding of the empty caption, (77, 768) float32: what stands in for a dropped caption, and in guidance.

        Raises:
            UserError: the dataset was encoded without a text encoder.
            StorageError: the store stayed away, or a shard is damaged.
        """
        return self._embedding(None if self._text is None else self._text["null"])

    def _embedding(self, place: Sequence[int] | None) -> np.ndarray:
        if self._text is None or place is None:
            raise UserError("latents: no text embeddings; encode again with text_encoder and tokenizer")
        shape, (shard, offset) = self._text["shape"], place
        data = self._cache.read(self._shards[shard], offset, math.prod(shape) * self._dtype.itemsize)
        embedding = np.frombuffer(data, self._dtype).reshape(shape).astype(np.float32)  # (77, 768)
        if what := finite.blemish(embedding):
            raise UserError(f"latents: the embedding of a caption holds {what}; encode under another name")
        return embedding

    def clip(
        self, index: int, start: int, stride: int, num_frames: int, mirrored: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log-variance of the frames start, start + stride, …, float32, (F, C, h, w) each.

        Args:
            index: which of `videos`.
            start: first frame.
            stride: distance between frames.
            num_frames: F.
            mirrored: of the mirrored copy; latents cannot be mirrored afterwards.

        Raises:
            UserError: the video has not all of these frames or no mirrored copy, or a latent is NaN or infinite, which
                early versions of the encode step let pass.
            StorageError: the store stayed away, or a shard is damaged.
        """
        video = self.videos[index]
        span = (num_frames - 1) * stride + 1
        if start < 0 or stride < 1 or num_frames < 1 or start + span > video.num_frames:
            raise UserError(
                f"video {video.id}: has {video.num_frames} frames, not {num_frames} from {start} at stride {stride}"
            )
        place: Sequence[int] | None = video.mirrored if mirrored else (video.shard, video.offset)
        if place is None:
            raise UserError(f"video {video.id}: no mirrored copy; encode again with mirrored=true")
        row_bytes = math.prod(self._row_shape) * self._dtype.itemsize
        data = self._cache.read(self._shards[place[0]], place[1] + start * row_bytes, span * row_bytes)
        rows = np.frombuffer(data, self._dtype).reshape(span, *self._row_shape)[::stride]  # (F, 2, C, h, w)
        rows = rows.astype(np.float32)
        if bad := finite.bad_rows(rows):
            where = finite.frames([start + row * stride for row in bad])
            raise UserError(f"video {video.id}: its latents are not finite in {where}; encode under another name")
        return rows[:, 0], rows[:, 1]


def tensor_header(shapes: Mapping[str, Sequence[int]], dtype: str) -> bytes:
    """Header of a safetensors file whose tensors, all of one type, follow in this order.

    Args:
        shapes: shape of each tensor by name.
        dtype: float16 or float32.
    """
    kind, item_bytes = {"float16": ("F16", 2), "float32": ("F32", 4)}[dtype]
    tensors: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        end = at + math.prod(shape) * item_bytes
        tensors[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _Cache:
    """Local copies of shards, bounded in size and checked once.

    Which shards are copied follows from the dataset and the bound, not from who reads what first: processes that share
    the folder would drive each other's copies out.
    """

    def __init__(self, folder: Path, limit_bytes: int, shards: Iterable[manifest.Shard]) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._of_shard: dict[str, threading.Lock] = {}
        # Where to read each shard that was touched: a checked local file, or None for ranges of the object.
        self._places: dict[str, Path | None] = {}
        self._own: set[str] = set()
        self._left_bytes = limit_bytes
        for shard in shards:
            if storage.is_s3(shard.uri) and shard.bytes <= self._left_bytes:
                self._own.add(_copy_name(shard))
                self._left_bytes -= shard.bytes

    def read(self, shard: manifest.Shard, start: int, length: int) -> bytes:
        path = self._place(shard)
        if path is not None:
            try:
                return storage.read_bytes(str(path), start, length)
            except NotThereError:
                # Another dataset that shares the folder made room: a new copy would drive out its copies in turn.
                self._places[shard.sha256] = None
        return storage.read_bytes(shard.uri, start, length)

    def _place(self, shard: manifest.Shard) -> Path | None:
        with self._lock:
            lock = self._of_shard.setdefault(shard.sha256, threading.Lock())
        with lock:
            if shard.sha256 not in self._places:
                self._places[shard.sha256] = self._admit(shard)
            return self._places[shard.sha256]

    def _admit(self, shard: manifest.Shard) -> Path | None:
        if not storage.is_s3(shard.uri):
            with storage.as_local_file(shard.uri, shard.sha256) as path:
                return path
        if _copy_name(shard) not in self._own:
            return None
        _make_room(self._folder, self._own, self._left_bytes)
        return self._fetch(shard, self._folder / _copy_name(shard))

    @staticmethod
    def _fetch(shard: manifest.Shard, path: Path) -> Path:
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and storage.sha256_file(path) == shard.sha256:
                with contextlib.suppress(OSError):  # another user's copy, or a folder that is mounted read-only
                    os.utime(path)
                return path
        return storage.download(shard.uri, path, shard.sha256)


def _copy_name(shard: manifest.Shard) -> str:
    return f"{shard.sha256}{_CACHE_ENDING}"


def _make_room(folder: Path, own: Iterable[str], limit_bytes: int) -> None:
    """Delete the least recently used copies of other datasets until they take at most `limit_bytes`.

    What downloads left behind that were killed goes as well.
    """
    for path in folder.glob(".tmp-*"):
        with contextlib.suppress(FileNotFoundError):
            if _UNDER_WAY.fullmatch(path.name) and time.time() - path.stat().st_mtime > _LEFT_BEHIND_S:
                storage.delete(str(path))
    keep = set(own)
    found = []
    for path in folder.glob(f"*{_CACHE_ENDING}"):
        with contextlib.suppress(FileNotFoundError):  # others make room as well
            if _COPY.fullmatch(path.name) and path.name not in keep:
                info = path.stat()
                found.append((info.st_mtime_ns, info.st_size, path))
    total_bytes = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total_bytes <= limit_bytes:
            return
        storage.delete(str(path))
        total_bytes -= size
