"""Clips of encoded videos: any clip of any video is one ranged read, or a read of a local copy of its shard."""

import contextlib
import hashlib
import math
import os
import re
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latte import finite, owners, storage
from latte.errors import DamagedError, NotThereError, UserError
from latte.facts import LatentsFacts
from latte.storage import manifest

INDEX = "index.json"
# Rows that are hashed together. What is read for a clip is whole blocks, so they are small; the index of a million
# videos holds the digests of all blocks, so they are not smaller.
BLOCK_ROWS = 16
_DIGEST_CHARACTERS = 16
_CACHE_ENDING = ".safetensors"
# The folder is the user's: whatever else lies in it stays.
_COPY = re.compile(rf"[0-9a-f]{{64}}{re.escape(_CACHE_ENDING)}")
# What `latte.storage` calls a download under way; another machine's that has not grown for so long was killed.
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
        text: shard of the index and offset in bytes of its caption's embedding, and its digest; or None.
        mirrored: the same of the first frame of its mirrored copy, which has as many frames, or None.
        digests: of its latents' blocks (`digests_of`); versions before wrote none, nor any behind the offsets above.
        content: digest of the video's content, as `latte.data.catalog` has it; versions before wrote none.
        view: the part of the video that was encoded, a row of `latte.video.views.View`; None: all of it.
    """

    id: str
    label: int | None
    num_frames: int
    uri: str
    shard: int
    offset: int
    fps: float | None = None
    caption: str | None = None
    text: Sequence[Any] | None = None
    mirrored: Sequence[Any] | None = None
    digests: str | None = None
    content: str | None = None
    view: Sequence[Any] | None = None


class LatentClips:
    """Reads clips of an encoded dataset; may be used by several threads.

    A frame's mean and log-variance lie side by side, frame after frame, so that a clip is one range of bytes. Shards
    in S3 are copied to `cache_dir` when they are first touched, those that come first in the index, as long as
    `cache_bytes` suffice (files of other datasets make room, the oldest first); the others are read by ranges. A copy
    is checked against its SHA-256; whatever is read, from a copy or by a range, against the digests of its blocks that
    the index holds. Indexes of versions before hold none.

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
        index, self.videos = read_index(latents)
        facts = LatentsFacts.of(latents)
        self.scaling_factor = facts.scaling_factor
        self.image_size = facts.image_size
        self.frame_stride = facts.frame_stride or 1
        self._row_shape: tuple[int, ...] = tuple(index["row_shape"])  # (2, C, h, w): mean and log-variance
        self._dtype = np.dtype(index["dtype"])
        by_uri = {shard.uri: shard for shard in latents.shards}
        self._shards = [by_uri[storage.join(latents.uri, name)] for name in index["shards"]]
        self._cache = _Cache(Path(cache_dir), cache_bytes, self._shards)
        self._text: dict[str, Any] | None = index.get("text")
        self._compared: set[int] = set()

    def real_clip(self, index: int, start: int, stride: int, num_frames: int) -> np.ndarray:
        """The frames that `clip` has the latents of, from the video itself, uint8 RGB, (F, S, S, 3); never mirrored.

        Args:
            index: which of `videos`.
            start: first frame.
            stride: distance between frames.
            num_frames: F.

        Raises:
            DecodeError: the video cannot be decoded any more, or has become shorter.
            UserError: the video is gone, or another than the one that was encoded.
        """
        from latte.video import clip_files
        from latte.video.views import View

        self.check_video(index)
        video = self.videos[index]
        view = View.of(video.view) or View()
        # In the video there are frames between the encoded ones.
        start, stride = view.start + start * self.frame_stride, stride * self.frame_stride
        return clip_files.load_real_clip(video.uri, start, stride, num_frames, self.image_size, view.crop)

    def check_video(self, index: int) -> None:
        """Compare a video itself with the content that was encoded, once; without that in the index, look for it only.

        Raises:
            UserError: the video is gone, or another than the one that was encoded.
            StorageError: the store does not answer.
        """
        from latte.data import contents

        known = self.videos[index]
        if index in self._compared:
            return
        if known.content is not None:
            contents.check(known.uri, known.content)
        elif not contents.is_there(known.uri):
            raise UserError(f"{known.uri}: no such video")
        self._compared.add(index)

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

    def _embedding(self, place: Sequence[Any] | None) -> np.ndarray:
        if self._text is None or place is None:
            raise UserError("latents: no text embeddings; encode again with text_encoder and tokenizer")
        shape = self._text["shape"]
        data = self._rows(place, 0, 1, 1, math.prod(shape) * self._dtype.itemsize, "the embedding of a caption")
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
        place: Sequence[Any] | None = video.mirrored if mirrored else (video.shard, video.offset, video.digests)
        if place is None:
            raise UserError(f"video {video.id}: no mirrored copy; encode again with mirrored=true")
        row_bytes = math.prod(self._row_shape) * self._dtype.itemsize
        data = self._rows(place, start, span, video.num_frames, row_bytes, f"the latents of {video.id}")
        rows = np.frombuffer(data, self._dtype).reshape(span, *self._row_shape)[::stride]  # (F, 2, C, h, w)
        rows = rows.astype(np.float32)
        if bad := finite.bad_rows(rows):
            where = finite.frames([start + row * stride for row in bad])
            raise UserError(f"video {video.id}: its latents are not finite in {where}; encode under another name")
        return rows[:, 0], rows[:, 1]

    def _rows(self, place: Sequence[Any], start: int, count: int, total: int, row_bytes: int, what: str) -> bytes:
        """Rows `start` to `start + count` of the `total` that lie at a place, as whole blocks and compared.

        What was damaged on its way, or in a local copy, is whole when it is read from the store again.

        Raises:
            DamagedError: a block does not have the digest that the index has of it.
        """
        shard, offset, digests = self._shards[place[0]], int(place[1]), place[2] if len(place) > 2 else None
        if digests is None:
            return self._cache.read(shard, offset + start * row_bytes, count * row_bytes)
        first = start - start % BLOCK_ROWS
        stop = min(total, -(-(start + count) // BLOCK_ROWS) * BLOCK_ROWS)
        at, length = offset + first * row_bytes, (stop - first) * row_bytes
        block = first // BLOCK_ROWS
        wanted = digests[block * _DIGEST_CHARACTERS :]
        data = self._cache.read(shard, at, length)
        if not wanted.startswith(digests_of(data, row_bytes)):
            self._cache.distrust(shard)
            data = self._cache.read(shard, at, length)
        if not wanted.startswith(digests_of(data, row_bytes)):
            raise DamagedError(f"{shard.uri}: damaged: {INDEX} has another digest of {what}")
        return data[(start - first) * row_bytes :][: count * row_bytes]


def read_index(latents: manifest.Manifest) -> tuple[dict[str, Any], list[EncodedVideo]]:
    """The index that a manifest names, and the videos in it.

    Raises:
        UserError: there is none.
        DamagedError: it does not have its recorded SHA-256.
    """
    ref = latents.shard(f"/{INDEX}")
    index = storage.parse_json(storage.read_recorded(ref.uri, ref.sha256), ref.uri)
    return index, [EncodedVideo(**video) for video in index["videos"]]


def digests_of(data: bytes | memoryview, row_bytes: int) -> str:
    """The digest of every block of BLOCK_ROWS rows, the last one shorter: 64 bits of its SHA-256 in hexadecimal."""
    step = BLOCK_ROWS * row_bytes
    blocks = (hashlib.sha256(data[at : at + step]) for at in range(0, len(data), step))
    return "".join(block.hexdigest()[:_DIGEST_CHARACTERS] for block in blocks)


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
            if storage.path(shard.uri) is None and shard.bytes <= self._left_bytes:
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

    def distrust(self, shard: manifest.Shard) -> None:
        """Read a shard from the store from now on."""
        path = self._places.get(shard.sha256)
        if path is not None and storage.path(shard.uri) is None:
            with contextlib.suppress(OSError, UserError):  # another user's copy
                path.unlink()
        self._places[shard.sha256] = None

    def _place(self, shard: manifest.Shard) -> Path | None:
        with self._lock:
            lock = self._of_shard.setdefault(shard.sha256, threading.Lock())
        with lock:
            if shard.sha256 not in self._places:
                self._places[shard.sha256] = self._admit(shard)
            return self._places[shard.sha256]

    def _admit(self, shard: manifest.Shard) -> Path | None:
        if storage.path(shard.uri) is not None:
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
            old = time.time() - path.stat().st_mtime > _LEFT_BEHIND_S
            if _UNDER_WAY.fullmatch(path.name) and old and not owners.is_alive(path.name):
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
