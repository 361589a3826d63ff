"""Measured videos, kept by content: what was measured once is not measured again, whatever the rules' limits are.

Under a root, for every dataset of that name:

    curation/<name>/<fingerprint of settings and libraries>/<fingerprint of contents>.json    numbers of 32 videos
    curation/<name>/taken.json                                                                contents, in their order
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from latte import storage
from latte.data.curation.measuring import Measure, VideoNumbers, measure
from latte.data.entries import CatalogEntry
from latte.errors import DamagedError, NotThereError, UnreadableError
from latte.progress import progress, teller
from latte.storage import manifest
from latte.video.decoder_process import DecodeTask
from latte.video.decoders import Chunk, Decoder, End, Limits, decode_one
from latte.video.sources import VideoSource
from latte.video.views import Box

_GROUP = 32
_READ_THREADS = 8


def place(root: str, name: str, settings: Measure) -> str:
    """URI of the folder with the numbers that these settings give."""
    return storage.join(root, "curation", name, manifest.fingerprint("measured", *settings.facts)[:16])


def measure_all(
    entries: Sequence[CatalogEntry], folder: str, settings: Measure, workers: int, limits: Limits, by_etag: bool
) -> dict[str, VideoNumbers]:
    """Numbers of all these videos by their digests; those that `folder` lacks are measured and kept there.

    A killed call loses the group of videos that it was at.

    Args:
        entries: the videos, whole.
        folder: of `place`.
        settings: of measuring.
        workers: processes that decode, and threads that measure.
        limits: of decoding one video.
        by_etag: as in `latte.video.sources.VideoSource`.

    Raises:
        StorageError: the store does not answer.
    """
    known = {digest: found for digest, found in _read(folder).items() if not _may_pass(found, limits)}
    new = list({entry.digest: entry for entry in reversed(entries) if entry.digest not in known}.values())[::-1]
    if not new:
        return known
    work = _Work(settings, limits, by_etag)
    with progress(total=len(new), desc="curate", unit="video") as bar, ThreadPoolExecutor(workers, "curate") as pool:
        tell = teller(bar)
        try:
            for start in range(0, len(new), _GROUP):
                group = new[start : start + _GROUP]
                done: dict[str, VideoNumbers] = {}
                for entry, (found, passing) in zip(group, pool.map(work.measured, group), strict=True):
                    known[entry.digest] = found
                    if not passing:
                        done[entry.digest] = found
                    tell(f"{work.frames / max(1e-6, float(bar.format_dict['elapsed'])):.0f} frames/s")
                    bar.update(1)
                _write(folder, done)
        except BaseException:
            work.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            work.close()
    return known


def taken(root: str, name: str) -> list[str]:
    """Digests of the contents that datasets of this name have taken in, those that came first before the others.

    Raises:
        StorageError: the store does not answer.
    """
    try:
        return list(storage.read_json(_taken_uri(root, name))["contents"])
    except NotThereError:
        return []
    except (DamagedError, UnreadableError) as error:
        manifest.say_not_done(error)
        return []


def take(root: str, name: str, contents: Sequence[str]) -> None:
    """Add contents to those that were taken in, in this order.

    Raises:
        StorageError: the store does not answer.
    """
    before = taken(root, name)
    after = list(dict.fromkeys([*before, *contents]))
    if after != before:
        storage.write_json(_taken_uri(root, name), {"contents": after})


class _Work:
    """Measuring in several threads, each with a decoder process of its own, which ends with its thread."""

    def __init__(self, settings: Measure, limits: Limits, by_etag: bool) -> None:
        self.stop = threading.Event()
        self.frames = 0
        self._settings, self._limits, self._by_etag = settings, limits, by_etag
        self._of_thread = threading.local()
        self._decoders: list[Decoder] = []

    def close(self) -> None:
        """End the decoders, once no thread is at work any more."""
        for decoder in self._decoders:
            decoder.close()

    def measured(self, entry: CatalogEntry) -> tuple[VideoNumbers, bool]:
        """The numbers of a video, and whether it had trouble that was not its own."""
        if not hasattr(self._of_thread, "decoder"):
            self._of_thread.decoder = Decoder(self._limits, self.stop, tells=True)
            self._decoders.append(self._of_thread.decoder)
        source = VideoSource(entry.uri, entry.digest, by_etag=self._by_etag)

        def decode(crop: Box | None) -> Iterator[Chunk]:
            side, stride, most = self._settings.frame_side, self._settings.frame_stride, self._settings.max_frames
            task = DecodeTask("", side, stride=stride, count=most, whole=True, crop=crop)
            for event in decode_one(self._of_thread.decoder, 0, source, task):
                if isinstance(event, Chunk):
                    self.frames += len(event.frames)
                    yield event
                elif event.reject is not None:
                    raise _RejectedError(event)

        try:
            return measure(decode, self._settings), False
        except _RejectedError as rejected:
            return VideoNumbers(problem=rejected.end.reject, beyond=rejected.end.beyond), rejected.end.passing


class _RejectedError(Exception):
    """A video that cannot be decoded."""

    def __init__(self, end: End) -> None:
        super().__init__(end.reject)
        self.end = end


def _may_pass(found: VideoNumbers, limits: Limits) -> bool:
    """Whether a video was too much for a limit that is higher now."""
    return any(getattr(limits, name) > value for name, value in (found.beyond or {}).items())


def _taken_uri(root: str, name: str) -> str:
    return storage.join(root, "curation", name, "taken.json")


def _write(folder: str, done: dict[str, VideoNumbers]) -> None:
    if done:
        uri = storage.join(folder, manifest.fingerprint("videos", list(done))[:16] + ".json")
        storage.write_json(uri, {"videos": {digest: found.row for digest, found in done.items()}})


def _read(folder: str) -> dict[str, VideoNumbers]:
    """Numbers that are kept; a document that cannot be read counts as not there, and is told."""

    def one(uri: str) -> dict[str, Any]:
        try:
            videos: dict[str, Any] = storage.read_json(uri)["videos"]
            return videos
        except (DamagedError, UnreadableError) as error:
            manifest.say_not_done(error)
        except NotThereError:
            pass
        return {}

    uris = [uri for uri in storage.list_uris(folder) if uri.endswith(".json")]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        documents = list(pool.map(one, uris))
    return {digest: VideoNumbers.of(row) for videos in documents for digest, row in videos.items()}
