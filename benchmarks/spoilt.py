"""Sets of clips that are spoilt in known ways, and which metric sees it: the table of docs/metrics.md.

    python benchmarks/spoilt.py [--clips 80] [--detector MANIFEST …] [--json]

The demo's real clips are dealt into a real side, another half that nothing was done to, and a rest. The other half is
spoilt in one way at a time and compared with the real side by every detector, as `latte score` does. A metric sees it
where its interval lies above that of the other half as it is. Detectors: the demo's trained I3D; an Inception v3 and a
VideoMAE of random weights and few channels, which show what frames and what clips can tell, not what trained ones do;
and those that `--detector` names.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save
from scipy.ndimage import gaussian_filter

from latte import rng
from latte.facts import ScoreValue
from latte.kinds import KINDS, detectors, inception, videomae
from latte.metrics import Moments
from latte.metrics.detection import Detect, Detector, Features
from latte.metrics.measuring import Measured
from latte.metrics.protocol import Protocol, prepare
from latte.models.detector_configs import InceptionConfig, VideoMAEConfig
from latte.storage import manifest
from pipelines.demo import train_detector

BLUR_PIXELS, NOISE, KEPT_CLIPS = 1.0, 16.0, 8
BATCH = 8
AS_IT_IS = "as it is"
_DEMO_WEIGHTS = Path(__file__).parents[1] / "configs" / "demo" / "detector" / "i3d.safetensors"
_SMALL_INCEPTION = InceptionConfig(width=0.25, image_size=75)
_SMALL_VIDEOMAE = VideoMAEConfig(
    hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, patch_size=8, image_size=64
)


@dataclass(frozen=True)
class Dealt:
    """Real clips (N, F, H, W, 3) uint8 in three parts that share none, and their classes (N,)."""

    real: np.ndarray
    half: np.ndarray
    half_classes: np.ndarray
    rest: np.ndarray
    rest_classes: np.ndarray


def dealt(clips: np.ndarray, classes: np.ndarray, count: int, seed: int = 0) -> Dealt:
    """Deal `count` clips each to the real side and to the other half; the rest is kept apart."""
    order = rng.stream(seed, "spoilt sets").permutation(len(clips))
    first, second, rest = np.split(order, [count, 2 * count])
    return Dealt(clips[first], clips[second], classes[second], clips[rest], classes[rest])


def blurred(given: Dealt) -> np.ndarray:
    """Blurred over height and width, by a pixel."""
    soft = gaussian_filter(given.half.astype(np.float32), (0, 0, BLUR_PIXELS, BLUR_PIXELS, 0))
    return np.round(soft).astype(np.uint8)


def noisy(given: Dealt) -> np.ndarray:
    """With noise of every pixel's own."""
    noise = rng.stream(0, "spoilt noise").standard_normal(given.half.shape, np.float32) * np.float32(NOISE)
    return np.clip(np.round(given.half + noise), 0, 255).astype(np.uint8)


def shuffled(given: Dealt) -> np.ndarray:
    """The frames of every clip in another order."""
    random = rng.stream(0, "spoilt order")
    return np.stack([clip[random.permutation(len(clip))] for clip in given.half])


def frozen(given: Dealt) -> np.ndarray:
    """Every clip's middle frame all the time."""
    frames = given.half.shape[1]
    return np.repeat(given.half[:, frames // 2 : frames // 2 + 1], frames, axis=1)


def wrong_class(given: Dealt) -> np.ndarray:
    """Real clips of other classes in the place of one class's."""
    spoilt = given.half.copy()
    places = np.flatnonzero(given.half_classes == 0)
    others = np.flatnonzero(given.rest_classes != 0)
    spoilt[places] = given.rest[
        rng.stream(0, "spoilt class").choice(others, len(places), replace=len(places) > len(others))
    ]
    return spoilt


def collapsed(given: Dealt) -> np.ndarray:
    """A few clips over and over."""
    return given.half[np.arange(len(given.half)) % KEPT_CLIPS]


WAYS: dict[str, Callable[[Dealt], np.ndarray]] = {
    AS_IT_IS: lambda given: given.half,
    "blur": blurred,
    "noise": noisy,
    "shuffle": shuffled,
    "freeze": frozen,
    "wrong class": wrong_class,
    "mode collapse": collapsed,
}


def main() -> None:
    """Measure and print a table in Markdown; with --json the last line is one JSON object."""
    parser = argparse.ArgumentParser(description="which metric sees how a set is spoilt")
    parser.add_argument("--clips", type=int, default=80, help="clips of each side")
    parser.add_argument("--detector", action="append", default=[], help="manifest of weights; may be repeated")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    started = time.perf_counter()
    given = dealt(*train_detector.real_clips(held_out=False), options.clips)
    found: dict[str, dict[str, ScoreValue]] = {}
    with tempfile.TemporaryDirectory(prefix="latte-spoilt-") as folder:
        for detector in [*own_detectors(Path(folder)), *map(named_detector, options.detector)]:
            for way, values in measured(detector, given).items():
                for name, value in values.items():
                    found.setdefault(name, {})[way] = value
    print(table(found))
    if options.json:
        rows = {name: {way: value.value for way, value in ways.items()} for name, ways in found.items()}
        print(json.dumps({"benchmark": "spoilt", "seconds": time.perf_counter() - started, "rows": rows}))


def own_detectors(folder: Path) -> list[Detector]:
    """The demo's detector, and random ones of few channels."""
    random = rng.stream(0, "spoilt detectors")
    drawn = {name: _drawn(name, shape, random) for name, shape in videomae.shapes_of(_SMALL_VIDEOMAE).items()}
    made: list[tuple[str, Any, dict[str, np.ndarray], str | None]] = [
        ("i3d", train_detector.CONFIG, load_file(_DEMO_WEIGHTS), "the demo's"),
        ("inception", _SMALL_INCEPTION, inception.random_weights(0, _SMALL_INCEPTION), None),
        ("videomae", _SMALL_VIDEOMAE, drawn, None),
    ]
    found = []
    for kind, config, weights, source in made:
        shard = manifest.publish_shard(save(weights), (folder / f"{kind}.safetensors").as_uri())
        found.append(Detector(KINDS[kind], config.model_dump(exclude_none=True), shard, source))
    return found


def _drawn(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        return np.full(shape, float("norm" in name and name.endswith("weight")), np.float32)
    return random.standard_normal(shape, np.float32) * np.float32(np.prod(shape[1:]) ** -0.5)


def named_detector(uri: str) -> Detector:
    """A detector by the manifest of its weights."""
    return Detector.of(manifest.read_weights(uri, detectors(), "detector"))


def measured(detector: Detector, given: Dealt) -> dict[str, dict[str, ScoreValue]]:
    """Values of a detector by the way in which the set is spoilt, then by their names."""
    size = detector.network.image_size
    protocol = detector.protocol({}, Protocol(num_clips=len(given.half), resolution=size, frame_stride=1), "detector")
    by = Measured(detector, protocol)
    detect = Detect(detector, protocol)
    real = _features(detect, given.real)
    return {way: by.values(_features(detect, spoil(given)), real) for way, spoil in WAYS.items()}


def _features(detect: Detect, clips: np.ndarray) -> Features:
    rows = []
    for first in range(0, len(clips), BATCH):
        part = np.stack([prepare(clip, detect.protocol.resolution) for clip in clips[first : first + BATCH]])
        padded = np.concatenate([part, np.repeat(part[-1:], BATCH - len(part), axis=0)])  # one shape, one graph
        rows.append(detect(padded)[: len(part)])  # (n, R, D)
    joined = np.concatenate(rows)
    flat = joined.reshape(-1, joined.shape[-1])
    return Features(flat, joined.shape[1], Moments.of(flat), "")


def sees(way: ScoreValue, as_it_is: ScoreValue) -> bool:
    """Whether a value's interval lies above that of the set that nothing was done to."""
    low, high = way.interval_low, as_it_is.interval_high
    return low is not None and high is not None and low > high


def table(found: dict[str, dict[str, ScoreValue]]) -> str:
    """A table in Markdown, a line a metric; what a metric sees is in bold."""
    lines = [f"| metric | {' | '.join(WAYS)} |", "|---" * (len(WAYS) + 1) + "|"]
    for name, ways in found.items():
        cells = []
        for value in ways.values():
            low, high = (value.value if end is None else end for end in (value.interval_low, value.interval_high))
            text = f"{value.value:.3g} ({low:.3g} to {high:.3g})"
            cells.append(f"**{text}**" if sees(value, ways[AS_IT_IS]) else text)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
