"""A kind of model: one linear layer."""

from typing import Any

from pydantic import Field

from latte.config import Config
from latte.kinds.kind import ModelKind, Settings, Shapes, axis


class ToyConfig(Config):
    """Sizes of the layer."""

    width: int = Field(default=4, gt=0, description="numbers that go in")
    scale: float = Field(default=1.0, gt=0, description="factor on what comes out")


def _tell(found: Shapes, given: Settings) -> dict[str, Any]:
    return {"width": axis(found, "layer.weight", 2, 1)}


def _shapes(config: ToyConfig) -> Shapes:
    return {"layer.weight": (2, config.width), "layer.bias": (2,)}


def _rename(name: str) -> tuple[str, str]:
    return name.replace("linear.", "layer."), "not part of the layer" if name.startswith("head.") else ""


KIND = ModelKind(
    name="toy",
    config=ToyConfig,
    network="tests.examples.network:Toy",
    marker="layer.weight",
    tell=_tell,
    shapes=_shapes,
    rename=_rename,
)
