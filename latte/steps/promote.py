"""The promote step: the gate between a trained checkpoint and the model that is in use.

A candidate passes when its score is better than the promoted model's by `margin`, or worse by no more than `tolerance`.
Both scores must have the same protocol, detector and real clips. Where the dataset has grown since the last promotion,
the promoted model's own videos are scored again, against the candidate's real clips; everything else is refused.

Every decision tells how the intervals of both scores lie. With `apart` a candidate passes only where its interval lies
wholly below that of the promoted model: where the difference is more than the choice of the clips explains.
"""

import math
import random
import time
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, model_validator

from latte import storage, uris
from latte.config import Config, FileKey, Root
from latte.errors import DamagedError, NotThereError, StorageError, UserError
from latte.facts import ScoreFacts, ScoreValue
from latte.kinds import detectors
from latte.metrics import names, score_sides
from latte.metrics import protocol as protocols
from latte.places import Place
from latte.storage import manifest, registry
from latte.storage.registry import HistoryEntry

MAX_TRIES = 50


class PromoteConfig(Config):
    """The candidate for promotion, and the score that it must reach."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the model in the registry; its pointer is registry/<name>/current.json")
    checkpoint: str | None = Field(default=None, description="manifest of the candidate's training run (file or URI)")
    score: str | None = Field(default=None, description="manifest of the candidate's score (file or URI)")
    metric: str | None = Field(
        default=None, description="name of the score's value that is compared; null: the one that counts first in it"
    )
    detector: str | None = Field(
        default=None,
        description="manifest of the detector's weights; needed where the real clips are not those of last time",
    )
    detectors: Annotated[list[str], FileKey("manifest")] = Field(
        default=[], description="manifests of the weights of more detectors, where `metric` is of one of these"
    )
    real: str | None = Field(
        default=None, description="manifest of the dataset of the score; null: the one that the score names"
    )
    margin: float = Field(
        default=0.0, ge=0, lt=1, description="share of the promoted score by which the candidate must be lower"
    )
    tolerance: float = Field(
        default=0.0, ge=0, description="share of the promoted score by which the candidate may be higher"
    )
    apart: bool = Field(
        default=False, description="the candidate's interval must lie wholly below that of the promoted score"
    )
    rollback: bool = Field(default=False, description="go back to the model before; takes only root and name")

    @model_validator(mode="after")
    def _fits(self) -> "PromoteConfig":
        given = [key for key in ("checkpoint", "score") if getattr(self, key) is not None]
        if self.rollback and (given or self.metric is not None):
            given = given or ["metric"]
            raise ValueError(f"rollback takes no {given[0]}")
        if not self.rollback and len(given) < 2:
            raise ValueError("checkpoint and score are needed (or rollback)")
        if self.margin and self.tolerance:
            raise ValueError("give margin or tolerance, not both")
        if self.apart and self.tolerance:
            raise ValueError("give apart or tolerance, not both: what is apart is better")
        return self


@dataclass(frozen=True)
class Verdict:
    """Decision of the gate: whether the candidate passes, the two values it compared, the limit, and why.

    `intervals` is "below", "overlap" or "above": how the candidate's lies to that of the promoted score; "unknown"
    where one of the two is not known.
    """

    passes: bool
    reason: str
    promoted_value: float | None = None
    limit: float | None = None
    intervals: str | None = None


def run(config: PromoteConfig) -> manifest.Manifest:
    """Put the candidate through the gate, or roll back; returns what was decided.

    Metrics of the returned manifest: promoted (whether the candidate is the promoted model now), value, promoted_value
    (of the model before, under the same conditions), limit, intervals (below, overlap, above or unknown), number (of
    the pointer's entry), reason.

    Raises:
        UserError: the manifests do not belong together, the scores cannot be compared, there is nothing to go back to,
            or the store has no conditional writes.
        StorageError: object storage stayed away for too long.
    """
    started = time.monotonic()
    if config.rollback:
        return _rollback(config, started)
    checkpoint = manifest.read(str(config.checkpoint), "checkpoint", "checkpoint")
    score = manifest.read(str(config.score), "score", "score")
    weights, candidate = _candidate(config, checkpoint, score)
    registry.check_conditional_writes(config.root, config.name)
    for _ in range(MAX_TRIES):
        current, etag = registry.read_current(config.root, config.name)
        if current is not None and _same(current, candidate):
            verdict = Verdict(True, "is the promoted model already")
            return _earlier(config, current, candidate) or _decision(config, current, candidate, verdict, started)
        verdict = judge(config, score, candidate, current)
        if not verdict.passes:
            return _decision(config, current, candidate, verdict, started)
        kept = registry.keep_checkpoint(config.root, config.name, checkpoint, weights)
        entry = candidate.model_copy(
            update={
                "checkpoint": kept.file,
                "replaces": current.number if current is not None else None,
            }
        )
        if (now := registry.replace(config.root, entry, current, etag)) is not None:
            return _decision(config, now, candidate, verdict, started)
        _pause()
    raise _busy(config)


def judge(
    config: PromoteConfig, score: manifest.Manifest, candidate: HistoryEntry, current: HistoryEntry | None
) -> Verdict:
    """The gate.

    Raises:
        UserError: the two scores cannot be compared.
    """
    ends = [end for end in (candidate.interval_low, candidate.interval_high) if end is not None]
    for number, what in [(candidate.value, candidate.metric), *((end, "an end of its interval") for end in ends)]:
        if not math.isfinite(number):
            return Verdict(False, f"{what} is {number}")
    if current is None:
        return Verdict(True, "the first model under this name")
    withdrawn = registry.withdrawn(config.root, config.name)
    if candidate.weights_sha256 in withdrawn:
        number = withdrawn[candidate.weights_sha256]
        return Verdict(False, f"these very weights were rolled back (entry {number})", current.value)
    current = _by_metric(current, candidate.metric)
    for key, what in (
        ("metric", "metric"),
        ("protocol_digest", "protocol"),
        ("detector_sha256", "detector"),
    ):
        now, then = getattr(candidate, key), getattr(current, key)
        if now != then:
            raise UserError(
                f"score {config.score}: {what} {now[:12]}, but the promoted model of {config.name} was scored with "
                f"{then[:12]}; score with the same {what}, or promote under another name"
            )
    if candidate.real != current.real:
        current = _score_again(config, score, candidate, current)
    before, intervals = current.value, _intervals(candidate, current)
    # Kernel distances can be below 0: a share of the value itself would move the limit the wrong way there.
    limit = before + abs(before) * (config.tolerance - config.margin)
    # Without a tolerance, equal is not better.
    passes = candidate.value <= limit if config.margin or config.tolerance else candidate.value < limit
    relation = "within" if passes else "above"
    reason = f"{candidate.metric} {candidate.value:.6g} is {relation} the limit {limit:.6g} (promoted: {before:.6g})"
    reason += f"; {_INTERVALS[intervals]}"
    if passes and config.apart and intervals != "below":
        passes, reason = False, f"{reason}, and apart=true asks for one wholly below"
    return Verdict(passes, reason, before, limit, intervals)


_INTERVALS = {
    "below": "its interval lies below the promoted one's",
    "overlap": "the intervals overlap: the choice of the clips may explain the difference",
    "above": "its interval lies above the promoted one's",
    "unknown": "the interval of one of them is not known",
}


def _intervals(candidate: HistoryEntry, current: HistoryEntry) -> str:
    """Position of the candidate's interval to that of the promoted score, in words."""
    if None in (candidate.interval_low, candidate.interval_high, current.interval_low, current.interval_high):
        return "unknown"
    if candidate.interval_high < current.interval_low:  # type: ignore[operator]
        return "below"
    return "above" if candidate.interval_low > current.interval_high else "overlap"  # type: ignore[operator]


def _by_metric(current: HistoryEntry, metric: str) -> HistoryEntry:
    """The promoted entry by a value that its score has beside the one that it was promoted by, where it has it."""
    if current.metric == metric:
        return current
    try:
        values = names.values_of(manifest.read(current.score, "score"))
    except NotThereError:
        return current
    return current.model_copy(update=_of_value(metric, values[metric])) if metric in values else current


def _score_again(
    config: PromoteConfig, score: manifest.Manifest, candidate: HistoryEntry, current: HistoryEntry
) -> HistoryEntry:
    """The promoted entry with its videos' score against the candidate's real clips: fair when the dataset has grown."""
    given = [uri for uri in (config.detector, *config.detectors) if uri is not None]
    if not given:
        raise UserError(
            f"score {config.score}: its real clips are not those of the promoted model's score; give detector=MANIFEST "
            f"and the promoted videos are scored again"
        )
    real = config.real or ScoreFacts.of(score).real
    if score_sides.real_digest(manifest.read(real, "latents", "real")) != score.inputs["real"]:
        raise UserError(f"real {real}: has changed since {config.score} was made; score the candidate again")
    digests = [manifest.read_weights(uri, detectors(), "detector").weights_file().sha256 for uri in given]
    if current.detector_sha256 not in digests:
        raise UserError(f"detector {', '.join(given)}: not the one of the scores by {candidate.metric}")
    from latte.steps import score as scoring

    again = scoring.run(
        scoring.ScoreConfig(
            root=config.root,
            name=score.name,
            videos=current.videos,
            real=real,
            detector=given[digests.index(current.detector_sha256)],
            protocol=protocols.as_given(_value(config, score)[1]),
        )
    )
    return current.model_copy(update=_of_value(candidate.metric, names.values_of(again)[candidate.metric]))


def _of_value(metric: str, value: ScoreValue) -> dict[str, Any]:
    """A score's value as an entry has it."""
    return {
        "metric": metric,
        **value.model_dump(include={"value", "interval_low", "interval_high", "protocol_digest"}),
        "detector_sha256": value.detector,
    }


def _candidate(
    config: PromoteConfig, checkpoint: manifest.Manifest, score: manifest.Manifest
) -> tuple[manifest.Shard, HistoryEntry]:
    """The weights that were scored, and the entry that they would become."""
    videos = manifest.read(ScoreFacts.of(score).videos, "video_set")
    found = [shard for shard in checkpoint.shards if shard.sha256 == videos.inputs["weights"]]
    if not found:
        raise UserError(f"score {config.score}: its videos were not generated by {config.checkpoint}")
    averages = [shard for shard in found if shard.uri.endswith("/ema.safetensors")]
    if not averages:
        raise UserError(f"score {config.score}: of the last weights; promoted are the averaged ones: weights=ema")
    weights = averages[-1]
    metric, value = _value(config, score)
    return weights, HistoryEntry(
        number=0,
        model=config.name,
        checkpoint="",
        weights_sha256=weights.sha256,
        step=registry.step_of(weights),
        score=score.file,
        videos=videos.file,
        **_of_value(metric, value),
        real=score.inputs["real"],
    )


def _value(config: PromoteConfig, score: manifest.Manifest) -> tuple[str, ScoreValue]:
    """The value of a score that counts, with its name.

    Raises:
        UserError: the score has none of the name that is asked for.
    """
    values = names.values_of(score)
    metric = config.metric or next(iter(values))
    if metric not in values:
        raise UserError(f"metric={metric}: score {config.score} has {', '.join(values)}")
    return metric, values[metric]


def _same(current: HistoryEntry, candidate: HistoryEntry) -> bool:
    return (current.weights_sha256, current.score) == (candidate.weights_sha256, candidate.score)


def _rollback(config: PromoteConfig, started: float) -> manifest.Manifest:
    registry.check_conditional_writes(config.root, config.name)
    for _ in range(MAX_TRIES):
        current, etag = registry.read_current(config.root, config.name)
        if current is None:
            raise UserError(f"{config.name}: nothing is promoted under this name in {config.root}")
        earlier = {entry.number: entry for entry in registry.history(config.root, config.name)}
        if current.replaces is None or current.replaces not in earlier:
            raise UserError(f"{config.name}: entry {current.number} has none before it to go back to")
        back = earlier[current.replaces]
        _check_weights(back)
        # `replaces` stays that of the entry gone back to: the next rollback goes one further.
        entry = back.model_copy(update={"rolled_back": current.number})
        if (now := registry.replace(config.root, entry, current, etag)) is not None:
            reason = f"rolled back from entry {current.number} to the model of entry {back.number}"
            return _decision(config, now, back, Verdict(True, reason, current.value), started)
        _pause()
    raise _busy(config)


def _check_weights(back: HistoryEntry) -> None:
    """Read the weights that are gone back to: a model that nobody can load must not become the promoted one.

    Raises:
        StorageError: they are gone, or not those that were promoted.
    """
    kept = manifest.read(back.checkpoint, "checkpoint")
    try:
        registry.check_version(kept.shards)
    except (DamagedError, NotThereError) as error:
        what = error.what if isinstance(error, DamagedError) else str(error)
        raise StorageError(
            f"{what}; the weights of entry {back.number} cannot be gone back to: `latte verify ROOT --repair` puts "
            "them back where a run still has them, or put a copy there"
        ) from None
    if back.weights_sha256 not in [shard.sha256 for shard in kept.shards]:
        raise StorageError(f"{kept.file}: of other weights than entry {back.number} says; nothing was rolled back")


def _earlier(config: PromoteConfig, current: HistoryEntry, candidate: HistoryEntry) -> manifest.Manifest | None:
    """The decision that has promoted the candidate, with its reason: a step that is tried again decides nothing new."""
    return _place(config, current, candidate).found


def _place(config: PromoteConfig, current: HistoryEntry | None, candidate: HistoryEntry) -> Place:
    decisions = storage.join(registry.place(config.root, config.name), "decisions")
    score = uris.relative(candidate.score, decisions, config.root)  # the same decision when the root has moved
    number = current.number if current is not None else 0
    return Place.under("promotion", manifest.fingerprint("promotion", _settings(config), score, number), decisions)


def _settings(config: PromoteConfig) -> dict[str, Any]:
    settings = config.model_dump(include={"margin", "tolerance", "rollback"})
    # Came later: decisions that were made before keep their place.
    settings |= {key: value for key in ("apart", "metric") if (value := getattr(config, key))}
    return settings


def _decision(
    config: PromoteConfig, current: HistoryEntry | None, candidate: HistoryEntry, verdict: Verdict, started: float
) -> manifest.Manifest:
    number = current.number if current is not None else 0
    metrics = {"promoted": int(verdict.passes), "number": number, "value": candidate.value, "reason": verdict.reason}
    for key in ("promoted_value", "limit", "intervals"):
        if (value := getattr(verdict, key)) is not None:
            metrics[key] = value
    return manifest.finish(
        _place(config, current, candidate).manifest(
            config.name,
            inputs={"weights": candidate.weights_sha256, "score": candidate.score},
            config={
                **_settings(config),
                "metric": candidate.metric,
                "current": current.model_dump() if current is not None else {},
            },
            metrics=metrics,
            seconds=time.monotonic() - started,
        ),
        config.root,
    )


def _pause() -> None:
    """Whoever came second waits a moment, each for another time."""
    time.sleep(random.uniform(0.01, 0.1))  # noqa: S311


def _busy(config: PromoteConfig) -> StorageError:
    return StorageError(f"{config.name}: its pointer was moved by others {MAX_TRIES} times; try again")
