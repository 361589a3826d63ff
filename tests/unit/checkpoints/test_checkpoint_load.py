import mindspore as ms
import numpy as np
from mindspore import nn
from safetensors.numpy import save_file

from latte import checkpoints, device


class Scale(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.weight = ms.Parameter(ms.Tensor(np.ones(3, np.float32)), name="weight")

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return x * self.weight


def test_a_network_that_was_compiled_before_uses_the_loaded_weights(tmp_path) -> None:
    device.setup(seed=0)
    net = Scale()

    @ms.jit
    def forward(x: ms.Tensor) -> ms.Tensor:
        return net(x)

    x = ms.Tensor(np.array([1, 2, 3], np.float32))
    assert forward(x).asnumpy().tolist() == [1, 2, 3]
    save_file({"weight": np.array([2, 3, 4], np.float32)}, tmp_path / "w.safetensors")
    checkpoints.load(net, str(tmp_path / "w.safetensors"))
    assert net.weight.asnumpy().tolist() == [2, 3, 4]
    assert forward(x).asnumpy().tolist() == [2, 6, 12]
