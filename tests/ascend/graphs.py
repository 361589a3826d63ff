"""The graphs that a user can run, each a function that builds and calls what the product builds and calls.

    plan = graphs.count("latte_forward", preset="Latte-S/2", clips=2)

A process of its own compiles each, in the environment of a dry run (latte/planning/dry_run.py): in one that has
compiled others before, a graph takes longer by more than a start.
"""

import inspect
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from latte.planning import dry_run

REPOSITORY = Path(__file__).parents[2]


def count(graph: str, rank: tuple[int, int] | None = None, **settings: Any) -> dry_run.Plan:
    """Compile a graph for Ascend and count.

    Args:
        graph: name of a function here.
        rank: number of this process and how many there are, where collectives are to be compiled.
        settings: its arguments.

    Raises:
        DoesNotCompileError: with MindSpore's lines.
        RuntimeError: this machine cannot make the dry run.
    """
    start = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from tests.ascend import graphs; graphs.main()"
    return dry_run.run([sys.executable, "-c", start, graph, json.dumps(settings)], rank)


def main() -> None:
    """Compile one graph and say what was planned."""
    import mindspore as ms

    from latte import device

    ms.set_device("Ascend")
    device.setup(seed=0)
    began = time.perf_counter()
    GRAPHS[sys.argv[1]](**json.loads(sys.argv[2]))
    dry_run.answer(time.perf_counter() - began)


def latte_forward(precision: str = "fp32", clips: int = 2, guided: bool = False, **model: Any) -> None:
    """One call of the network as sampling makes it."""
    import mindspore as ms

    from latte import device
    from latte.diffusion import _compiled
    from latte.models import layers
    from latte.models.latte import Latte

    net = Latte(_config(model))
    layers.set_compute_type(net, device.compute_type(precision))
    net.set_train(False)
    x, condition = _clips(net.config, clips)
    arguments = {"text" if net.config.condition == "text" else "y": ms.Tensor(condition)} if condition.ndim else {}
    if guided:
        arguments["cfg_scale"] = ms.Tensor(7.0, ms.float32)
    _compiled(net, guided, False)(ms.Tensor(x), ms.Tensor(np.zeros(clips, np.int32)), **arguments)


def train_step(**settings: Any) -> None:
    """A step as `latte train dry_run=true` plans it."""
    from latte.planning import training_step

    keys = set(inspect.signature(training_step.compile_step).parameters)
    model = _config({key: value for key, value in settings.items() if key not in keys})
    training_step.compile_step(model, **{key: value for key, value in settings.items() if key in keys})


def autoencoder(direction: str, images: int = 1, size: int = 256, **config: Any) -> None:
    """Encoding or decoding images of `size` pixels."""
    import mindspore as ms

    from latte.models.autoencoder_kl import AutoencoderKL
    from latte.models.configs import AutoencoderKLConfig

    net = AutoencoderKL(AutoencoderKLConfig(**config))
    if direction == "encode":
        mean, _ = net.encode(ms.Tensor(np.zeros((images, 3, size, size), np.float32)))
        mean.asnumpy()
        return
    side = size // net.config.downsampling
    net.decode(ms.Tensor(np.zeros((images, net.config.latent_channels, side, side), np.float32))).asnumpy()


def clip_text(texts: int = 2, **config: Any) -> None:
    """Embedding texts."""
    from latte.models.clip_text import ClipTextModel
    from latte.models.configs import ClipTextConfig

    net = ClipTextModel(ClipTextConfig(**config))
    net.encode(np.zeros((texts, net.config.max_position_embeddings), np.int32)).asnumpy()


def i3d(clips: int = 1, num_frames: int = 16, **config: Any) -> None:
    """Class scores of clips."""
    import mindspore as ms

    from latte.models.configs import I3DConfig
    from latte.models.i3d import I3D

    net = I3D(I3DConfig(**config))
    net.set_train(False)
    size = net.config.image_size
    net(ms.Tensor(np.zeros((clips, 3, num_frames, size, size), np.float32))).asnumpy()


def i3d_parts(**config: Any) -> None:
    """What I3D is made of, each kind of layer once: a third of the time that the whole of it takes."""
    import mindspore as ms
    from mindspore import nn

    from latte import operators
    from latte.models.configs import I3DConfig
    from latte.models.i3d import I3D

    net = I3D(I3DConfig(**config))

    class Parts(nn.Cell):
        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.stem, self.mixed = net.Conv3d_1a_7x7, net.Mixed_3b
            self.pools = nn.CellList([net._pool_2a, net._pool_4a, net._pool_5a])

        @ms.jit
        def construct(self, x: ms.Tensor, y: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
            x = self.pools[0](self.stem(x.transpose(operators.CLIP_LAYOUT)))
            y = self.pools[2](self.pools[1](self.mixed(y.transpose(operators.CLIP_LAYOUT))))
            y = operators.mean_of_pairs(operators.mean_of_images(y)).transpose(operators.CLIP_BACK)
            return x, operators.mean_of_clips(y)

    _call(Parts(), (1, 3, 4, 16, 16), (1, net.config.stem_channels[1], 8, 8, 8))


def latte_t2v(clips: int = 1, guided: bool = True, precision: str = "fp32", **config: Any) -> None:
    """One call of the text-to-video network as sampling makes it; `clips` before guidance doubles them."""
    import mindspore as ms

    from latte import device
    from latte.diffusion import _compiled
    from latte.models import layers
    from latte.models.latte_t2v import LatteT2V
    from latte.models.t2v_configs import LatteT2VConfig

    net = LatteT2V(LatteT2VConfig(**config))
    layers.set_compute_type(net, device.compute_type(precision))
    net.set_train(False)
    count = clips * (1 + guided)
    x, _ = _clips(net.config, count)
    arguments = {
        "text": ms.Tensor(np.zeros((count, *net.config.text_shape), np.float32)),
        "text_mask": ms.Tensor(np.ones((count, net.config.text_shape[0]), np.float32)),
    }
    if guided:
        arguments["cfg_scale"] = ms.Tensor(7.5, ms.float32)
    _compiled(net, guided, True)(ms.Tensor(x), ms.Tensor(np.zeros(count, np.int32)), **arguments).asnumpy()


def t5(precision: str = "fp32", tokens: int = 120, **config: Any) -> None:
    """Hidden states of a caption, block by block."""
    from latte import device
    from latte.kinds.t5 import shapes_of
    from latte.models.t2v_configs import T5Config
    from latte.models.t5 import EncoderInPieces

    sizes = T5Config(**config)
    shapes = shapes_of(sizes)
    encoder = EncoderInPieces(sizes, lambda name: np.zeros(shapes[name], np.float32), device.compute_type(precision))
    encoder.encode(np.zeros((1, tokens), np.int64), np.ones((1, tokens), np.float32))


def videomae(clips: int = 1, **config: Any) -> None:
    """Features of clips."""
    import mindspore as ms

    from latte.models.detector_configs import VideoMAEConfig
    from latte.models.videomae import VideoMAE

    net = VideoMAE(VideoMAEConfig(**config))
    net.set_train(False)
    size = net.config.image_size
    net(ms.Tensor(np.zeros((clips, 3, net.config.num_frames, size, size), np.float32))).asnumpy()


def inception(images: int = 1, **config: Any) -> None:
    """Class scores of frames."""
    import mindspore as ms

    from latte.models.detector_configs import InceptionConfig
    from latte.models.inception import Inception

    net = Inception(InceptionConfig(**config))
    net.set_train(False)
    size = net.config.image_size
    net(ms.Tensor(np.zeros((images, 3, size, size), np.float32))).asnumpy()


def inception_parts(**config: Any) -> None:
    """What Inception is made of, each kind of block once: a third of the time that the whole of it takes."""
    import mindspore as ms
    from mindspore import nn

    from latte import operators
    from latte.models.detector_configs import InceptionConfig
    from latte.models.inception import Inception

    net = Inception(InceptionConfig(**config))

    class Parts(nn.Cell):
        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.first = net.Conv2d_1a_3x3
            self.blocks = nn.CellList([net.Mixed_5b, net.Mixed_6a, net.Mixed_6b, net.Mixed_7a, net.Mixed_7c])

        @ms.jit
        def construct(self, x: ms.Tensor, *images: ms.Tensor) -> tuple[ms.Tensor, ...]:
            found = [self.first(x)]
            for i in range(len(self.blocks)):
                found.append(operators.mean_of_pixels(self.blocks[i](images[i])))
            return tuple(found)

    entries = ("5b.branch1x1", "6a.branch3x3", "6b.branch1x1", "7a.branch3x3_1", "7c.branch1x1")
    widths = [3, *(net.config.convolutions[f"Mixed_{name}"].channels_in for name in entries)]
    _call(Parts(), *((1, width, 9, 9) for width in widths))


def old_kernels() -> None:
    """What the operators of the networks keep away from: a kernel of kind aclop."""
    import mindspore as ms
    from mindspore import nn, ops

    class Halved(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.split = ops.Split(0, 2)

        @ms.jit
        def construct(self, x: ms.Tensor) -> ms.Tensor:
            return self.split(x)[0] * 2.0

    Halved()(ms.Tensor(np.zeros((4, 4), np.float32))).asnumpy()


def _call(net: Any, *shapes: tuple[int, ...]) -> None:
    import mindspore as ms

    for value in net(*(ms.Tensor(np.zeros(shape, np.float32)) for shape in shapes)):
        value.asnumpy()


def _config(model: dict[str, Any]) -> Any:
    from latte.models.configs import LatteConfig

    preset = model.pop("preset", None)
    return LatteConfig.preset(preset, **model) if preset else LatteConfig(**model)


def _clips(config: Any, clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents (N, F, C, H, W) and the condition that goes with them; a number where there is none."""
    from latte.models.configs import TEXT_SHAPE

    x = np.zeros((clips, config.num_frames, config.in_channels, config.input_size, config.input_size), np.float32)
    if config.condition == "class":
        return x, np.zeros(clips, np.int32)
    if config.condition == "text":
        return x, np.zeros((clips, *TEXT_SHAPE), np.float32)
    return x, np.zeros((), np.float32)


_ALL = (
    latte_forward, train_step, autoencoder, clip_text, i3d, i3d_parts, latte_t2v, t5, videomae, inception,
    inception_parts, old_kernels,
)  # fmt: skip
GRAPHS = {graph.__name__: graph for graph in _ALL}
