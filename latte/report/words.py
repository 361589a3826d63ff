"""The words and numbers of a report: pure functions from manifests to what the page says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latte.facts import LatentsFacts, ScoreFacts, ScoreMetrics, ScoreValue, VideoSetFacts
from latte.report import metric_words
from latte.storage.manifest import Manifest, fingerprint


@dataclass(frozen=True)
class SetLabel:
    """A generated set as the page names it.

    Attributes:
        title: of its column and its bar.
        short: the same within a sentence.
        is_before: whether it is what the other sets are held against.
    """

    title: str
    short: str
    is_before: bool = False


def set_labels(sets: Sequence[Manifest], finetuned: bool = False) -> list[SetLabel]:
    """A label for each generated set, by the step of its checkpoint; names tell apart what steps do not.

    Step 0 of a run that starts from given weights is not untrained, only before this training.
    """
    steps = [VideoSetFacts.of(videos).step for videos in sets]
    start = "before training" if finetuned else "untrained"
    shorts = [start if not step else f"{step:,} steps" for step in steps]
    trained = [short for short in shorts if short != start]
    if len(trained) == 1:
        shorts = ["trained" if short in trained else short for short in shorts]
    return told_apart(
        [SetLabel(f"Generated, {short}", short, not step) for short, step in zip(shorts, steps, strict=True)], sets
    )


def told_apart(labels: Sequence[SetLabel], sets: Sequence[Manifest]) -> list[SetLabel]:
    """The labels, with the sets' names where they would be the same."""
    titles = [label.title for label in labels]
    return [
        label
        if titles.count(label.title) == 1
        else SetLabel(f"{label.title} ({videos.name})", f"{label.short} ({videos.name})", label.is_before)
        for label, videos in zip(labels, sets, strict=True)
    ]


@dataclass(frozen=True)
class Member:
    """A value of a score on a board: the score, the value, and the set that it is of."""

    score: Manifest
    value: ScoreValue
    label: SetLabel


def board(metric: str, members: Sequence[Member]) -> dict[str, Any]:
    """Scores under one metric and protocol as bars: values, intervals and their places in per cent of the scale."""
    bars: list[dict[str, Any]] = []
    for member in members:
        value, label = member.value, member.label
        bars.append(
            {
                "label": label.title,
                "short": label.short,
                "value": value.value,
                "low": value.interval_low,
                "high": value.interval_high,
                "clips": value.clips,
                # A kernel distance has no bias: its estimate is the value.
                "unbiased": None if value.unbiased_estimate == value.value else value.unbiased_estimate,
                "notes": _notes(metric, member.score),
                "tone": "muted" if label.is_before else "strong",
            }
        )
    # Bars leave room on the right for the whisker's end; kernel distances can all be below 0.
    scale = max(0.0, *(end for bar in bars for end in (bar["value"], bar["high"] or 0.0))) * 1.04 or 1.0
    for bar in bars:
        for key in ("value", "low", "high"):
            bar[f"{key}_percent"] = None if bar[key] is None else round(100 * max(bar[key], 0.0) / scale, 2)
    first = members[0].value
    confidence = first.protocol.get("confidence")
    short, title, text = metric_words.named(metric)
    return {
        "metric": metric,
        "short": short,
        "title": title,
        "text": text,
        "note": metric_words.note(metric),
        "comparable": fingerprint(metric, first.protocol, first.detector),
        "bars": bars,
        "interval": f"{100 * confidence:g}\u202f% interval" if confidence else "interval",
        "protocol": comparison(members),
    }


def verdict(scores: Mapping[str, Any] | None) -> dict[str, str]:
    """The headline, the one sentence below it and its tone ("good", "open", "bad"), from a board of scores."""
    if scores is None:
        return {
            "tone": "open",
            "headline": "This run has no score",
            "sentence": "Clips were generated, but their distance to the real ones was not measured.",
        }
    bars = scores["bars"]
    trained = next((bar for bar in bars if bar["tone"] == "strong"), None)
    untrained = next((bar for bar in bars if bar["tone"] == "muted"), None)
    if trained is None or untrained is None:
        return {
            "tone": "open",
            "headline": f"{scores['short']} to real clips: {number(bars[0]['value'])}",
            "sentence": "Lower is better. There is no score of the model before training to hold it against.",
        }
    after, before = trained["value"], untrained["value"]
    numbers = f"{number(before)} before training, {number(after)} after"
    separate = None not in (trained["high"], untrained["low"]) and trained["high"] < untrained["low"]
    if after >= before:
        if trained["low"] is not None and untrained["high"] is not None and trained["low"] <= untrained["high"]:
            return {
                "tone": "open",
                "headline": "Generated video is as close to real video as before training, as far as can be measured",
                "sentence": f"{scores['short']} to real clips: {numbers}. Lower is better; the two intervals overlap.",
            }
        return {
            "tone": "bad",
            "headline": "Training did not bring generated video closer to real video",
            "sentence": f"{scores['short']} to real clips: {numbers}. Lower is better.",
        }
    share = f"{100 * (1 - after / before):.0f}\u202f%" if before > 0 else "all"
    if separate:
        return {
            "tone": "good",
            "headline": "Training brought generated video clearly closer to real video",
            "sentence": f"{scores['short']} to real clips: {numbers}, {share} less. Lower is better, and the two "
            "intervals do not overlap.",
        }
    return {
        "tone": "open",
        "headline": "Training brought generated video closer to real video, by less than the measurement can tell",
        "sentence": f"{scores['short']} to real clips: {numbers}, {share} less. Lower is better, but the two intervals "
        "overlap or are not known.",
    }


def _notes(metric: str, score: Manifest) -> list[str]:
    """Notes of a score on this value; those of a score by several detectors begin with the value that they are on."""
    others = [name for name in ScoreMetrics.of(score).values if name != metric]
    mine = [text for text in ScoreFacts.of(score).notes if not text.startswith(tuple(f"{name}: " for name in others))]
    return [text.removeprefix(f"{metric}: ") for text in mine]


def comparison(members: Sequence[Member]) -> dict[str, Any]:
    """Protocols of the scores of one board: each setting once where all agree, once a score where not."""
    columns = [{key.removeprefix("protocol."): text for key, text in settings_of(each)} for each in members]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = []
    for key in keys:
        values = [column.get(key, "none") for column in columns]
        rows.append({"key": key, "values": values[:1] if len(set(values)) == 1 else values})
    return {
        "labels": [member.label.title for member in members],
        "rows": rows,
    }


def settings_of(member: Member) -> list[tuple[str, str]]:
    """A value's settings, the protocol first, counts, and the digests that are not among the settings, as rows."""
    score, value = member.score, member.value
    own = {"protocol": value.protocol, "protocol_digest": value.protocol_digest} if value.protocol else {}
    if value.detector != score.inputs.get("detector"):
        own["detector"] = {"sha256": value.detector}
    rows = flat({"protocol": {}, **score.config, **own, **score.counts}, leave_out=("notes",))
    known = {text for _, text in rows}
    return rows + [(f"digest.{role}", digest) for role, digest in score.inputs.items() if digest not in known]


def flat(values: Mapping[str, Any], leave_out: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Nested settings as (dotted key, value as text), in their order."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if key in leave_out:
            continue
        if isinstance(value, Mapping):
            rows += [(f"{key}.{inner}", text) for inner, text in flat(value)]
        else:
            rows.append((key, text_of(value)))
    return rows


def text_of(value: Any) -> str:
    """A setting's value as a person writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(text_of(item) for item in value) or "none"
    return str(value)


def method(videos: Manifest) -> str:
    """Sampling of a set in a few words."""
    names = {"ddpm": "DDPM", "ddim": "DDIM", "dpm-solver++": "DPM-Solver++"}
    facts = VideoSetFacts.of(videos)
    guided = f", guidance {facts.cfg_scale:g}" if facts.cfg_scale else ""
    return f"{names.get(facts.method, facts.method)}, {facts.num_sampling_steps} steps{guided}"


def class_name(classes: Sequence[str], label: int | None) -> str:
    """The name of a label; videos without one stand under "all videos"."""
    if label is None:
        return "all videos"
    return classes[label] if 0 <= label < len(classes) else f"class {label}"


def latent_shape(latents: Manifest) -> str:
    """Channels and sides of one frame's latents."""
    facts = LatentsFacts.of(latents)
    return f"{facts.latent_channels} × {facts.latent_size} × {facts.latent_size}"


def bars_of_seconds(rows: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Times with their share of the longest, in per cent, and their sum."""
    longest = max((seconds for _, seconds in rows), default=0.0) or 1.0
    return {
        "rows": [
            {"step": step, "seconds": seconds, "share": round(100 * seconds / longest, 1)} for step, seconds in rows
        ],
        "total": sum(seconds for _, seconds in rows),
    }


def number(value: float) -> str:
    """Three or four significant digits, without an exponent where a person would write none."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def count(value: int) -> str:
    """A large count in words: 4.6 million."""
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:,}"
