"""The networks on this machine's CPU: MindSpore (ours) beside PyTorch (peer), same weights, same inputs, taking turns.

    python benchmarks/models.py [--case forward,i3d,…] [--repeats 3] [--threads 2] [--json]

forward     Latte-S/2, 2 clips of 16 frames, 32x32 latents, against a plain PyTorch Latte (benchmarks/torch_twin.py)
forward-xl  the same of Latte-XL/2's width, one block over space and one over time, 1 clip
vae-encode  AutoencoderKL of sd-vae-ft-mse's shape, 1 frame of 256x256, against diffusers
vae-decode  the same, decoding
i3d         class scores of 1 clip of 16 frames of 224x224, against a plain PyTorch I3D (benchmarks/i3d_twin.py)
train       one update of `forward`'s network: squared error, gradients, clipping, AdamW, moving average of the weights
train-demo  the same of the demo's width and depth with four times its tokens: 8 clips of 16 frames, 8x8 latents

The two training cases run only where they are asked for; `benchmarks/train.py` measures the whole command.

Each side of a case is a process of its own that compiles and warms up, then waits for its turn; only one computes at a
time. Medians are compared; what both computed must agree. The first call, which compiles, is told apart. CPU seconds
are printed too: other work on the machine moves them less than it moves time. The last line's times are sums over the
cases.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

CASES = ("forward", "forward-xl", "vae-encode", "vae-decode", "i3d")
ON_REQUEST = ("train", "train-demo")
SMALL = {"input_size": 32, "patch_size": 2, "hidden_size": 384, "depth": 12, "num_heads": 6, "num_frames": 16}
LARGE = {"input_size": 32, "patch_size": 2, "hidden_size": 1152, "depth": 2, "num_heads": 16, "num_frames": 16}
DEMO = {"input_size": 8, "patch_size": 2, "hidden_size": 192, "depth": 6, "num_heads": 3, "num_frames": 16}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "latent_channels": 4,
}
# case: size of the Latte, clips
LATTES = {"forward": (SMALL, 2), "forward-xl": (LARGE, 1), "train": (SMALL, 2), "train-demo": (DEMO, 8)}
LEARNING_RATE, EMA_DECAY, MAX_NORM = 1e-4, 0.9999, 1.0
# What a turn computes: a function without arguments that returns a few numbers, the same on both sides.
Turn = Callable[[], np.ndarray]


def main() -> None:
    """Measure and print; with --json the last line is one JSON object."""
    parser = argparse.ArgumentParser(description="networks against PyTorch on a CPU")
    parser.add_argument("--case", default=",".join(CASES), help="which, separated by commas")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the peer's kernels")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = options.case.split(",")
    unknown = sorted(set(cases) - {*CASES, *ON_REQUEST})
    if unknown:
        parser.error(f"--case {unknown[0]}: know {', '.join(CASES + ON_REQUEST)}")
    if options.side:
        _serve(_turn(options.side, cases[0], options.threads))
        return
    results = []
    for case in cases:
        results.append(_compare(case, options.repeats, options.threads))
        print(
            "  {benchmark:<11} ours {ours_s:7.3f} s   peer {peer_s:7.3f} s   ratio {ratio:.2f}   "
            "CPU {ours_cpu_s:.2f} s and {peer_cpu_s:.2f} s   first call {first_call_s:.1f} s and "
            "{peer_first_call_s:.1f} s".format(**results[-1]),
            flush=True,
        )
    if options.json:
        ours_s, peer_s = (sum(result[key] for result in results) for key in ("ours_s", "peer_s"))
        print(
            json.dumps(
                {
                    "benchmark": "models: " + ", ".join(cases),
                    "peer": "PyTorch",
                    "ours_s": round(ours_s, 4),
                    "peer_s": round(peer_s, 4),
                    "ratio": round(peer_s / ours_s, 3),
                    "peak_bytes": max(result["peak_bytes"] for result in results),
                    "cases": results,
                }
            )
        )


def _compare(case: str, repeats: int, threads: int) -> dict[str, Any]:
    """Start both sides, let them take turns, compare times and results."""
    sides = {name: _start(name, case, threads) for name in ("ours", "peer")}
    try:
        warm = {name: _read(process, case) for name, process in sides.items()}
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, process in sides.items():
                pipe = cast(IO[str], process.stdin)
                pipe.write("go\n")
                pipe.flush()
                turns[name].append(_read(process, case))
    finally:
        for process in sides.values():
            process.communicate()
    one, other = (np.array(warm[name]["values"]) for name in ("ours", "peer"))
    if not np.allclose(one, other, rtol=1e-3, atol=1e-4):
        raise SystemExit(f"{case}: the two sides disagree: {one.tolist()} and {other.tolist()}")
    ours_s, peer_s = (statistics.median(turn["seconds"] for turn in turns[name]) for name in ("ours", "peer"))
    ours_cpu_s, peer_cpu_s = (statistics.median(turn["cpu_s"] for turn in turns[name]) for name in ("ours", "peer"))
    return {
        "benchmark": case,
        "peer": "diffusers" if case.startswith("vae") else "PyTorch",
        "ours_s": round(ours_s, 4),
        "peer_s": round(peer_s, 4),
        "ratio": round(peer_s / ours_s, 3),
        "ours_cpu_s": round(ours_cpu_s, 4),
        "peer_cpu_s": round(peer_cpu_s, 4),
        "cpu_ratio": round(peer_cpu_s / ours_cpu_s, 3),
        "peak_bytes": turns["ours"][-1]["peak_bytes"],
        "peer_peak_bytes": turns["peer"][-1]["peak_bytes"],
        "first_call_s": round(warm["ours"]["seconds"], 2),
        "peer_first_call_s": round(warm["peer"]["seconds"], 2),
    }


def _start(side: str, case: str, threads: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--side", side, "--case", case, "--threads", str(threads)]
    env = {**os.environ, "GLOG_v": "3", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def _read(process: subprocess.Popen[str], case: str) -> dict[str, Any]:
    for line in cast(IO[str], process.stdout):
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"{case}: a side ended with exit code {process.wait()}")


def _serve(turn: Turn) -> None:
    """Compute once at the start and once for every line of standard input; report each time."""
    while True:
        started, cpu_started = time.perf_counter(), time.process_time()
        values = turn()
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        facts = {"seconds": seconds, "cpu_s": cpu_s, "peak_bytes": peak_bytes, "values": values.tolist()}
        print(json.dumps(facts), flush=True)
        if not sys.stdin.readline():
            return


def _turn(side: str, case: str, threads: int) -> Turn:
    if side == "ours":
        import latte  # noqa: F401 - sets what MindSpore reads from the environment when it is loaded
    if case.startswith("vae"):
        return (_our_vae if side == "ours" else _peer_vae)(case, threads)
    if case == "i3d":
        return (_our_i3d if side == "ours" else _peer_i3d)(threads)
    size, clips = LATTES[case]
    build = _our_latte if side == "ours" else _peer_latte
    return build(size, clips, case.startswith("train"), threads)


def _weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random weights of a fitting scale, the same on both sides."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.standard_normal(shape) * (0.02 if len(shape) < 2 else np.prod(shape[1:]) ** -0.5)).astype(np.float32)
        for name, shape in sorted(shapes.items())
    }


def _i3d_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The same for I3D, whose variances are positive; without the counters that no forward pass reads."""
    weights = _weights({name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")})
    return {name: np.abs(value) + 1 if name.endswith("running_var") else value for name, value in weights.items()}


def _fill(net: Any, draw: Callable[[dict[str, tuple[int, ...]]], dict[str, np.ndarray]] = _weights) -> None:
    """Give a network of ours its random weights."""
    import mindspore as ms

    weights = draw({param.name: tuple(param.shape) for param in net.get_parameters()})
    for param in net.get_parameters():
        param.set_data(ms.Tensor(weights[param.name]))


def _clips(size: dict[str, int], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noisy latents, steps and noise."""
    rng = np.random.default_rng(1)
    shape = (count, size["num_frames"], 4, size["input_size"], size["input_size"])
    x, noise = rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)
    return x, rng.integers(0, 1000, count).astype(np.int32), noise


def _images(case: str) -> np.ndarray:
    shape = (1, 3, 256, 256) if case == "vae-encode" else (1, 4, 32, 32)
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


def _our_latte(size: dict[str, Any], clips: int, train: bool, threads: int) -> Turn:
    import mindspore as ms
    from mindspore import ops

    from latte import device
    from latte.models.configs import LatteConfig
    from latte.models.latte import Latte
    from latte.training import optim

    device.setup(seed=0)
    net = Latte(LatteConfig(**size))
    _fill(net)
    x, t, noise = (ms.Tensor(array) for array in _clips(size, clips))
    if not train:

        @ms.jit
        def forward(x: ms.Tensor, t: ms.Tensor) -> ms.Tensor:
            return net(x, t)

        return lambda: _digest(forward(x, t).asnumpy())

    net.set_train(True)
    state = optim.make_state(net)
    sums, count = state.grads, len(state.grads)

    def loss_of(x: ms.Tensor, t: ms.Tensor, noise: ms.Tensor) -> ms.Tensor:
        return ops.square(net(x, t)[:, :, :4] - noise).mean()

    grad_of = ops.value_and_grad(loss_of, None, state.params)

    @ms.jit
    def accumulate(x: ms.Tensor, t: ms.Tensor, noise: ms.Tensor) -> ms.Tensor:
        loss, grads = grad_of(x, t, noise)
        for i in range(count):
            loss = ops.depend(loss, ops.assign(sums[i], grads[i]))
        return loss

    update = optim.make_update(state, 0.0)
    steps = iter(range(1, 1_000_000))

    def step() -> np.ndarray:
        loss = accumulate(x, t, noise)
        norm = update(*optim.scalars(next(steps), LEARNING_RATE, 0.0, EMA_DECAY, MAX_NORM))
        return np.array([float(loss), float(norm)])

    return step


def _peer_latte(size: dict[str, int], clips: int, train: bool, threads: int) -> Turn:
    import torch
    from torch_twin import LatteTwin

    torch.set_num_threads(threads)
    net = LatteTwin(**size)
    state = net.state_dict()
    weights = _weights({name: tuple(value.shape) for name, value in state.items()})
    net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    x, t, noise = (torch.from_numpy(array) for array in _clips(size, clips))
    if not train:

        def forward() -> np.ndarray:
            with torch.inference_mode():
                return _digest(net(x, t).numpy())

        return forward

    params = [param for param in net.parameters() if param.requires_grad]
    averages = [param.detach().clone() for param in params]
    adam = torch.optim.AdamW(params, lr=LEARNING_RATE, weight_decay=0.0)

    def step() -> np.ndarray:
        adam.zero_grad()
        loss = (net(x, t)[:, :, :4] - noise).square().mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, params, 1 - EMA_DECAY)
        return np.array([loss.item(), norm.item()])

    return step


def _our_vae(case: str, threads: int) -> Turn:
    import mindspore as ms

    from latte import device
    from latte.models.autoencoder_kl import AutoencoderKL
    from latte.models.configs import AutoencoderKLConfig

    device.setup(seed=0)
    net = AutoencoderKL(AutoencoderKLConfig(**VAE))
    net.set_train(False)
    _fill(net)
    x = ms.Tensor(_images(case))

    if case == "vae-encode":
        return lambda: _digest(net.encode(x)[0].asnumpy())
    return lambda: _digest(net.decode(x).asnumpy())


def _peer_vae(case: str, threads: int) -> Turn:
    import torch
    from diffusers import AutoencoderKL

    torch.set_num_threads(threads)
    blocks = len(VAE["block_out_channels"])
    net = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks, **VAE
    ).eval()
    weights = _weights({name: tuple(value.shape) for name, value in net.state_dict().items()})
    net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    x = torch.from_numpy(_images(case))

    def run() -> np.ndarray:
        with torch.inference_mode():
            out = net.encode(x).latent_dist.mean if case == "vae-encode" else net.decode(x).sample
        return _digest(out.numpy())

    return run


def _video() -> np.ndarray:
    """A clip for I3D, (1, 3, 16, 224, 224)."""
    return np.random.default_rng(1).uniform(-1, 1, (1, 3, 16, 224, 224)).astype(np.float32)


def _our_i3d(threads: int) -> Turn:
    import mindspore as ms

    from latte import device
    from latte.models.i3d import I3D

    device.setup(seed=0)
    net = I3D()
    _fill(net, _i3d_weights)
    x = ms.Tensor(_video())
    return lambda: _digest(net(x).asnumpy())


def _peer_i3d(threads: int) -> Turn:
    import torch
    from i3d_twin import I3DTwin

    torch.set_num_threads(threads)
    net = I3DTwin().eval()
    weights = _i3d_weights({name: tuple(value.shape) for name, value in net.state_dict().items()})
    net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    x = torch.from_numpy(_video())

    def run() -> np.ndarray:
        with torch.inference_mode():
            return _digest(net(x).numpy())

    return run


def _digest(out: np.ndarray) -> np.ndarray:
    """Mean, deviation and a few elements."""
    return np.array([out.mean(), out.std(), *out.reshape(-1)[:: out.size // 5]], np.float64)


if __name__ == "__main__":
    main()
