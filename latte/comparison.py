"""Two scores side by side, or what keeps them from being compared."""

import math
from typing import Any

from latte import manifest
from latte.errors import UserError

# Numbers that stand beside the distance in a score's metrics.
_BESIDE = ("interval_low", "interval_high", "unbiased_estimate", "clips")


def compare(first: str, second: str) -> str:
    """A table of two scores: values, intervals and their difference.

    Args:
        first: manifest of a score (file or URI).
        second: manifest of another one.

    Returns:
        Lines of text.

    Raises:
        UserError: not scores, or scores of different protocols, detectors or real sides; every difference is named.
    """
    scores = [manifest.read(uri, "score") for uri in (first, second)]
    found = differences(*scores)
    if found:
        raise UserError(f"{first} and {second} cannot be compared: " + "; ".join(found))
    name, value1 = distance(scores[0])
    value2 = distance(scores[1])[1]
    lines = [f"{'':<6}{name:>20}  {'interval':<26}{'at endless N':<16}name"]
    for title, score in zip("AB", scores, strict=True):
        low, high, endless = (f"{score.metrics[key]:.5g}" for key in _BESIDE[:3])
        lines.append(f"{title:<6}{distance(score)[1]:>20.5g}  {f'{low} to {high}':<26}{endless:<16}{score.name}")
    apart = max(s.metrics["interval_low"] for s in scores) > min(s.metrics["interval_high"] for s in scores)
    lines.append(
        f"{'A - B':<6}{value1 - value2:>20.5g}  " + ("the intervals are apart" if apart else "the intervals overlap")
    )
    lines.append(f"both: {scores[0].metrics['clips']} clips, protocol {scores[0].config['protocol_digest'][:16]}")
    return "\n".join(lines)


def differences(first: manifest.Manifest, second: manifest.Manifest) -> list[str]:
    """What makes two scores incomparable, most telling first; empty where they can be compared."""
    found = []
    if first.config["protocol_digest"] != second.config["protocol_digest"]:
        fields = [score.config["protocol"] for score in (first, second)]
        changed = [key for key in sorted({*fields[0], *fields[1]}) if fields[0].get(key) != fields[1].get(key)]
        found += [f"protocol.{key} {_shown(fields[0], key)} and {_shown(fields[1], key)}" for key in changed]
        if not changed:
            found.append(f"protocol digest {_pair(first.config, second.config, 'protocol_digest')}")
    if first.inputs["detector"] != second.inputs["detector"]:
        found.append(f"detector {_pair(first.inputs, second.inputs, 'detector')}")
    if first.inputs["real"] != second.inputs["real"]:
        found.append(f"real side {_pair(first.inputs, second.inputs, 'real')}")
    names = [distance(score)[0] for score in (first, second)]
    if not found and names[0] != names[1]:
        found.append(f"metric {names[0]} and {names[1]}")
    return found


def distance(score: manifest.Manifest) -> tuple[str, float]:
    """Name and value of the score's distance."""
    found = [(key, float(value)) for key, value in score.metrics.items() if key not in _BESIDE]
    if len(found) != 1 or not math.isfinite(found[0][1]):
        raise UserError(f"{score.uri}: a score has one finite distance, this one has {dict(found)}")
    return found[0]


def _shown(fields: dict[str, Any], key: str) -> str:
    return repr(fields[key]) if key in fields else "(not there)"


def _pair(first: dict[str, Any], second: dict[str, Any], key: str) -> str:
    return f"{first[key][:12]}… and {second[key][:12]}…"
