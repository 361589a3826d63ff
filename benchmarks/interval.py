"""Intervals around a Fréchet distance: the grouped jackknife (ours) beside the bootstrap (peer).

    python benchmarks/interval.py [--draws 40] [--resamples 100] [--json]

Features are drawn anew many times from two known distributions, so that the distance to expect at this number of clips
is known. For each interval: how often it covers that value (95 % is promised), and its mean width over the width that
the spread of the drawn values calls for (1 is right). "percentile" is the textbook bootstrap; "centred" moves its
values back onto the distance.
"""

import argparse
import json
import time

import numpy as np
from sample import peak_bytes

from latte.metrics import feature_distance, jackknife_interval

SIZES = ((200, 6), (200, 40), (60, 100))  # clips on each side, features
CONFIDENCE, NORMAL_QUANTILE = 0.95, 1.96


def main() -> None:
    """Measure and print; with --json the last line is one JSON object."""
    parser = argparse.ArgumentParser(description="jackknife and bootstrap intervals of the Fréchet distance")
    parser.add_argument("--draws", type=int, default=40, help="times that an interval is made and checked")
    parser.add_argument("--resamples", type=int, default=100, help="of each bootstrap")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    seconds = {"ours": 0.0, "peer": 0.0}
    rows = []
    for count, size in SIZES:
        values = np.array([feature_distance(*_draw(seed, count, size)) for seed in range(200)])
        expected, width = values.mean(), 2 * NORMAL_QUANTILE * values.std()
        found: dict[str, list[tuple[float, float]]] = {"jackknife": [], "percentile": [], "centred": []}
        for draw in range(options.draws):
            first, second = _draw(1000 + draw, count, size)
            started = time.perf_counter()
            low, high = jackknife_interval(first, second, confidence=CONFIDENCE)
            found["jackknife"].append((low, high))
            seconds["ours"] += time.perf_counter() - started
            started = time.perf_counter()
            resampled = _bootstrap(first, second, options.resamples, draw)
            seconds["peer"] += time.perf_counter() - started
            tails = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
            found["percentile"].append((tails[0], tails[1]))
            shift = feature_distance(first, second) - resampled.mean()
            found["centred"].append((tails[0] + shift, tails[1] + shift))
        for name, intervals in found.items():
            covered = np.mean([low <= expected <= high for low, high in intervals])
            wide = np.mean([high - low for low, high in intervals]) / width
            rows.append({"clips": count, "features": size, "interval": name, "covers": covered, "width": wide})
            print(f"  {count:>4} clips {size:>4} features  {name:<11} covers {covered:4.0%}  width {wide:.2f}")
    if options.json:
        ours_s, peer_s = (seconds[side] / options.draws for side in ("ours", "peer"))
        result = {"benchmark": "interval", "peer": f"bootstrap, {options.resamples} resamples", "ours_s": ours_s}
        print(
            json.dumps({**result, "peer_s": peer_s, "ratio": peer_s / ours_s, "peak_bytes": peak_bytes(), "rows": rows})
        )


def _draw(seed: int, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sides of features (N, D) whose spread falls off as that of class scores does."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(1.0, 0.05, size)
    first, second = rng.standard_normal((2, count, size)) * spread
    return first, second * 1.2 + 0.15


def _bootstrap(first: np.ndarray, second: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 1])
    sides = first, second
    return np.array(
        [feature_distance(*(side[rng.integers(0, len(side), len(side))] for side in sides)) for _ in range(resamples)]
    )


if __name__ == "__main__":
    main()
