"""Inputs of the score components as work of the step."""

from dataclasses import dataclass
from typing import Any

from components.runtime import run_step


@dataclass(frozen=True)
class OtherMetrics:
    """A KFP Metrics artifact that has the numbers of another model already, which are named without a word before."""

    metrics: Any

    def log_metric(self, key: str, value: float) -> None:
        """Add a number of the model that the other one is compared with."""
        self.metrics.log_metric(f"other_{key}", value)


def measure(
    root: str,
    name: str,
    settings: dict[str, Any],
    videos: str,
    real: str,
    detector: str,
    score: Any,
    metrics: Any,
) -> str:
    """Score one set; returns the URI of the score's manifest, which a later score of other content never replaces."""
    wired = {"root": root, "name": name, "videos": videos, "real": real, "detector": detector}
    return run_step(f"score {name}", "score", settings, wired, output=score, metrics=metrics).file
