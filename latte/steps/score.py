"""The score step: distances between a set of generated videos and real ones, with everything that made them.

The clips of both sides are chosen once; every detector sees the same ones. Each side's features are computed once a
detector, published in shards under features/<fingerprint>/ and found there by the next score with the same clips,
preparation and detector. A distance itself is a function of the features in clip order.
"""

import sys
import time
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from latte.config import Config, FileKey, Root, ToldError, prefix_of
from latte.errors import UserError
from latte.facts import LatentsFacts, ScoreFacts, ScoreMetrics, ScoreValue, VideoSetFacts
from latte.kinds import detectors
from latte.metrics import protocol as protocols
from latte.metrics import score_sides
from latte.metrics.detection import Detect, Detector, Features, FeatureWork, features
from latte.metrics.measuring import Measured
from latte.metrics.protocol import Protocol
from latte.places import Place
from latte.storage import manifest
from latte.terminal import shown


class ScoreConfig(Config):
    """The two sets to compare, the detector and the protocol."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the score; it goes to scores/<name>/")
    videos: str = Field(description="manifest of the generated video set (file or URI)")
    real: str = Field(description="manifest of the encoded dataset, which names the real videos (file or URI)")
    detector: str = Field(description="manifest of the detector's weights (file or URI); its distance counts first")
    detectors: Annotated[list[str], FileKey("manifest")] = Field(
        default=[], description="manifests of the weights of more detectors, which see the same clips"
    )
    protocol: Annotated[str | dict[str, Any], FileKey("protocol")] = Field(
        default="latte-2048", description="preset of configs/fvd, a YAML file, or fields of the protocol"
    )
    batch_size: int = Field(default=2, gt=0, description="clips that go through a detector together, about 0.6 GB each")
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
    measured = _measured(config, protocol)
    real_digest = score_sides.real_digest(real)
    parts = [(each.sha256, each.protocol, each.names) for each in measured]
    fingerprint = manifest.fingerprint("score of metrics", videos.fingerprint, real_digest, parts)
    score = Place.under("score", fingerprint, config.root, "scores", config.name)
    names = [name for each in measured for name in each.names]
    done = score.found
    if done is not None and names[0] in done.metrics and set(ScoreMetrics.of(done).values) == set(names):
        return done

    started = time.monotonic()
    _check_same_picture(config, videos, real)
    sides = (
        score_sides.generated(config.videos, videos, protocol),
        score_sides.real(config.real, real, protocol),
    )
    work = FeatureWork(config.root, config.batch_size, config.clips_per_shard, config.workers)
    detects = [Detect(each.detector, each.protocol) for each in measured]
    places = [[detect.place(side, work) for side in sides] for detect in detects]
    for side, of_side in zip(sides, zip(*places, strict=True), strict=True):
        if any(place.found is None for place in of_side):
            score_sides.check(side)
    values: dict[str, ScoreValue] = {}
    inputs: dict[str, str] = {}
    notes = list(adapted)
    for number, (by, detect) in enumerate(zip(measured, detects, strict=True)):
        both = [features(side, place, detect, work) for side, place in zip(sides, places[number], strict=True)]
        of_detector = by.values(both[0], both[1])
        values |= of_detector
        ending = f"_{by.names[0]}" if number else ""
        inputs |= {
            f"detector{ending}": by.sha256,
            f"features_generated{ending}": both[0].fingerprint,
            f"features_real{ending}": both[1].fingerprint,
        }
        notes += _notes(both, of_detector[by.names[0]], by, len(measured) > 1)
        both.clear()  # before the next detector's are in memory
    notes += [note for side in sides for note in side.notes]
    for note in notes:
        print(shown(f"score {config.name}: {note}"), file=sys.stderr)
    first = values[names[0]]
    beside = first.model_dump(include={"interval_low", "interval_high", "unbiased_estimate", "clips"})
    return manifest.finish(
        score.manifest(
            config.name,
            counts={"clips_generated": sides[0].count, "clips_real": sides[1].count},
            inputs={"videos": videos.fingerprint, "real": real_digest, **inputs},
            config=ScoreFacts(
                protocol=first.protocol,
                protocol_digest=first.protocol_digest,
                detector={"sha256": measured[0].sha256, "random": measured[0].detector.source is None},
                videos=videos.uri,
                real=real.uri,
                split=LatentsFacts.of(real).split,
                image_size=VideoSetFacts.of(videos).image_size,
                notes=notes,
            ).said(),
            metrics={names[0]: first.value, **beside, "values": {name: v.model_dump() for name, v in values.items()}},
            seconds=time.monotonic() - started,
        ),
        config.root,
    )


def _measured(config: ScoreConfig, protocol: Protocol) -> list[Measured]:
    """The detectors with their own protocols, the one that counts first first.

    Raises:
        UserError: one is none, its resolution does not fit, or two would give values of one name.
    """
    measured: list[Measured] = []
    for uri in (config.detector, *config.detectors):
        key = "detectors" if measured else "detector"
        detector = Detector.of(manifest.read_weights(uri, detectors(), key))
        own = detector.protocol(config.protocol, protocol, uri)
        name = detector.metric(own)
        if any(name in other.names for other in measured):
            raise UserError(f"detectors: {uri} gives {name}, as another one of them does")
        measured.append(Measured(detector, own))
    return measured


def _protocol(config: ScoreConfig, videos: manifest.Manifest, real: manifest.Manifest) -> tuple[Protocol, list[str]]:
    """The protocol with numbers for what was to follow from the sides, and a line for each such number."""
    if not protocols.is_adaptive(config.protocol, "num_clips"):
        return protocols.resolve(config.protocol), []
    available = protocols.Available(int(videos.counts["videos"]), score_sides.real_frames(real))
    protocol, line = protocols.adapted(config.protocol, available)
    return protocol, [line]


def _notes(sides: list[Features], distance: ScoreValue, measured: Measured, named: bool) -> list[str]:
    """Notes for a reader of the numbers of a detector; `named`: they say which."""
    notes = []
    fewest, width = min(len(side.rows) for side in sides), sides[0].rows.shape[1]
    what = "clips" if sides[0].rows_per_clip == 1 else "frames"
    if fewest <= width and distance.unbiased_estimate is not None:
        notes.append(
            f"{fewest} {what} for {width} features: the covariances are singular and the value has a large bias; "
            f"without it, it would be near {max(0.0, distance.unbiased_estimate):.4g}"
        )
    if measured.detector.source is None:
        notes.append("the detector has random weights: the value tells noise from video, is no FVD and ranks no models")
    elif not measured.detector.is_published:
        notes.append("the detector is not from the published file: the value is no FVD, only others by it compare")
    return [f"{measured.names[0]}: {note}" if named else note for note in notes]


def _check_same_picture(config: ScoreConfig, videos: manifest.Manifest, real: manifest.Manifest) -> None:
    sizes = VideoSetFacts.of(videos).image_size, LatentsFacts.of(real).image_size
    if sizes[0] != sizes[1]:
        raise UserError(
            f"videos {config.videos}: image_size {sizes[0]}, but real {config.real} has {sizes[1]}: compare one size"
        )
