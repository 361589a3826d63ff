"""Words of a report on a night and of those before it: who is who, what the gate decided, what is new, the trend."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from latte import storage, units
from latte.data import encode_plan
from latte.data.latents import INDEX, EncodedVideo, read_index
from latte.errors import LatteError, NotThereError
from latte.facts import DecisionFacts, DecisionMetrics, NightFacts, ReportFacts, RunMetrics, VideoSetFacts
from latte.report import metric_words, words
from latte.report.words import SetLabel
from latte.storage import manifest, registry
from latte.storage.registry import HistoryEntry

# Reports that are looked through for those of the last nights.
_LOOKED_THROUGH = 100
_READ_THREADS = 8


@dataclass(frozen=True)
class Decision:
    """The gate's decision with the two models that it is about.

    Attributes:
        made: its manifest.
        metrics: what was decided, and why.
        weights: SHA-256 of tonight's weights.
        before: the entry that was promoted until tonight; None where there was none.
    """

    made: manifest.Manifest
    metrics: DecisionMetrics
    weights: str
    before: HistoryEntry | None

    @property
    def is_first(self) -> bool:
        """Whether nothing had been promoted before."""
        return self.before is None


def decision(root: str, promotion: manifest.Manifest) -> Decision:
    """A decision, and what had been promoted when it was made.

    Args:
        root: that the registry lies under.
        promotion: manifest of the decision.

    Raises:
        UserError: the registry holds something else.
    """
    facts, weights = DecisionFacts.of(promotion), promotion.inputs.get("weights", "")
    now = HistoryEntry.model_validate(facts.current) if facts.current else None
    before = now
    if now is not None and now.weights_sha256 == weights:
        earlier = {entry.number: entry for entry in registry.history(root, promotion.name)}
        before = earlier.get(now.replaces) if now.replaces is not None else None
    return Decision(promotion, DecisionMetrics.of(promotion), weights, before)


def labels(sets: Sequence[manifest.Manifest], decided: Decision, made_at: str, finetuned: bool) -> list[SetLabel]:
    """Labels of a night's sets: by the role of the model and its day."""
    until = "until tonight" if decided.metrics.promoted else "model"
    by_role = []
    for videos, other in zip(sets, words.set_labels(sets, finetuned), strict=True):
        weights = videos.inputs.get("weights")
        if weights == decided.weights:
            by_role.append(SetLabel(f"Tonight's model, {units.day(made_at)}", "tonight's model"))
        elif decided.before is not None and weights == decided.before.weights_sha256:
            day = units.day(decided.before.promoted_at)
            by_role.append(SetLabel(f"Promoted {until}, {day}", f"the model promoted on {day}", True))
        else:
            untrained = other.short.startswith("untrained")
            short = "the untrained model" if untrained else f"the model {other.short}"
            by_role.append(SetLabel(other.short.capitalize(), short, True))
    return words.told_apart(by_role, sets)


def label_of_set(root: str, videos: manifest.Manifest, checkpoint: manifest.Manifest) -> SetLabel:
    """Label of a set by the model that made it: the promoted one of a day, a checkpoint, or published weights."""
    place = root.rstrip("/") + "/registry/"
    if checkpoint.uri.startswith(place):
        model = checkpoint.uri.removeprefix(place).split("/")[0]
        current, _ = registry.read_current(root, model)
        entries = [*registry.history(root, model), *([current] if current is not None else [])]
        weights = videos.inputs.get("weights")
        entry = next((each for each in reversed(entries) if each.weights_sha256 == weights), None)
        if entry is not None:
            day = units.day(entry.promoted_at)
            return SetLabel(f"Promoted model, {day}", f"the model {model} that was promoted on {day}")
    step = VideoSetFacts.of(videos).step
    if step is None:
        return SetLabel(f"Published weights, {checkpoint.name}", f"the published weights {checkpoint.name}")
    return SetLabel(f"Checkpoint {checkpoint.name}, step {step:,}", f"{checkpoint.name} after {step:,} steps")


def verdict(decided: Decision) -> dict[str, str]:
    """The headline of a night: the gate's decision first, then its reason."""
    told = decided.metrics
    metric = DecisionFacts.of(decided.made).metric
    short = metric_words.named(metric)[0]
    reason = told.reason.replace(metric, short) if metric else told.reason
    sentence = f"{reason[:1].upper()}{reason[1:]}."
    if decided.is_first and told.promoted:
        score = f" {short} to real clips: {words.number(told.value)}." if told.value is not None else ""
        return {"tone": "good", "headline": "Tonight's model was promoted, as the first", "sentence": sentence + score}
    if told.promoted:
        return {"tone": "good", "headline": "Tonight's model was promoted", "sentence": sentence}
    return {"tone": "open", "headline": "Tonight's model was not promoted", "sentence": sentence}


def verdict_of_set(label: SetLabel, clips: int, board: dict[str, Any] | None) -> dict[str, str]:
    """The headline of a set in bulk: how many clips of which model, and their score."""
    headline = f"{clips:,} {'clip' if clips == 1 else 'clips'} of {label.short}"
    if board is None:
        return {"tone": "open", "headline": headline, "sentence": "Their distance to the real ones was not measured."}
    bar = board["bars"][0]
    interval = ""
    if bar["low"] is not None and bar["high"] is not None:
        interval = f" ({board['interval']} {words.number(bar['low'])} to {words.number(bar['high'])})"
    return {
        "tone": "open",
        "headline": headline,
        "sentence": f"{board['short']} to real clips: {words.number(bar['value'])}{interval}. Lower is better.",
    }


def rows(decided: Decision) -> list[tuple[str, str]]:
    """The decision in full, for a table."""
    told = decided.metrics
    lines = [
        ("Decision", "promoted" if told.promoted else "not promoted"),
        ("Reason, as the gate tells it", told.reason),
    ]
    values = (("Tonight's score", told.value), ("Promoted model's score", told.promoted_value), ("Limit", told.limit))
    lines += [(what, f"{value:.6g}") for what, value in values if value is not None]
    if decided.before is not None:
        before = decided.before
        lines.append((f"Promoted {'until tonight' if told.promoted else 'still'}", _told(before)))
    lines.append(("Entry of the registry", str(told.number) if told.number else "none"))
    return lines


def _told(entry: HistoryEntry) -> str:
    return f"entry {entry.number}, promoted on {units.day(entry.promoted_at)}, step {entry.step:,}"


def earlier(root: str, name: str, limit: int) -> list[NightFacts]:
    """Lines of the newest reports of this name on their nights, oldest first; what cannot be read is passed over."""
    try:
        listed = storage.list_objects(storage.join(root, "reports", name))
    except NotThereError:
        return []
    places = [uri for uri in listed if uri.endswith(f"/{manifest.NAME}")]
    places.sort(key=lambda uri: listed[uri].modified_s)
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        found = [night for night in pool.map(_night, places[-_LOOKED_THROUGH:]) if night is not None]
    return sorted(found, key=lambda night: night.made_at)[-limit:] if limit else []


def _night(uri: str) -> NightFacts | None:
    try:
        return ReportFacts.of(manifest.read(uri, "report")).night
    except LatteError:
        return None


def state_of(latents: manifest.Manifest) -> str:
    """URI of the manifest of a dataset as it is now; that of its place is of the newest state, whatever comes."""
    state = storage.join(latents.shard(f"/{INDEX}").uri.rpartition("/")[0], encode_plan.STATE)
    return state if storage.exists(state) else latents.file


def news(latents: manifest.Manifest, videos: Sequence[EncodedVideo], last: NightFacts | None) -> dict[str, Any] | None:
    """News of a dataset: what it had not when the last report was made; None where that is not known.

    Args:
        latents: the dataset's manifest.
        videos: in it.
        last: of the last report.
    """
    if last is None or not last.state:
        return None
    try:
        then = manifest.read(last.state, "latents")
        _, known = read_index(then)
    except LatteError:  # deleted, or damaged: no reason to go without a report
        return None
    contents = {video.id: video.content for video in known}
    new = [video for video in videos if contents.get(video.id, "") != video.content]
    left_out = {reject.item for reject in then.rejects}
    return {
        "since": units.day(last.made_at),
        "videos": len(new),
        "frames": sum(video.num_frames for video in new),
        "gone": len(contents.keys() - {video.id for video in videos}),
        "rejects": [reject for reject in latents.rejects if reject.item not in left_out],
        "ids": {video.id for video in new},
    }


def trend(nights: Sequence[NightFacts]) -> dict[str, Any] | None:
    """The nights as curves and as rows, the newest last; None where there is only one."""
    from markupsafe import Markup

    from latte.report import plots

    if len(nights) < 2:
        return None
    now = nights[-1]
    days = [units.day(night.made_at) for night in nights]
    alike = [night.comparable == now.comparable for night in nights]
    short = metric_words.named(now.metric)[0] if now.metric else "Score"
    drawn: list[tuple[str, list[float | None]]] = [
        (short, [night.value if same else None for night, same in zip(nights, alike, strict=True)]),
        ("Loss at the end of training", [night.loss for night in nights]),
        ("Minutes of work", [night.seconds / 60 for night in nights]),
    ]
    curves = []
    for title, values in drawn:
        if sum(value is not None for value in values) > 1:
            marks = [night.promoted is not False for night in nights]
            # Our own drawing: numbers and fixed words.
            curves.append(
                {"title": title, "svg": Markup(plots.trend_chart(values, marks, days, title))}  # noqa: S704
            )
    return {
        "curves": curves,
        "short": short,
        "gated": any(night.promoted is not None for night in nights),
        "trained": any(night.loss is not None for night in nights),
        "rows": [
            {
                "day": day,
                "decision": {True: "promoted", False: "not promoted", None: ""}[night.promoted],
                "score": words.number(night.value) if night.value is not None else "none",
                "alike": same,
                "before": words.number(night.before) if night.before is not None else "",
                "loss": f"{night.loss:.3g}" if night.loss is not None else "",
                "seconds": night.seconds,
                "videos": night.videos,
                "clips": night.clips,
            }
            for night, day, same in zip(nights, days, alike, strict=True)
        ],
        "all_alike": all(alike),
    }


def facts(
    made_at: str,
    latents: manifest.Manifest,
    checkpoint: manifest.Manifest,
    sets: Sequence[manifest.Manifest],
    boards: Sequence[dict[str, Any]],
    loss: dict[str, Any] | None,
    seconds: float,
    decided: Decision | None,
) -> NightFacts:
    """Facts about this report for later ones.

    Args:
        made_at: when it is made, ISO 8601.
        latents: the dataset.
        checkpoint: the model.
        sets: the generated sets, that of the model the page is about first.
        boards: the scores, as `words.board` has them.
        loss: the curve, as `sections.loss` has it.
        seconds: that the work took.
        decided: the gate's decision.
    """
    gated = DecisionFacts.of(decided.made).metric if decided is not None else ""
    board = next((each for each in boards if each["metric"] == gated), boards[0] if boards else None)
    bars = board["bars"] if board else []
    own = next((bar for bar in bars if bar["tone"] == "strong"), None)
    before = next((bar for bar in bars if bar["tone"] == "muted"), None)
    at = RunMetrics.of(checkpoint) if checkpoint.kind == "checkpoint" else None
    last = loss["last"] if loss else at.loss if at is not None and decided is not None else None
    return NightFacts(
        made_at=made_at,
        metric=board["metric"] if board else "",
        comparable=board["comparable"] if board else "",
        value=own["value"] if own else None,
        low=own["low"] if own else None,
        high=own["high"] if own else None,
        before=before["value"] if before else None,
        promoted=None if decided is None else decided.metrics.promoted,
        loss=last,
        steps=at.step if at is not None else None,
        seconds=seconds,
        videos=latents.counts.get("videos", 0),
        clips=sets[0].counts.get("videos", 0),
        state=state_of(latents),
    )
