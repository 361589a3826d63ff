"""Facts that steps tell each other in the `config` and `metrics` of manifests, each kind's as one class.

Who writes a manifest says them with `said`, who reads it asks with `of`. A fact that is not told has its default: the
value that it had when no step told it, or one that says nothing. Keys of later versions are passed over.
"""

from latte.facts.base import Facts, Metrics, Notes, PlanMetrics, PromotedMetrics
from latte.facts.models import DiffusionFacts, LatteFacts, RunFacts, RunMetrics, TrainSettings, WeightsFacts
from latte.facts.scores import (
    DecisionFacts,
    DecisionMetrics,
    NightFacts,
    ReportFacts,
    ScoreFacts,
    ScoreMetrics,
    ScoreValue,
)
from latte.facts.sets import LatentsFacts, VideoSetFacts

__all__ = [
    "DecisionFacts",
    "DecisionMetrics",
    "DiffusionFacts",
    "Facts",
    "LatentsFacts",
    "LatteFacts",
    "Metrics",
    "NightFacts",
    "Notes",
    "PlanMetrics",
    "PromotedMetrics",
    "ReportFacts",
    "RunFacts",
    "RunMetrics",
    "ScoreFacts",
    "ScoreMetrics",
    "ScoreValue",
    "TrainSettings",
    "VideoSetFacts",
    "WeightsFacts",
]
