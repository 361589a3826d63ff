"""Detectors and the features that they see in clips, kept in shards under features/<fingerprint>/.

A detector is a kind of model with a `scoring` (`latte.kinds`). Its network has
`detect(clips, features) -> (N, R, D)`: R rows of features for each of N clips, one of a detector of clips, one a frame
of a detector of frames.
"""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from latte import networks, storage
from latte.errors import DamagedError, NotThereError, UserError
from latte.facts import WeightsFacts
from latte.kinds import KINDS, ModelKind, detectors
from latte.kinds.kind import Scoring
from latte.metrics import protocol as protocols
from latte.metrics.moments import UNUSABLE, Moments, unusable_rows
from latte.metrics.protocol import Protocol
from latte.metrics.score_sides import Side
from latte.places import Place
from latte.progress import progress
from latte.storage import manifest


@dataclass(frozen=True)
class Detector:
    """A detector as its manifest describes it.

    Attributes:
        kind: its entry in the table of kinds.
        model: sizes of the network; those of manifests that name none are the published ones.
        weights: of the network.
        source: SHA-256 of the published file that the weights come from; None where they are random.
    """

    kind: ModelKind
    model: dict[str, Any]
    weights: manifest.Shard
    source: str | None

    @classmethod
    def of(cls, weights: manifest.Manifest) -> "Detector":
        """From the manifest of converted weights; those of unknown origin count as random."""
        facts = WeightsFacts.of(weights)
        source = weights.inputs.get("source", "") if facts.random is False else None
        return cls(KINDS[facts.kind or detectors()[0]], facts.model, weights.weights_file(), source)

    @property
    def network(self) -> Any:
        """Config of the network."""
        return self.kind.configured(self.model, self.weights.uri)

    @property
    def is_published(self) -> bool:
        """Whether scores by it compare with those of papers, where their protocol does."""
        scoring = self.kind.scoring
        if scoring is None or self.source not in scoring.published:
            return False
        protocol = Protocol().model_copy(update=scoring.protocol(self.network))
        return self.metric(protocol) == scoring.metrics[0]

    def metric(self, protocol: Protocol) -> str:
        """Name of the distance in its features."""
        return self._scoring.metric(self.network, protocol.features, self.source, self.weights.sha256)

    def protocol(self, given: str | Mapping[str, Any], base: Protocol, name: str) -> Protocol:
        """The protocol of its own scores: the clips of `base`, prepared and compared as its published scores are.

        Args:
            given: the protocol as the settings have it; `detectors.<kind>` in it holds fields for this kind alone.
            base: what it comes to for all detectors.
            name: what errors call the detector.

        Raises:
            UserError: a field is unknown or bad, or the resolution or the frames of a clip are not the detector's.
        """
        protocol = protocols.of_detector(given, base, self.kind.name, self._scoring.protocol(self.network))
        size = self.network.image_size
        if size != protocol.resolution:
            own = f"{protocols.DETECTORS}.{self.kind.name}." if self._scoring.protocol(self.network) else ""
            key = f"protocol.{own}resolution"
            raise UserError(
                f"{key}={protocol.resolution}: the detector {name} is for clips of {size} pixels; {key}={size} works"
            )
        frames = getattr(self.network, "num_frames", protocol.clip_frames)
        if frames != protocol.clip_frames:
            raise UserError(
                f"protocol.clip_frames={protocol.clip_frames}: the detector {name} is for clips of {frames} frames"
            )
        return protocol

    @property
    def _scoring(self) -> Scoring:
        if self.kind.scoring is None:
            raise UserError(f"detector {self.weights.uri}: no features of {self.kind.name} are compared")
        return self.kind.scoring


@dataclass(frozen=True)
class FeatureWork:
    """Settings of computing features, and the root that they are kept under.

    Attributes:
        root: where everything is kept.
        batch_size: clips that go through the detector together.
        clips_per_shard: clips of a published object.
        workers: threads that read and resize ahead of the detector.
    """

    root: str
    batch_size: int
    clips_per_shard: int
    workers: int


@dataclass(frozen=True)
class Features:
    """Features of a side.

    Attributes:
        rows: (clips x R, D) float32, in the order of the clips.
        rows_per_clip: R.
        moments: of all rows, exact.
        fingerprint: of the place that they are kept in.
    """

    rows: np.ndarray
    rows_per_clip: int
    moments: Moments
    fingerprint: str

    @property
    def clips(self) -> int:
        """Number of clips."""
        return len(self.rows) // self.rows_per_clip


class Detect:
    """A detector that is loaded and compiled at the first clip: found features alone never start MindSpore."""

    def __init__(self, detector: Detector, protocol: Protocol) -> None:
        self.sha256 = detector.weights.sha256
        self.protocol = protocol
        self._detector = detector

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Clips (N, 3, F, S, S) float32 in [-1, 1] -> features (N, R, D) float32."""
        from latte import device

        device.setup()
        net = networks.network(self._detector.kind.name, self._detector.model, self._detector.weights)
        return np.ascontiguousarray(net.detect(clips, self.protocol.features), np.float32)

    def settings(self, work: FeatureWork) -> dict[str, Any]:
        """Settings behind the features of a side."""
        fields = self.protocol.model_dump(include={"clip_frames", "resolution", "resize", "features"})
        return {"clips_per_shard": work.clips_per_shard, **fields}

    def place(self, side: Side, work: FeatureWork) -> Place:
        """The place of this side's features under this protocol and detector."""
        fingerprint = manifest.fingerprint("features", side.key, self.settings(work), self.sha256)
        return Place.under("features", fingerprint, work.root, "features")


def features(side: Side, place: Place, detect: Detect, work: FeatureWork) -> Features:
    """Features of a side, computed where they are not kept, and where what is kept is damaged, which is told.

    Raises:
        UserError: a feature is not finite, or too large to be summed.
        DamagedError: an object has another checksum right after it was kept.
    """
    collected = place.found or _collect(side, place, detect, work)
    try:
        return _read(side, collected)
    except DamagedError as error:
        manifest.say_not_done(error)
    _drop_damaged(collected)
    return _read(side, _collect(side, place, detect, work))


def _drop_damaged(collected: manifest.Manifest) -> None:
    storage.delete(storage.join(collected.uri, manifest.NAME))
    for shard in collected.shards:
        try:
            storage.read_recorded(shard.uri, shard.sha256)
        except (DamagedError, NotThereError):
            storage.delete(shard.uri + manifest.RECORD_SUFFIX)
            storage.delete(shard.uri)


def publish(rows: np.ndarray, uri: str, clips: int) -> manifest.Shard:
    """Keep rows of features (clips x R, D) under `uri`."""
    from safetensors.numpy import save

    return manifest.publish_shard(save({"features": rows.astype(np.float32)}), uri, items=clips)


def _collect(side: Side, place: Place, detect: Detect, work: FeatureWork) -> manifest.Manifest:
    """Compute the features of a side shard by shard, skipping shards that are published."""
    started = time.monotonic()
    shards: list[manifest.Shard] = []
    label = f"score: {side.role} clips"
    with progress(total=side.count, desc=label, unit="clip") as bar, ThreadPoolExecutor(work.workers) as pool:
        for number, first in enumerate(range(0, side.count, work.clips_per_shard)):
            indices = range(first, min(first + work.clips_per_shard, side.count))
            uri = storage.join(place.uri, f"features-{number:05d}.safetensors")
            shard = manifest.published(uri)
            if shard is not None:
                shards.append(shard)
                bar.update(len(indices))
                continue
            parts: list[np.ndarray] = []
            for batch, used in _batches(side, indices, work.batch_size, detect.protocol, pool):
                rows = detect(batch)[:used]  # (n, R, D)
                if bad := unusable_rows(rows.reshape(used, -1)):
                    clip = first + sum(len(part) for part in parts) + bad[0]
                    raise UserError(_unusable(f"{side.role} clip {side.name(clip)}"))
                parts.append(rows)
                bar.update(used)
            joined = np.concatenate(parts)  # (clips, R, D)
            shards.append(publish(joined.reshape(-1, joined.shape[-1]), uri, len(joined)))
    return manifest.finish(
        place.manifest(
            side.role,
            shards=shards,
            counts={"clips": side.count},
            inputs={"detector": detect.sha256},
            config=detect.settings(work),
            seconds=time.monotonic() - started,
        ),
        work.root,
    )


def _batches(
    side: Side, indices: range, batch_size: int, protocol: Protocol, pool: ThreadPoolExecutor
) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of one shape, the last one padded with its last clip, and how many clips of each count.

    The pool reads and resizes one batch ahead of the detector, which bounds the memory.
    """
    groups = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]

    def prepared(index: int) -> np.ndarray:
        return protocols.prepare(side.load(index), protocol.resolution)

    waiting = [pool.submit(prepared, index) for index in groups[0]]
    for group, following in zip(groups, [*groups[1:], range(0)], strict=True):
        ready = [future.result() for future in waiting]
        waiting = [pool.submit(prepared, index) for index in following]
        ready += [ready[-1]] * (batch_size - len(group))
        yield np.stack(ready), len(group)  # (N, 3, F, S, S)


def _unusable(clip: str) -> str:
    return f"{clip}: a feature of the detector is {UNUSABLE}; are its weights right?"


def _read(side: Side, collected: manifest.Manifest) -> Features:
    """All features of a side and their moments.

    The moments are summed shard by shard, without rounding: how the clips were cut into shards does not show. The
    features themselves, 1.6 kB a clip of I3D's, are kept for the interval. Every shard's checksum is verified.
    """
    from safetensors.numpy import load

    parts: list[np.ndarray] = []
    moments: Moments | None = None
    for shard in collected.shards:
        rows = load(storage.read_recorded(shard.uri, shard.sha256))["features"]  # (n, D)
        parts.append(rows)
        if bad := unusable_rows(rows):
            number = (sum(map(len, parts[:-1])) + bad[0]) // max(1, len(rows) // max(1, shard.items))
            raise UserError(_unusable(f"{shard.uri}: {side.role} clip {side.name(number)}"))
        part = Moments.of(rows)
        moments = part if moments is None else moments + part
    if moments is None:
        raise UserError(f"{collected.uri}: no features there")
    rows = np.concatenate(parts)
    return Features(rows, max(1, len(rows) // side.count), moments, collected.fingerprint)
