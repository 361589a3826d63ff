"""The two sides of a score: which clips they are, how a clip is read, and whether all of them are there."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from latte import owners, storage
from latte.errors import UserError
from latte.facts import LatentsFacts, VideoSetFacts
from latte.metrics import protocol as protocols
from latte.metrics.protocol import Protocol
from latte.progress import progress
from latte.storage import manifest
from latte.video.decoder_process import TRANSFORM_VERSION

if TYPE_CHECKING:
    from latte.data.latents import LatentClips

_CHECK_THREADS = 16
NOT_COMPARED = (
    "the dataset was encoded by an earlier version, which did not record its videos' contents: they were not compared "
    "with what was encoded; encode again (only the index is made anew)"
)


@dataclass(frozen=True)
class Side:
    """One side of the comparison.

    Attributes:
        role: "generated" or "real".
        count: how many clips.
        load: reads clip i as (F, H, W, 3) uint8.
        check: raises where clip i is missing or damaged; much cheaper than features.
        key: what the features depend on beside the detector and the protocol's preparation.
        name: what errors call clip i.
        notes: what a reader of the score should know.
    """

    role: str
    count: int
    load: Callable[[int], np.ndarray] = field(repr=False)
    check: Callable[[int], None] = field(repr=False)
    key: dict[str, Any] = field(repr=False)
    name: Callable[[int], str] = field(repr=False)
    notes: tuple[str, ...] = ()


def generated(uri: str, videos: manifest.Manifest, protocol: Protocol) -> Side:
    """The first clips of a set, in the order of their numbers.

    Args:
        uri: of the set's manifest, for errors.
        videos: the manifest.
        protocol: how many, how long, at which stride.

    Raises:
        UserError: the videos are too short or too few.
    """
    facts = VideoSetFacts.of(videos)
    num_frames, span = facts.num_frames, protocol.generated_span_frames
    if num_frames < span:
        raise UserError(f"videos {uri}: {num_frames} frames each, the protocol needs {span}")
    items = sorted(manifest.items(videos), key=lambda item: int(item["index"]))[: protocol.num_clips]
    if len(items) < protocol.num_clips:
        raise UserError(f"videos {uri}: {len(items)} videos, the protocol needs num_clips={protocol.num_clips}")
    taken = slice(0, span, protocol.generated_stride)
    size = facts.image_size

    def load(index: int) -> np.ndarray:
        from latte.video import clip_files

        item = items[index]
        with storage.as_local_file(item["video"], item["sha256"]) as path:
            frames = clip_files.read_lossless(path)[taken]  # (F, H, W, 3)
        if frames.shape != (protocol.clip_frames, size, size, 3):
            raise UserError(f"{item['video']}: frames {frames.shape}, expected {protocol.clip_frames} of {size} pixels")
        return frames

    def check_clip(index: int) -> None:
        with storage.as_local_file(items[index]["video"], items[index]["sha256"]):
            pass

    key = {"videos": [item["sha256"] for item in items], "stride": protocol.generated_stride}
    return Side("generated", len(items), load, check_clip, key, lambda index: str(items[index]["video"]))


def real(uri: str, dataset: manifest.Manifest, protocol: Protocol) -> Side:
    """Clips of the videos of an encoded dataset, chosen by the protocol.

    Args:
        uri: of the dataset's manifest, for errors.
        dataset: the manifest.
        protocol: how many, how long, at which stride, and which.

    Raises:
        UserError: too few of the videos are long enough.
    """
    encoded = _index(dataset)
    videos = encoded.videos
    clips = protocols.choose_real_clips([(video.id, video.num_frames) for video in videos], protocol)
    if len(clips) < protocol.real_clips:
        long_enough = sum(video.num_frames >= protocol.real_span_frames for video in videos)
        raise UserError(
            f"real {uri}: {len(clips)} clips, the protocol needs {protocol.real_clips}: {long_enough} of "
            f"{len(videos)} videos have {protocol.real_span_frames} frames, and clips_per_video is "
            f"{protocol.clips_per_video}"
        )

    def load(index: int) -> np.ndarray:
        clip = clips[index]
        return encoded.real_clip(clip.video, clip.start_frame, protocol.frame_stride, protocol.clip_frames)

    def check_clip(index: int) -> None:
        try:
            encoded.check_video(clips[index].video)
        except UserError as error:
            raise type(error)(f"real {uri}: {error}") from None

    key = {
        "real": real_digest(dataset),
        "clips": [(videos[clip.video].id, clip.start_frame) for clip in clips],
        "stride": protocol.frame_stride,
    }

    def name(index: int) -> str:
        return f"{videos[clips[index].video].id} from frame {clips[index].start_frame}"

    notes = () if all(videos[clip.video].content for clip in clips) else (NOT_COMPARED,)
    return Side("real", len(clips), load, check_clip, key, name, notes)


def real_frames(dataset: manifest.Manifest) -> list[int]:
    """Encoded frames of each video of a dataset."""
    return [video.num_frames for video in _index(dataset).videos]


def _index(dataset: manifest.Manifest) -> "LatentClips":
    from latte.data.latents import LatentClips

    with owners.Folder("index") as cache:
        return LatentClips(dataset, cache)


def real_digest(dataset: manifest.Manifest) -> str:
    """SHA-256 over what real clips follow from, beside the protocol: which videos, and how their frames are made.

    Latents of the same videos by another autoencoder, with mirrored copies or with embeddings of the captions, have the
    same real side.

    Args:
        dataset: manifest of the encoded dataset.
    """
    frames = LatentsFacts.of(dataset).model_dump(include={"image_size", "frame_stride", "max_frames"})
    left_out = sorted(reject.item for reject in dataset.rejects)
    return manifest.fingerprint("real", TRANSFORM_VERSION, frames, dataset.inputs["catalog"], left_out)


def check(side: Side) -> None:
    """Look at every clip of a side before the detector starts.

    Raises:
        UserError: one is not there.
        StorageError: one does not have the recorded SHA-256.
    """
    with ThreadPoolExecutor(_CHECK_THREADS, thread_name_prefix="check") as pool:
        label = f"score: checking {side.role} clips"
        for _ in progress(pool.map(side.check, range(side.count)), total=side.count, desc=label, unit="clip"):
            pass
