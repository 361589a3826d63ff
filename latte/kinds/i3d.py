"""Inception I3D (Carreira & Zisserman 2017), the detector of the Fréchet video distance."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from latte.checkpoints.stored import COUNTER_ENDING
from latte.kinds import i3d_script
from latte.kinds.kind import ModelKind, Scoring, Settings, Shapes, axis, seeded
from latte.models.configs import I3DConfig, concatenated


@dataclass(frozen=True)
class PublishedDetector:
    """A published file of I3D: its name, where it comes from, and the epsilon its scores were made with.

    `epsilon` is None where the file itself says it (a TorchScript archive), so that nobody can give another.
    """

    file: str
    source: str
    epsilon: float | None


# By SHA-256: ports with the same names and shapes differ in an epsilon that no tensor tells.
DETECTORS = {
    "55095f049e706479d48e221adcdb145b2b9dc930ba28b081ed72367ffaa32343": PublishedDetector(
        "i3d_pretrained_400.pt", "https://github.com/wilson1yan/VideoGPT", 1e-5
    ),
    "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2": PublishedDetector(
        "i3d_torchscript.pt", "https://github.com/universome/stylegan-v", None
    ),
}
PUBLISHED = tuple(DETECTORS)
FVD, POOLED, RANDOM, SMALL = "fvd", "frechet_i3d_pool", "frechet_random_i3d", "frechet_small_i3d"
OTHER = "frechet_i3d"


def _tell(found: Shapes, given: Settings) -> dict[str, Any]:
    return {
        "num_classes": axis(found, "logits.conv3d.weight", 5, 0),
        "width": axis(found, "Conv3d_1a_7x7.conv3d.weight", 5, 0) / I3DConfig().stem_channels[0],
    }


def _rename(name: str) -> tuple[str, str]:
    return name, "a counter of training steps" if name.endswith(COUNTER_ENDING) else ""


def shapes_of(config: I3DConfig | None = None) -> Shapes:
    """Tensors of Inception I3D, as the PyTorch port that FVD scorers use names them; the published one by default."""
    config = config or I3DConfig()
    shapes: Shapes = {}

    def unit(name: str, width_in: int, width_out: int, kernel: int) -> None:
        shapes[f"{name}.conv3d.weight"] = (width_out, width_in, kernel, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (width_out,)

    first, width = config.stem_channels
    unit("Conv3d_1a_7x7", 3, first, 7)
    unit("Conv3d_2b_1x1", first, first, 1)
    unit("Conv3d_2c_3x3", first, width, 3)
    for mixed, channels in config.mixed_channels.items():
        b0, b1a, b1b, b2a, b2b, b3b = channels
        unit(f"{mixed}.b0", width, b0, 1)
        unit(f"{mixed}.b1a", width, b1a, 1)
        unit(f"{mixed}.b1b", b1a, b1b, 3)
        unit(f"{mixed}.b2a", width, b2a, 1)
        unit(f"{mixed}.b2b", b2a, b2b, 3)
        unit(f"{mixed}.b3b", width, b3b, 1)
        width = concatenated(channels)
    shapes["logits.conv3d.weight"] = (config.num_classes, width, 1, 1, 1)
    shapes["logits.conv3d.bias"] = (config.num_classes,)
    return shapes


def random_weights(seed: int, config: I3DConfig | None = None) -> dict[str, np.ndarray]:
    """Seeded random weights in I3D's published layout, float32: a detector where no Kinetics weights are at hand."""
    return seeded(shapes_of(config), seed)


def _metric(config: I3DConfig, features: str, source: str | None, weights: str) -> str:
    """Name of the distance: "fvd" is kept for the published features of the published weights.

    Weights from another file have the first digits of their SHA-256 in the name.
    """
    if source is None:
        return RANDOM
    if not config.is_published:
        return SMALL
    if source in DETECTORS and DETECTORS[source].epsilon in (None, config.epsilon):
        return FVD if features == "logits" else POOLED
    return f"{OTHER if features == 'logits' else POOLED}_{weights[:8]}"


def _remark(sha256: str) -> str:
    return "" if sha256 in PUBLISHED else "not from the published file of I3D: a score by it is not called fvd"


KIND = ModelKind(
    name="i3d",
    config=I3DConfig,
    network="latte.models.i3d:I3D",
    marker="Conv3d_1a_7x7.conv3d.weight",
    tell=_tell,
    shapes=shapes_of,
    rename=_rename,
    read_program=i3d_script.read,
    random=random_weights,
    scoring=Scoring((FVD, RANDOM, SMALL, POOLED), _metric, PUBLISHED),
    remark=_remark,
)
