"""Values of a score in the features of one detector: the Fréchet distance and the kernel distance, with intervals."""

from dataclasses import dataclass
from typing import Any

from latte.facts import ScoreValue
from latte.metrics.detection import Detector, Features
from latte.metrics.frechet import extrapolated_distance, frechet_distance, jackknife_interval
from latte.metrics.kernel import kernel_distance
from latte.metrics.names import kernel_of
from latte.metrics.protocol import Protocol


@dataclass(frozen=True)
class Measured:
    """A detector, and the protocol of scores by it.

    Attributes:
        detector: what gives the features.
        protocol: how clips are prepared for it, and their features compared.
    """

    detector: Detector
    protocol: Protocol

    @property
    def names(self) -> tuple[str, str]:
        """Names of the Fréchet distance and of the kernel distance."""
        distance = self.detector.metric(self.protocol)
        return distance, kernel_of(distance)

    @property
    def sha256(self) -> str:
        """SHA-256 of the detector's weights."""
        return self.detector.weights.sha256

    def values(self, generated: Features, real: Features) -> dict[str, ScoreValue]:
        """Both values by their names.

        Args:
            generated: features of the generated clips.
            real: features of the real ones.
        """
        protocol, per_clip = self.protocol, generated.rows_per_clip
        rows, real_rows = generated.rows, real.rows
        divisor, groups, confidence = protocol.covariance_divisor, protocol.jackknife_groups, protocol.confidence
        low, high = jackknife_interval(rows, real_rows, divisor, groups, confidence, per_clip)
        statistics = [side.moments.statistics(divisor) for side in (generated, real)]
        by_kernel = kernel_distance(rows, real_rows, groups, confidence, per_clip)
        kernel_low, kernel_high = by_kernel.interval or (None, None)
        common: dict[str, Any] = {
            "clips": generated.clips,
            "kind": self.detector.kind.name,
            "detector": self.sha256,
            "protocol": protocol.model_dump(),
            "protocol_digest": protocol.digest,
        }
        frechet = ScoreValue(
            value=frechet_distance(*statistics[0], *statistics[1]),
            interval_low=low,
            interval_high=high,
            unbiased_estimate=extrapolated_distance(
                rows, real_rows, divisor, seed=protocol.seed, rows_per_clip=per_clip
            ),
            **common,
        )
        kernel = ScoreValue(
            value=by_kernel.value,
            interval_low=kernel_low,
            interval_high=kernel_high,
            unbiased_estimate=by_kernel.value,
            **common,
        )
        return dict(zip(self.names, (frechet, kernel), strict=True))
