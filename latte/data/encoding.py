"""Frames to latents: batches of one shape across video borders, written as they come, one safetensors file a shard."""

import contextlib
import errno
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latte import finite, networks, owners
from latte.checkpoints.store import safetensors_header
from latte.data.latents import BLOCK_ROWS, digests_of
from latte.errors import StorageError, UserError
from latte.progress import progress, teller
from latte.storage import manifest
from latte.video.decoders import Chunk, End, Limits, decode_all
from latte.video.sources import VideoSource
from latte.video.views import View

# Frames (N, S, S, 3) uint8 -> mean and log-variance, (N, C, h, w) float32 each.
Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Planned:
    """A video, or its mirrored copy, that a shard is to hold.

    Attributes:
        id: path below the dataset's folder.
        uri: a file or a folder of frames.
        digest: what its latents are called.
        content: digest of what lies under `uri`, if it is to be checked.
        bytes: size of it.
        mirrored: whether it is the mirrored copy.
        by_etag: as in `latte.video.sources.VideoSource`.
        view: the same.
    """

    id: str
    uri: str
    digest: str
    content: str | None
    bytes: int
    mirrored: bool = False
    by_etag: bool = False
    view: View | None = None


@dataclass(frozen=True)
class PlannedShard:
    """A shard to encode: where it goes and what it holds."""

    uri: str
    videos: tuple[Planned, ...]


@dataclass(frozen=True)
class Settings:
    """Settings of the encoding of shards."""

    image_size: int
    batch_size: int
    dtype: str
    row_shape: tuple[int, int, int, int]
    max_frames: int | None
    decode_workers: int
    limits: Limits
    frame_stride: int = 1


def load_encoder(vae: manifest.Manifest, batch_size: int, image_size: int) -> Encode:
    """The autoencoder's encoder, compiled once, for batches of up to `batch_size` frames.

    Raises:
        UserError: the weights do not fit their config, or the frames do not fit the autoencoder.
    """
    import mindspore as ms

    from latte import device

    device.setup()
    net = networks.converted("vae", vae)
    batch = np.zeros((batch_size, 3, image_size, image_size), np.float32)

    def encode(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = len(frames)
        batch[:count] = frames.transpose(0, 3, 1, 2)  # (N, 3, S, S)
        batch[count:] = 0
        mean, logvar = net.encode(ms.Tensor(batch / np.float32(127.5) - np.float32(1)))  # (N, C, h, w) each
        return mean.asnumpy()[:count], logvar.asnumpy()[:count]

    return encode


def encode_all(shards: Sequence[PlannedShard], settings: Settings, encode: Encode) -> list[manifest.Shard]:
    """Encode and publish shards in order; decoding, encoding and uploading overlap.

    Batches reach across videos but not across shards: what a shard holds never depends on which shards were encoded
    before it in the same process.

    Raises:
        StorageError: the store stayed away for too long, or the disk is full.
    """
    published: list[manifest.Shard] = []
    videos = [video for shard in shards for video in shard.videos]
    events = decode_all(
        [VideoSource(video.uri, video.content, video.mirrored, video.by_etag, video.view) for video in videos],
        settings.image_size,
        settings.decode_workers,
        settings.limits,
        max_frames=settings.max_frames,
        frame_stride=settings.frame_stride,
    )
    meter = _Meter(len(videos))
    uploading: Future[manifest.Shard] | None = None
    with _disk_errors(), contextlib.closing(events), meter.bar, ThreadPoolExecutor(1, "upload") as uploader:
        done = 0
        for shard in shards:
            writer = ShardWriter(shard, settings, encode)
            try:
                _fill(writer, events, done, meter, uploading)
            except BaseException:
                writer.close()
                raise
            done += len(shard.videos)
            # One shard is on its way while the next is encoded; more would pile up on the disk.
            if uploading is not None:
                published.append(uploading.result())
            uploading = uploader.submit(writer.publish)
        if uploading is not None:
            published.append(uploading.result())
    return published


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageError(f"{tempfile.gettempdir()}: no space left on the disk; set TMPDIR to another") from None


def _fill(
    writer: "ShardWriter",
    events: Iterator[Chunk | End],
    first: int,
    meter: "_Meter",
    uploading: Future[manifest.Shard] | None,
) -> None:
    for index, video in enumerate(writer.shard.videos, start=first):
        for event in events:
            if event.index != index:
                raise RuntimeError(f"decoders are out of order: {event.index}, expected {index}")
            if isinstance(event, End):
                writer.end_video(video, event)
                break
            writer.add(event.frames)
            meter.add(len(event.frames))
            if uploading is not None and uploading.done():
                uploading.result()  # one that failed ends the work now, not when this shard is full
        meter.end_video(video.bytes)
    writer.flush()


class _Meter:
    """The progress bar, with frames and megabytes of source video a second beside the videos."""

    def __init__(self, num_videos: int) -> None:
        self.bar = progress(total=num_videos, desc="encode", unit="video")
        self._tell = teller(self.bar)
        self._frames = 0
        self._bytes = 0

    def add(self, frames: int) -> None:
        """A long video shows that it goes on."""
        self._frames += frames
        self._tell(self._rates())

    def end_video(self, source_bytes: int) -> None:
        self._bytes += source_bytes
        self.bar.set_postfix_str(self._rates(), refresh=False)
        self.bar.update(1)

    def _rates(self) -> str:
        elapsed_s = max(1e-6, float(self.bar.format_dict["elapsed"]))
        return f"{self._frames / elapsed_s:.0f} frames/s, {self._bytes / elapsed_s / 1e6:.2f} MB/s"


class ShardWriter:
    """One shard being made: encoded rows go to a temporary file as they come, so memory does not grow with videos."""

    def __init__(self, shard: PlannedShard, settings: Settings, encode: Encode) -> None:
        self.shard = shard
        self._settings = settings
        self._encode = encode
        self._rows = tempfile.TemporaryFile(prefix="latte-rows-")  # noqa: SIM115 - closed in close()
        self._row_bytes = int(np.prod(settings.row_shape)) * np.dtype(settings.dtype).itemsize
        self._pending: list[np.ndarray] = []
        self._num_pending = 0
        self._begun = 0  # rows of videos that have ended
        self._items: list[dict[str, Any]] = []
        self._rejects: list[dict[str, Any]] = []
        self._num_rows = 0  # rows added, encoded or not
        self._num_written = 0
        self._not_finite: list[int] = []  # rows, as the autoencoder gave them
        self._too_large: list[int] = []  # rows that the stored type has no numbers for

    def add(self, frames: np.ndarray) -> None:
        """Frames (n, S, S, 3) uint8 of the current video."""
        self._pending.append(frames)
        self._num_pending += len(frames)
        self._num_rows += len(frames)
        while self._num_pending >= self._settings.batch_size:
            waiting = np.concatenate(self._pending)
            self._write(waiting[: self._settings.batch_size])
            rest = waiting[self._settings.batch_size :]
            self._pending, self._num_pending = ([rest] if len(rest) else []), len(rest)

    def end_video(self, video: Planned, end: End) -> None:
        """The current video is whole, or is rejected with all its rows."""
        start, self._begun = self._begun, self._num_rows
        if end.reject is not None:
            reject = {"id": video.id, "digest": video.digest, "reason": end.reject}
            again = {"passing": True} if end.passing else {"beyond": end.beyond} if end.beyond else {}
            self._rejects.append(reject | again)
            return
        fps = None if end.fps is None else end.fps / self._settings.frame_stride
        self._items.append(
            {"id": video.id, "digest": video.digest, "num_frames": end.num_frames, "fps": fps, "row": start}
        )

    def flush(self) -> None:
        """Encode what is left, as one batch that is not full."""
        if self._num_pending:
            self._write(np.concatenate(self._pending))
            self._pending, self._num_pending = [], 0

    def publish(self) -> manifest.Shard:
        """Write the safetensors file, publish it with its record, and forget the rows.

        A video with latents that cannot be stored as numbers is a reject of the record.
        """
        try:
            sound, rejects = self._sound()
            header, items = self._layout(sound)
            with owners.Folder("shard") as folder:
                path = Path(folder, "shard.safetensors")
                with path.open("wb") as file:
                    file.write(header)
                    for item in items:
                        item["digests"] = self._copy(file, item.pop("row"), item["num_frames"])
                facts = {"row_shape": list(self._settings.row_shape), "dtype": self._settings.dtype}
                return manifest.publish_shard(path, self.shard.uri, len(items), videos=items, rejects=rejects, **facts)
        finally:
            self.close()

    def close(self) -> None:
        """Forget the rows."""
        self._rows.close()

    def _sound(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The items whose latents are all numbers, and the rejects, those among them that have others."""
        dtype = self._settings.dtype
        problems = (
            (self._not_finite, "its latents are not finite in {}"),
            (self._too_large, f"its latents are beyond the range of {dtype} in {{}}; dtype=float32 holds them"),
        )
        sound, rejects = [], list(self._rejects)
        for item in self._items:
            reason = ""
            for rows, words in problems:
                bad = rows[bisect_left(rows, item["row"]) : bisect_left(rows, item["row"] + item["num_frames"])]
                if bad and not reason:
                    reason = words.format(finite.frames([row - item["row"] for row in bad]))
            if reason:
                rejects.append({"id": item["id"], "digest": item["digest"], "reason": reason})
            else:
                sound.append(item)
        return sound, rejects

    def _layout(self, sound: list[dict[str, Any]]) -> tuple[bytes, list[dict[str, Any]]]:
        """The file's header, and the items with the offset of each one's first row in the file."""
        dtype, row_shape = np.dtype(self._settings.dtype), self._settings.row_shape
        tensors = {item["digest"]: ((item["num_frames"], *row_shape), dtype) for item in sound}  # (F, 2, C, h, w) each
        header = safetensors_header(tensors, self.shard.uri)
        at = len(header)
        items = []
        for item in sound:
            items.append({**item, "offset": at})
            at += item["num_frames"] * self._row_bytes
        return header, items

    def _copy(self, file: Any, row: int, count: int) -> str:
        """Copy rows into the shard; returns the digests of their blocks."""
        self._rows.seek(row * self._row_bytes)
        digests = []
        for left in range(count, 0, -BLOCK_ROWS):
            data = self._rows.read(min(BLOCK_ROWS, left) * self._row_bytes)
            file.write(data)
            digests.append(digests_of(data, self._row_bytes))
        return "".join(digests)

    def _write(self, frames: np.ndarray) -> None:
        mean, logvar = self._encode(frames)  # (n, C, h, w) each
        rows = np.stack([mean, logvar], axis=1)  # (n, 2, C, h, w)
        if rows.shape[1:] != self._settings.row_shape:
            raise UserError(f"vae: its latents are {rows.shape[1:]}, expected {self._settings.row_shape}")
        stored = finite.to_stored(rows, self._settings.dtype)
        if bad := finite.bad_rows(stored):
            nowhere = set(finite.bad_rows(rows))
            for row in bad:
                (self._not_finite if row in nowhere else self._too_large).append(self._num_written + row)
        self._num_written += len(rows)
        self._rows.write(stored.tobytes())
