"""Inception v3 (Szegedy et al. 2015), the detector of FID and KID on frames."""

from typing import Any

import numpy as np

from latte.checkpoints.stored import COUNTER_ENDING
from latte.kinds.kind import ModelKind, Scoring, Settings, Shapes, axis, seeded
from latte.models.detector_configs import InceptionConfig

# By SHA-256: the port of the network that Heusel et al. 2017 made FID with, `pt_inception-2015-12-05-6726825d.pth` of
# https://github.com/mseitzer/pytorch-fid; torch-fidelity publishes the same file as `weights-inception-….pth`.
PUBLISHED = ("6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",)
FID, RANDOM, SMALL, OTHER = "fid", "frechet_random_inception", "frechet_small_inception", "frechet_inception"
_FID_CLASSES = InceptionConfig().num_classes


def _tell(found: Shapes, given: Settings) -> dict[str, Any]:
    classes = axis(found, "fc.weight", 2, 0)
    width = (
        axis(found, "Conv2d_1a_3x3.conv.weight", 4, 0) / InceptionConfig().convolutions["Conv2d_1a_3x3"].channels_out
    )
    told: dict[str, Any] = {"num_classes": classes, "width": width}
    # No tensor tells the form; the classes do, of the published files.
    return told if "form" in given else {**told, "form": "fid" if classes == _FID_CLASSES else "torchvision"}


def _rename(name: str) -> tuple[str, str]:
    if name.startswith("AuxLogits."):
        return name, "a second classifier, of use in training alone"
    return name, "a counter of training steps" if name.endswith(COUNTER_ENDING) else ""


def shapes_of(config: InceptionConfig | None = None) -> Shapes:
    """Tensors of Inception v3, as torchvision names them; those of the network of FID by default."""
    config = config or InceptionConfig()
    shapes: Shapes = {}
    for name, sizes in config.convolutions.items():
        shapes[f"{name}.conv.weight"] = (sizes.channels_out, sizes.channels_in, *sizes.kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (sizes.channels_out,)
    shapes["fc.weight"], shapes["fc.bias"] = (config.num_classes, config.channels), (config.num_classes,)
    return shapes


def random_weights(seed: int, config: InceptionConfig | None = None) -> dict[str, np.ndarray]:
    """Seeded random weights in the published layout, float32: for trying things out where there are no trained ones."""
    return seeded(shapes_of(config), seed)


def _metric(config: InceptionConfig, features: str, source: str | None, weights: str) -> str:
    """Name of the distance: "fid" is kept for the pooled features of the published weights."""
    if source is None:
        return RANDOM
    if config.model_copy(update={"num_classes": _FID_CLASSES, "form": "fid"}) != InceptionConfig():
        return SMALL
    if source in PUBLISHED and config.is_published and features == "pool":
        return FID
    return f"{OTHER}{'_logits' if features == 'logits' else ''}_{weights[:8]}"


def _protocol(config: InceptionConfig) -> dict[str, Any]:
    """As pytorch-fid: every frame resized for the network, pooled features, NumPy's covariance."""
    return {"resolution": config.image_size, "features": "pool", "covariance_divisor": "n-1"}


def _remark(sha256: str) -> str:
    return "" if sha256 in PUBLISHED else "not the published file of FID: a score by it is not called fid"


KIND = ModelKind(
    name="inception",
    config=InceptionConfig,
    network="latte.models.inception:Inception",
    marker="Conv2d_1a_3x3.conv.weight",
    tell=_tell,
    shapes=shapes_of,
    rename=_rename,
    random=random_weights,
    scoring=Scoring((FID, RANDOM, SMALL), _metric, PUBLISHED, _protocol),
    remark=_remark,
)
