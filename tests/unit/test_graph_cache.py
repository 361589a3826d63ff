"""Graphs are kept from one process to the next, and no graph is ever taken for another."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from latte import graph_cache
from latte.diffusion import Diffusion, _Prediction
from latte.models import layers
from latte.models.autoencoder_kl import AutoencoderKL
from latte.models.clip_text import ClipTextModel
from latte.models.configs import AutoencoderKLConfig, ClipTextConfig, I3DConfig, LatteConfig
from latte.models.i3d import I3D
from latte.models.latte import Latte
from latte.training import optim
from latte.training.graph import _Front

# Networks of two sizes, one after the other as asked for; what they and a training step compute.
PROGRAM = """
import hashlib, json, sys
import numpy as np
from latte import device, graph_cache
import mindspore as ms
from latte.diffusion import Diffusion
from latte.models.latte import Latte, LatteConfig
from latte.training import graph, optim

device.setup(seed=0)
random = np.random.default_rng(int(sys.argv[1]))

def tensor(*shape):
    return ms.Tensor(random.standard_normal(shape).astype(np.float32))

def step(size):
    config = LatteConfig(input_size=4, hidden_size=size, depth=2, num_heads=2, num_frames=2)
    net = Latte(config)
    for param in net.trainable_params():
        param.set_data(tensor(*param.shape) * 0.05)
    state = optim.make_state(net)
    accumulate, update = graph.make_accumulate(net, Diffusion(), state, 1), optim.make_update(state, 0.1)
    one = ms.Tensor(1.0, ms.float32)
    x0, noise = tensor(1, 2, 4, 4, 4), tensor(1, 2, 4, 4, 4)
    found = [float(x.asnumpy()) for x in accumulate(x0, ms.Tensor([7], ms.int32), noise, None, one * 0, one)]
    found.append(update(one * 0.01, one * 1e-8, one * 0.9, one * 0.5, one))
    net.set_train(False)
    clip = Diffusion(2).sample(net, random.standard_normal((1, 2, 4, 4, 4)))
    values = [value.asnumpy().tobytes() for value in (*net.get_parameters(), *state.ema)]
    return [*found, hashlib.sha256(b"".join([*values, clip.tobytes()])).hexdigest()]

print(json.dumps({size: step(int(size)) for size in sys.argv[2:]}))
"""


def run(cache: Path, *arguments: str, **variables: str) -> dict[str, Any]:
    """What the program finds in a process of its own."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "LATTE_FUSED_KERNELS": "0", **variables}
    environment.pop("MS_COMPILER_CACHE_PATH", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def graphs(cache: Path) -> dict[str, int]:
    """Files that are kept, and when they were written."""
    return {path.name: path.stat().st_ino for path in cache.glob("latte/kernels/*/graphs/*")}


def test_kept_graphs_compute_the_same_with_other_weights_and_in_another_order(tmp_path: Path) -> None:
    fresh = run(tmp_path / "other", "2", "16", "32", MS_COMPILER_CACHE_PATH=str(tmp_path / "of the user"))
    run(tmp_path, "1", "32", "16")
    kept = graphs(tmp_path)
    assert len(kept) == 2
    # A damaged one is told by its digest and compiled again; the others are taken as they are.
    damaged = max(tmp_path.glob("latte/kernels/*/graphs/*"), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert run(tmp_path, "2", "16", "32") == fresh
    now = graphs(tmp_path)
    assert {name.partition("-")[0] for name in now} == {name.partition("-")[0] for name in kept}
    assert {name for name in kept if now.get(name) != kept[name]} == {damaged.name}
    assert not list(tmp_path.glob("latte/kernels/*/running-*"))


def latte(**changes: Any) -> Latte:
    return Latte(LatteConfig(**{"input_size": 4, "hidden_size": 16, "depth": 2, "num_heads": 2, **changes}))


def front(net: Latte, **changes: Any) -> nn.Cell:
    settings = {"diffusion": Diffusion(), "accumulation": 1, **changes}
    return _Front(net, state=optim.make_state(net), **settings)


def half(net: nn.Cell) -> nn.Cell:
    layers.set_compute_type(net, ms.float16)
    return net


OTHERS: dict[str, tuple[Callable[[], nn.Cell], ...]] = {
    "sizes": (latte, lambda: latte(hidden_size=32), lambda: latte(num_frames=8), lambda: latte(num_heads=4)),
    "the compute type": (latte, lambda: half(latte())),
    "training": (lambda: latte().set_train(False), lambda: latte().set_train(True)),
    "recomputation": (lambda: front(latte()), lambda: front(recomputed(latte()))),
    "guidance": (lambda: _Prediction(latte(), True), lambda: _Prediction(latte(), False)),
    "the noise schedule": (
        lambda: front(latte()), lambda: front(latte(), diffusion=Diffusion(noise_schedule="cosine")),
    ),
    "accumulation": (lambda: front(latte()), lambda: front(latte(), accumulation=2)),
    "what is trained": (lambda: front(latte()), lambda: front(frozen(latte()))),
}  # fmt: skip


def recomputed(net: Latte) -> Latte:
    net.blocks[0].recompute()
    return net


def frozen(net: Latte) -> Latte:
    next(iter(net.trainable_params())).requires_grad = False
    return net


@pytest.mark.parametrize("what", OTHERS)
def test_networks_that_differ_have_graphs_of_their_own(what: str) -> None:
    keys = [graph_cache._key(make(), ("run", True)) for make in OTHERS[what]]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    assert [graph_cache._key(make(), ("run", True)) for make in OTHERS[what]] == keys


def test_inputs_surroundings_and_method_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    net = latte()
    one = ms.Tensor(np.zeros((2, 3), np.float32))
    inputs = [one, one.astype(ms.float16), ms.Tensor(np.zeros((3, 2), np.float32)), None]
    keys = {graph_cache._key(net, ("run", graph_cache._input(each))) for each in inputs}
    keys.add(graph_cache._key(net, ("other", graph_cache._input(one))))
    monkeypatch.setattr(graph_cache, "_surroundings", lambda: ["another version"])
    keys.add(graph_cache._key(net, ("run", graph_cache._input(one))))
    assert len(keys) == 6
    assert None not in keys


@pytest.mark.parametrize(
    "make",
    [
        lambda: AutoencoderKL(AutoencoderKLConfig(block_out_channels=(8, 8), norm_num_groups=4)),
        lambda: ClipTextModel(ClipTextConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)),
        lambda: I3D(I3DConfig(width=0.125, image_size=64)),
    ],
)
def test_every_network_can_be_described(make: Callable[[], nn.Cell]) -> None:
    assert graph_cache._key(make(), ("run", True)) is not None


class Strange(nn.Cell):
    """A network of sources that the digest does not know."""

    @ms.jit
    def double(self, x: ms.Tensor) -> ms.Tensor:
        return x * 2


def test_what_cannot_be_described_is_compiled_each_time() -> None:
    net = Strange()
    assert graph_cache._key(net, ("double", True)) is None
    assert graph_cache.call(net.double, ms.Tensor(3.0)).asnumpy() == 6
    net = latte()
    net.handle = object()
    assert graph_cache._key(net, ("run", True)) is None
