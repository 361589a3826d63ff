"""The network of the kind of model."""

import mindspore as ms
from mindspore import nn

from latte.models import layers
from tests.examples.kind import ToyConfig


class Toy(nn.Cell):
    """scale * (W x + b)."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = layers.Linear(config.width, 2)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """(N, width) -> (N, 2)."""
        return self.config.scale * self.layer(x)
