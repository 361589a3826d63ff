"""Measures of how near generated videos are to real ones."""

from latte.metrics.frechet import (
    Interval,
    extrapolated_distance,
    feature_distance,
    frechet_distance,
    jackknife_interval,
    statistics,
)
from latte.metrics.kernel import KernelDistance, kernel_distance
from latte.metrics.moments import UNUSABLE, Moments, unusable_rows
from latte.metrics.protocol import Protocol

__all__ = [
    "UNUSABLE",
    "Interval",
    "KernelDistance",
    "Moments",
    "Protocol",
    "extrapolated_distance",
    "feature_distance",
    "frechet_distance",
    "jackknife_interval",
    "kernel_distance",
    "statistics",
    "unusable_rows",
]
