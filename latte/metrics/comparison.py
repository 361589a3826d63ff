"""Two scores side by side, or what keeps them from being compared."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from latte.errors import UserError
from latte.facts import ScoreMetrics, ScoreValue
from latte.metrics import names
from latte.storage import manifest


def compare(first: str, second: str) -> str:
    """A table of two scores: values, intervals and their difference, for every metric that both have.

    Args:
        first: manifest of a score (file or URI).
        second: manifest of another one.

    Returns:
        Lines of text.

    Raises:
        UserError: not scores, or none of their metrics is of one protocol, detector and real side in both; every
            difference is named.
    """
    scores = [manifest.read(uri, "score") for uri in (first, second)]
    sides = [names.values_of(score) for score in scores]
    for score in scores:
        distance(score)
    # By metric, all that keeps it from being compared.
    obstacles = {name: differences(scores, sides, name) for name in sides[0] if name in sides[1]}
    comparable = [name for name, why in obstacles.items() if not why]
    if not comparable:
        heads = [next(iter(side)) for side in sides]
        why = obstacles[heads[0]] if heads[0] == heads[1] else differences(scores, sides, *heads)
        raise UserError(f"{first} and {second} cannot be compared: " + "; ".join(why))
    lines = [line for name in comparable for line in _table(name, scores, [side[name] for side in sides])]
    for name, why in obstacles.items():
        if why:
            lines.append(f"{name} cannot be compared: " + "; ".join(why))
    for title, mine, other in (("A", *sides), ("B", *sides[::-1])):
        lines += [f"{name}: only {title} has it" for name in mine if name not in other]
    return "\n".join(lines)


def _table(name: str, scores: list[manifest.Manifest], values: list[ScoreValue]) -> list[str]:
    lines = [f"{'':<6}{name:>20}  {'interval':<26}{'at endless N':<16}name"]
    for title, score, value in zip("AB", scores, values, strict=True):
        low, high, endless = map(_number, (value.interval_low, value.interval_high, value.unbiased_estimate))
        lines.append(f"{title:<6}{value.value:>20.5g}  {f'{low} to {high}':<26}{endless:<16}{score.name}")
    ends = [(value.interval_low, value.interval_high) for value in values]
    apart = any(low is not None and high is not None and low > high for (low, _), (_, high) in (ends, ends[::-1]))
    words = "the intervals are apart" if apart else "the intervals overlap"
    lines.append(f"{'A - B':<6}{values[0].value - values[1].value:>20.5g}  {words}")
    lines.append(f"both: {values[0].clips} clips, protocol {values[0].protocol_digest[:16]}")
    return lines


def differences(
    scores: Sequence[manifest.Manifest], sides: Sequence[Mapping[str, ScoreValue]], *metric: str
) -> list[str]:
    """Differences that make a metric of two scores incomparable, most telling first; empty where it can be compared.

    Args:
        scores: the two.
        sides: their values by name.
        metric: its name, or the two names that it has.
    """
    lines = []
    values = [side[name] for side, name in zip(sides, (metric[0], metric[-1]), strict=True)]
    if values[0].protocol_digest != values[1].protocol_digest:
        fields = [value.protocol for value in values]
        changed = [key for key in sorted({*fields[0], *fields[1]}) if fields[0].get(key) != fields[1].get(key)]
        lines += [f"protocol.{key} {_shown(fields[0], key)} and {_shown(fields[1], key)}" for key in changed]
        if not changed:
            lines.append(f"protocol digest {_pair(values[0].protocol_digest, values[1].protocol_digest)}")
    if values[0].detector != values[1].detector:
        lines.append(f"detector {_pair(values[0].detector, values[1].detector)}")
    if scores[0].inputs["real"] != scores[1].inputs["real"]:
        lines.append(f"real side {_pair(scores[0].inputs['real'], scores[1].inputs['real'])}")
    if not lines and metric[0] != metric[-1]:
        lines.append(f"metric {metric[0]} and {metric[-1]}")
    return lines


def distance(score: manifest.Manifest) -> tuple[str, float]:
    """Name and value of the score's distance."""
    distances = [(key, float(value)) for key, value in score.metrics.items() if key not in ScoreMetrics.model_fields]
    if len(distances) != 1 or not math.isfinite(distances[0][1]):
        raise UserError(f"{score.uri}: a score has one finite distance, this one has {dict(distances)}")
    return distances[0]


def _shown(fields: dict[str, Any], key: str) -> str:
    return repr(fields[key]) if key in fields else "(not there)"


def _pair(first: str, second: str) -> str:
    return f"{first[:12]}… and {second[:12]}…"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.5g}"
