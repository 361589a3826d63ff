"""The promote step: the gate between a trained checkpoint and the model that is in use.

A candidate passes when its score is better than the promoted model's by `margin`, or worse by no more than `tolerance`.
Both scores must have the same protocol, detector and real clips. Where the dataset has grown since the last promotion,
the promoted model's own videos are scored again, against the candidate's real clips; everything else is refused.
"""

import math
import random
import time
from dataclasses import dataclass

from pydantic import Field, model_validator

from latte import manifest, registry, score_sides, storage, uris
from latte.config import Config, Root
from latte.errors import StorageError, UserError
from latte.registry import Entry
from latte.steps.report_words import metric_of

MAX_TRIES = 50


class PromoteConfig(Config):
    """What to promote, and what it must reach."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the model in the registry; its pointer is registry/<name>/current.json")
    checkpoint: str | None = Field(default=None, description="manifest of the candidate's training run (file or URI)")
    score: str | None = Field(default=None, description="manifest of the candidate's score (file or URI)")
    detector: str | None = Field(
        default=None, description="manifest of the I3D weights; needed where the real clips are not those of last time"
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
    rollback: bool = Field(default=False, description="go back to the model before; takes only root and name")

    @model_validator(mode="after")
    def _fits(self) -> "PromoteConfig":
        given = [key for key in ("checkpoint", "score") if getattr(self, key) is not None]
        if self.rollback and given:
            raise ValueError(f"rollback takes no {given[0]}")
        if not self.rollback and len(given) < 2:
            raise ValueError("checkpoint and score are needed (or rollback)")
        if self.margin and self.tolerance:
            raise ValueError("give margin or tolerance, not both")
        return self


@dataclass(frozen=True)
class Verdict:
    """What the gate says: whether the candidate passes, the two values it compared, the limit, and why."""

    passes: bool
    reason: str
    promoted_value: float | None = None
    limit: float | None = None


def run(config: PromoteConfig) -> manifest.Manifest:
    """Put the candidate through the gate, or roll back; returns what was decided.

    Metrics of the returned manifest: promoted (whether the candidate is the promoted model now), value, promoted_value
    (of the model before, under the same conditions), limit, number (of the pointer's entry), reason.

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
            return _decision(config, current, candidate, Verdict(True, "is the promoted model already"), started)
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


def judge(config: PromoteConfig, score: manifest.Manifest, candidate: Entry, current: Entry | None) -> Verdict:
    """The gate.

    Raises:
        UserError: the two scores cannot be compared.
    """
    if not math.isfinite(candidate.value):
        return Verdict(False, f"{candidate.metric} is {candidate.value}")
    if current is None:
        return Verdict(True, "the first model under this name")
    withdrawn = registry.withdrawn(config.root, config.name)
    if candidate.weights_sha256 in withdrawn:
        number = withdrawn[candidate.weights_sha256]
        return Verdict(False, f"these very weights were rolled back (entry {number})", current.value)
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
    before = current.value if candidate.real == current.real else _score_again(config, score, current)
    limit = before * (1.0 - config.margin + config.tolerance)
    # Without a tolerance, equal is not better.
    passes = candidate.value <= limit if config.margin or config.tolerance else candidate.value < limit
    relation = "within" if passes else "above"
    reason = f"{candidate.metric} {candidate.value:.6g} is {relation} the limit {limit:.6g} (promoted: {before:.6g})"
    return Verdict(passes, reason, before, limit)


def _score_again(config: PromoteConfig, score: manifest.Manifest, current: Entry) -> float:
    """The promoted model's videos against the candidate's real clips: a fair comparison when the dataset has grown."""
    if config.detector is None:
        raise UserError(
            f"score {config.score}: its real clips are not those of the promoted model's score; give detector=MANIFEST "
            f"and the promoted videos are scored again"
        )
    real = config.real or score.config["real"]
    if score_sides.real_digest(manifest.read(real, "latents", "real")) != score.inputs["real"]:
        raise UserError(f"real {real}: has changed since {config.score} was made; score the candidate again")
    detector = manifest.read(config.detector, "weights", "detector")
    if detector.weights_file().sha256 != current.detector_sha256:
        raise UserError(f"detector {config.detector}: not the one of the scores")
    from latte.steps import score as scoring

    again = scoring.run(
        scoring.ScoreConfig(
            root=config.root,
            name=score.name,
            videos=current.videos,
            real=real,
            detector=config.detector,
            protocol=score.config["protocol"],
        )
    )
    return float(again.metrics[current.metric])


def _candidate(
    config: PromoteConfig, checkpoint: manifest.Manifest, score: manifest.Manifest
) -> tuple[manifest.Shard, Entry]:
    """The weights that were scored, and the entry that they would become."""
    videos = manifest.read(score.config["videos"], "video_set")
    found = [shard for shard in checkpoint.shards if shard.sha256 == videos.inputs["weights"]]
    if not found:
        raise UserError(f"score {config.score}: its videos were not generated by {config.checkpoint}")
    averages = [shard for shard in found if shard.uri.endswith("/ema.safetensors")]
    if not averages:
        raise UserError(f"score {config.score}: of the last weights; promoted are the averaged ones: weights=ema")
    weights = averages[-1]
    metric = metric_of(score)
    return weights, Entry(
        number=0,
        model=config.name,
        checkpoint="",
        weights_sha256=weights.sha256,
        step=registry.step_of(weights),
        score=score.file,
        videos=videos.file,
        metric=metric,
        value=float(score.metrics[metric]),
        protocol_digest=score.config["protocol_digest"],
        detector_sha256=score.inputs["detector"],
        real=score.inputs["real"],
    )


def _same(current: Entry, candidate: Entry) -> bool:
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
        kept = manifest.read(back.checkpoint, "checkpoint")
        if not all(manifest.is_whole(shard) for shard in kept.shards):
            raise StorageError(f"{kept.uri}: the weights of entry {back.number} are gone or damaged")
        # `replaces` stays that of the entry gone back to: the next rollback goes one further.
        entry = back.model_copy(update={"rolled_back": current.number})
        if (now := registry.replace(config.root, entry, current, etag)) is not None:
            reason = f"rolled back from entry {current.number} to the model of entry {back.number}"
            return _decision(config, now, back, Verdict(True, reason, current.value), started)
        _pause()
    raise _busy(config)


def _decision(
    config: PromoteConfig, current: Entry | None, candidate: Entry, verdict: Verdict, started: float
) -> manifest.Manifest:
    number = current.number if current is not None else 0
    place = storage.join(registry.place(config.root, config.name), "decisions")
    settings = config.model_dump(include={"margin", "tolerance", "rollback"})
    score = uris.relative(candidate.score, place, config.root)  # the same decision when the root has moved
    fingerprint = manifest.fingerprint("promotion", settings, score, number)
    metrics = {"promoted": int(verdict.passes), "number": number, "value": candidate.value, "reason": verdict.reason}
    for key in ("promoted_value", "limit"):
        if (value := getattr(verdict, key)) is not None:
            metrics[key] = value
    return manifest.finish(
        manifest.Manifest(
            kind="promotion",
            name=config.name,
            uri=storage.join(place, fingerprint[:16]),
            fingerprint=fingerprint,
            inputs={"weights": candidate.weights_sha256, "score": candidate.score},
            config={
                **settings,
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
