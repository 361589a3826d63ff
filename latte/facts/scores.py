"""Facts about scores, the gate's decisions and reports."""

from typing import Any

from latte.facts.base import Facts, Metrics


class ScoreFacts(Facts):
    """Facts about a score.

    Attributes:
        protocol: its fields (`latte.metrics.protocol.Protocol`).
        protocol_digest: SHA-256 over them.
        detector: SHA-256 of its weights, and whether they are random.
        videos: place of the generated videos.
        real: place of the encoded dataset that names the real ones.
        split: of that dataset.
        image_size: side of a frame in pixels.
        notes: for a reader of the number.
    """

    protocol: dict[str, Any] = {}
    protocol_digest: str = ""
    detector: dict[str, Any] = {}
    videos: str = ""
    real: str = ""
    split: str | None = None
    image_size: int | None = None
    notes: list[str] = []


class ScoreValue(Facts):
    """A value of a score that has several, with what it needs to be compared.

    Attributes:
        value: what was measured.
        interval_low: lower end of the jackknife's interval; None where there are too few clips for one.
        interval_high: its upper end.
        unbiased_estimate: the value at endless clips.
        clips: of each side.
        kind: of the detector (`latte.kinds`).
        detector: SHA-256 of its weights.
        protocol: fields of the protocol, with those that are this detector's own.
        protocol_digest: SHA-256 over them.
    """

    value: float
    interval_low: float | None = None
    interval_high: float | None = None
    unbiased_estimate: float | None = None
    clips: int | None = None
    kind: str = ""
    detector: str = ""
    protocol: dict[str, Any] = {}
    protocol_digest: str = ""


class ScoreMetrics(Metrics):
    """Numbers that stand beside the value of a score; its own name is among `latte.metrics.names`.

    Attributes:
        interval_low: lower end of the jackknife's interval.
        interval_high: its upper end.
        unbiased_estimate: the value at endless clips.
        clips: of each side.
        values: of all metrics, by their names, the first one's included; empty in scores of early versions.
    """

    interval_low: float | None = None
    interval_high: float | None = None
    unbiased_estimate: float | None = None
    clips: int | None = None
    values: dict[str, ScoreValue] = {}


class DecisionFacts(Facts):
    """Facts about a decision of the gate.

    Attributes:
        metric: name of the value that was compared.
        current: the pointer's entry once it was decided (`registry.HistoryEntry`); empty where there is none.
    """

    metric: str = ""
    current: dict[str, Any] = {}


class DecisionMetrics(Metrics):
    """Decision of the gate, by which numbers, and why.

    Attributes:
        promoted: whether the candidate is the promoted model now.
        number: of the pointer's entry.
        value: the candidate's score.
        reason: in words.
        promoted_value: score of the model before under the same conditions; None where there was none.
        limit: that the candidate had to stay below.
        intervals: how the candidate's interval lies to the promoted one's: "below", "overlap", "above" or "unknown".
    """

    promoted: bool = False
    number: int = 0
    value: float | None = None
    reason: str = ""
    promoted_value: float | None = None
    limit: float | None = None
    intervals: str | None = None


class NightFacts(Facts):
    """One report's line on its night or set, for the trend in later ones.

    Attributes:
        made_at: when the report was made, in UTC, ISO 8601.
        metric: name of the score's value; "" without a score.
        comparable: digest of what scores must share to stand in one trend: metric, protocol, detector.
        value: the score of what is new in this report.
        low: lower end of its interval.
        high: upper end of it.
        before: the score of the promoted model, measured in the same night.
        promoted: what the gate decided; None where there was no gate.
        loss: smoothed loss at the end of training.
        steps: of training.
        seconds: that the work of this night took.
        videos: in the dataset.
        clips: that were generated.
        state: manifest of the dataset as it was.
    """

    made_at: str
    metric: str = ""
    comparable: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    before: float | None = None
    promoted: bool | None = None
    loss: float | None = None
    steps: int | None = None
    seconds: float = 0.0
    videos: int = 0
    clips: int = 0
    state: str = ""


class ReportFacts(Facts):
    """Facts about a report; `night` is None in those of versions before."""

    night: NightFacts | None = None
