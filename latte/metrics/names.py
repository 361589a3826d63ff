"""Names of the values of scores, and all values of one."""

from latte.errors import UserError
from latte.facts import ScoreFacts, ScoreMetrics, ScoreValue
from latte.kinds import KINDS
from latte.storage.manifest import Manifest


def metric_of(score: Manifest) -> str:
    """The name under which a score's value stands in its metrics.

    Raises:
        UserError: there is none.
    """
    scorings = [kind.scoring for kind in KINDS.values() if kind.scoring is not None]
    known = [name for scoring in scorings for name in scoring.metrics if name in score.metrics]
    if known:
        return known[0]
    others = [name for name in score.metrics if name not in ScoreMetrics.model_fields]
    if not others:
        raise UserError(f"scores: {score.uri} has no value among its metrics")
    return others[0]


# The kernel distances of published features have names of their own.
_KERNEL_NAMES = {"fvd": "kvd", "fid": "kid"}


def kernel_of(distance: str) -> str:
    """The name of the kernel distance in the features whose Fréchet distance has this name."""
    return _KERNEL_NAMES.get(distance, distance.replace("frechet", "kernel"))


def values_of(score: Manifest) -> dict[str, ScoreValue]:
    """All values of a score by their names, the one that counts first first; those of early versions have one.

    Raises:
        UserError: there is none.
    """
    beside, first = ScoreMetrics.of(score), metric_of(score)
    if first in beside.values:
        return {first: beside.values[first], **beside.values}
    facts = ScoreFacts.of(score)
    value = ScoreValue(
        value=float(score.metrics[first]),
        interval_low=beside.interval_low,
        interval_high=beside.interval_high,
        unbiased_estimate=beside.unbiased_estimate,
        clips=beside.clips,
        detector=score.inputs.get("detector", ""),
        protocol=facts.protocol,
        protocol_digest=facts.protocol_digest,
    )
    return {first: value}
