"""Measures of how near generated videos are to real ones."""

from latte.metrics.frechet import (
    Interval,
    extrapolated_distance,
    feature_distance,
    frechet_distance,
    jackknife_interval,
    statistics,
)
from latte.metrics.moments import UNUSABLE, Moments, unusable_rows
from latte.metrics.protocol import Protocol

__all__ = [
    "UNUSABLE",
    "Interval",
    "Moments",
    "Protocol",
    "extrapolated_distance",
    "feature_distance",
    "frechet_distance",
    "jackknife_interval",
    "statistics",
    "unusable_rows",
]
