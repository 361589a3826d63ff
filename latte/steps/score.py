"""The score step: the Fréchet distance between a set of generated videos and real ones, with everything that made it.

Each side's features are computed once, published in shards under features/<fingerprint>/ and found there by the next
score with the same clips, preparation and detector. The distance itself is a function of the features in clip order.
"""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from latte import manifest, metrics, score_sides, storage
from latte.checkpoints.architectures import PUBLISHED_I3D
from latte.config import Config, Root, ToldError, prefix_of
from latte.errors import StorageError, UserError
from latte.metrics import protocol as protocols
from latte.metrics.protocol import Protocol
from latte.models.configs import I3DConfig
from latte.progress import progress
from latte.score_sides import Side

PUBLISHED_METRIC = "fvd"
POOLED_METRIC = "frechet_i3d_pool"
RANDOM_METRIC = "frechet_random_i3d"
SMALL_METRIC = "frechet_small_i3d"
OTHER_METRIC = "frechet_i3d"
_detectors: dict[str, Any] = {}


class ScoreConfig(Config):
    """What to compare with what, and by which protocol."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the score; it goes to scores/<name>/")
    videos: str = Field(description="manifest of the generated video set (file or URI)")
    real: str = Field(description="manifest of the encoded dataset, which names the real videos (file or URI)")
    detector: str = Field(description="manifest of the I3D weights (file or URI)")
    protocol: str | dict[str, Any] = Field(
        default="latte-2048", description="preset of configs/fvd, a YAML file, or fields of the protocol"
    )
    batch_size: int = Field(
        default=2, gt=0, description="clips that go through the detector together, about 0.6 GB each"
    )
    clips_per_shard: int = Field(default=64, gt=0, description="clips per published features object")
    workers: int = Field(default=2, gt=0, description="threads that read and resize clips ahead of the detector")

    @field_validator("protocol")
    @classmethod
    def _makes_sense(cls, value: str | dict[str, Any], info: ValidationInfo) -> str | dict[str, Any]:
        """A mistake is told before anything runs; but a file may be one that only the step itself sees."""
        preset = value if isinstance(value, str) else str(value.get("preset", ""))
        if not protocols.is_file(preset):
            try:
                protocols.resolve(value, key=f"{prefix_of(info)}protocol")
            except UserError as error:
                raise ToldError(str(error)) from None
        return value


def run(config: ScoreConfig) -> manifest.Manifest:
    """Score `config.videos` and return the manifest of the score.

    Raises:
        UserError: the sides do not fit together, one has too few clips, or a stored clip is not what it should be.
        StorageError: object storage stayed away for too long, or stored data is damaged.
    """
    videos = manifest.read(config.videos, "video_set", "videos")
    real = manifest.read(config.real, "latents", "real")
    protocol, adapted = _protocol(config, videos, real)
    detector = manifest.read(config.detector, "weights", "detector")
    if detector.config.get("kind") != "i3d":
        raise UserError(f"detector {config.detector}: weights of {detector.config.get('kind')}, expected i3d")
    network = network_of(detector)
    if network.image_size != protocol.resolution:
        raise UserError(
            f"protocol.resolution={protocol.resolution}: the detector {config.detector} is for clips of "
            f"{network.image_size} pixels; protocol.resolution={network.image_size} works"
        )
    weights = detector.weights_file()
    real_digest = score_sides.real_digest(real)
    fingerprint = manifest.fingerprint("score", videos.fingerprint, real_digest, weights.sha256, protocol)
    uri = storage.join(config.root, "scores", config.name, fingerprint[:16])
    done = manifest.find(uri, "score")
    if done is not None and metric_name(detector, protocol) in done.metrics:  # early versions said fvd more often
        return done

    started = time.monotonic()
    _check_same_picture(config, videos, real)
    sides = (
        score_sides.generated(config.videos, videos, protocol),
        score_sides.real(config.real, real, protocol),
    )
    features, moments, digests = [], [], []
    detect = _Detector(weights, network, protocol)
    places = [_Place.of(side, detect, config, protocol) for side in sides]
    for side, place in zip(sides, places, strict=True):
        if place.found is None:
            score_sides.check(side)
    for side, place in zip(sides, places, strict=True):
        collected = place.found or _collect(side, place, detect, config, protocol)
        rows, sums = _read_features(side, collected)
        features.append(rows)
        moments.append(sums)
        digests.append(collected.fingerprint)
    values = _values(features, moments, protocol, metric_name(detector, protocol))
    notes = [*adapted, *_notes(features, values, detector)]
    for note in notes:
        print(f"score {config.name}: {note}", file=sys.stderr)
    return manifest.finish(
        manifest.Manifest(
            kind="score",
            name=config.name,
            uri=uri,
            fingerprint=fingerprint,
            counts={"clips_generated": len(features[0]), "clips_real": len(features[1])},
            inputs={
                "videos": videos.fingerprint,
                "real": real_digest,
                "detector": weights.sha256,
                "features_generated": digests[0],
                "features_real": digests[1],
            },
            config={
                "protocol": protocol.model_dump(),
                "protocol_digest": protocol.digest,
                "detector": {"sha256": weights.sha256, "random": bool(detector.config.get("random", True))},
                "videos": videos.uri,
                "real": real.uri,
                "split": real.config.get("split"),
                "image_size": videos.config["image_size"],
                "notes": notes,
            },
            metrics=values,
            seconds=time.monotonic() - started,
        ),
        config.root,
    )


def _protocol(config: ScoreConfig, videos: manifest.Manifest, real: manifest.Manifest) -> tuple[Protocol, list[str]]:
    """The protocol with numbers for what was to follow from the sides, and a line for each such number."""
    if not protocols.is_adaptive(config.protocol, "num_clips"):
        return protocols.resolve(config.protocol), []
    available = protocols.Available(int(videos.counts["videos"]), score_sides.real_frames(real))
    protocol, line = protocols.adapted(config.protocol, available)
    return protocol, [line]


def network_of(detector: manifest.Manifest) -> I3DConfig:
    """The sizes of a detector; those of manifests that name none are the published ones."""
    return I3DConfig(**detector.config.get("model", {}))


def metric_name(detector: manifest.Manifest, protocol: Protocol) -> str:
    """What the distance may be called: "fvd" is kept for the published features of the published weights.

    Weights from another file have the first digits of their SHA-256 in the name.
    """
    if detector.config.get("random", True):
        return RANDOM_METRIC
    if not network_of(detector).is_published:
        return SMALL_METRIC
    name = PUBLISHED_METRIC if protocol.features == "logits" else POOLED_METRIC
    if _is_published(detector):
        return name
    other = OTHER_METRIC if name == PUBLISHED_METRIC else name
    return f"{other}_{detector.weights_file().sha256[:8]}"


def _is_published(detector: manifest.Manifest) -> bool:
    return detector.inputs.get("source") in PUBLISHED_I3D


def _values(
    features: list[np.ndarray], moments: list[metrics.Moments], protocol: Protocol, name: str
) -> dict[str, Any]:
    divisor = protocol.covariance_divisor
    rows, real_rows = features
    low, high = metrics.jackknife_interval(rows, real_rows, divisor, protocol.jackknife_groups, protocol.confidence)
    generated, real = (sums.statistics(divisor) for sums in moments)
    return {
        name: metrics.frechet_distance(*generated, *real),
        "interval_low": low,
        "interval_high": high,
        "unbiased_estimate": metrics.extrapolated_distance(rows, real_rows, divisor, seed=protocol.seed),
        "clips": len(rows),
    }


def _notes(features: list[np.ndarray], values: dict[str, Any], detector: manifest.Manifest) -> list[str]:
    """What a reader of the number should know."""
    notes = []
    fewest, width = min(len(side) for side in features), features[0].shape[1]
    if fewest <= width:
        notes.append(
            f"{fewest} clips for {width} features: the covariances are singular and the value has a large bias; "
            f"without it, it would be near {max(0.0, values['unbiased_estimate']):.4g}"
        )
    if detector.config.get("random", True):
        notes.append("the detector has random weights: the value tells noise from video, is no FVD and ranks no models")
    elif not _is_published(detector):
        notes.append("the detector is not from the published file: the value is no FVD, only others by it compare")
    return notes


def _check_same_picture(config: ScoreConfig, videos: manifest.Manifest, real: manifest.Manifest) -> None:
    sizes = videos.config["image_size"], real.config["image_size"]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"videos {config.videos}: image_size {sizes[0]}, but real {config.real} has {sizes[1]}: compare one size"
        )


class _Detector:
    """I3D, loaded and compiled at the first clip: a score whose features are all there never starts MindSpore."""

    def __init__(self, weights: manifest.Shard, network: I3DConfig, protocol: Protocol) -> None:
        self.sha256 = weights.sha256
        self._weights = weights
        self._network = network
        self._pooled = protocol.features == "pool"

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Clips (N, 3, F, S, S) float32 in [-1, 1] -> features (N, D) float32."""
        import mindspore as ms

        net = _loaded(self._weights, self._network)
        out = (net.features if self._pooled else net)(ms.Tensor(clips)).asnumpy()
        return np.ascontiguousarray(out.mean(axis=(2, 3, 4)) if self._pooled else out)


def _loaded(weights: manifest.Shard, network: I3DConfig) -> Any:
    """The network with these weights, kept for the next score of this process: compiling it takes seconds."""
    if weights.sha256 not in _detectors:
        from latte import checkpoints, device
        from latte.models.i3d import I3D

        device.setup()
        net = I3D(network)
        with storage.as_local_file(weights.uri, weights.sha256) as path:
            checkpoints.load(net, str(path), weights.uri)
        net.set_train(False)
        _detectors[weights.sha256] = net
    return _detectors[weights.sha256]


@dataclass(frozen=True)
class _Place:
    """Where the features of a side lie: URI, fingerprint, the settings behind it, and the manifest if it is done."""

    uri: str
    fingerprint: str
    settings: dict[str, Any]
    found: manifest.Manifest | None

    @classmethod
    def of(cls, side: Side, detect: _Detector, config: ScoreConfig, protocol: Protocol) -> "_Place":
        """The place of this side's features under this protocol and detector."""
        settings = {
            "clips_per_shard": config.clips_per_shard,
            **protocol.model_dump(include={"clip_frames", "resolution", "resize", "features"}),
        }
        fingerprint = manifest.fingerprint("features", side.key, settings, detect.sha256)
        uri = storage.join(config.root, "features", fingerprint[:16])
        return cls(uri, fingerprint, settings, manifest.find(uri, "features"))


def _collect(
    side: Side, place: _Place, detect: _Detector, config: ScoreConfig, protocol: Protocol
) -> manifest.Manifest:
    """Compute the features of a side shard by shard, skipping shards that are published.

    Raises:
        UserError: a feature is not finite, or too large to be summed.
    """
    started = time.monotonic()
    shards: list[manifest.Shard] = []
    label = f"score: {side.role} clips"
    with progress(total=side.count, desc=label, unit="clip") as bar, ThreadPoolExecutor(config.workers) as pool:
        for number, first in enumerate(range(0, side.count, config.clips_per_shard)):
            indices = range(first, min(first + config.clips_per_shard, side.count))
            uri = storage.join(place.uri, f"features-{number:05d}.safetensors")
            shard = manifest.published(uri)
            if shard is not None:
                shards.append(shard)
                bar.update(len(indices))
                continue
            parts: list[np.ndarray] = []
            for batch, used in _batches(side, indices, config.batch_size, protocol, pool):
                rows = detect(batch)[:used]
                if bad := metrics.unusable_rows(rows):
                    clip = first + sum(len(part) for part in parts) + bad[0]
                    raise UserError(_unusable(f"{side.role} clip {side.name(clip)}"))
                parts.append(rows)
                bar.update(used)
            shards.append(_publish(np.concatenate(parts), uri))
    return manifest.finish(
        manifest.Manifest(
            kind="features",
            name=side.role,
            uri=place.uri,
            fingerprint=place.fingerprint,
            shards=shards,
            counts={"clips": side.count},
            inputs={"detector": detect.sha256},
            config=place.settings,
            seconds=time.monotonic() - started,
        ),
        config.root,
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


def _publish(features: np.ndarray, uri: str) -> manifest.Shard:
    from safetensors.numpy import save

    return manifest.publish_shard(save({"features": features.astype(np.float32)}), uri, items=len(features))


def _unusable(clip: str) -> str:
    return f"{clip}: a feature of the detector is {metrics.UNUSABLE}; are its weights right?"


def _read_features(side: Side, collected: manifest.Manifest) -> tuple[np.ndarray, metrics.Moments]:
    """All features of a side (N, D) float32 in the order of its clips, and their moments.

    The moments are summed shard by shard, without rounding: how the clips were cut into shards does not show. The
    features themselves, 1.6 kB a clip, are kept for the interval. Every shard's checksum is verified.
    """
    from safetensors.numpy import load

    parts: list[np.ndarray] = []
    moments: metrics.Moments | None = None
    for shard in collected.shards:
        data = storage.read_bytes(shard.uri)
        if storage.sha256_bytes(data) != shard.sha256:
            raise StorageError(f"{shard.uri}: damaged: its content does not have the recorded SHA-256")
        rows = load(data)["features"]  # (n, D)
        if bad := metrics.unusable_rows(rows):
            number = sum(len(part) for part in parts) + bad[0]
            raise UserError(_unusable(f"{shard.uri}: {side.role} clip {side.name(number)}"))
        part = metrics.Moments.of(rows)
        parts.append(rows)
        moments = part if moments is None else moments + part
    if moments is None:
        raise UserError(f"{collected.uri}: no features there")
    return np.concatenate(parts), moments
