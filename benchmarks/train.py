"""Training on this machine's CPU: `latte train` with its data in S3 (ours) beside a PyTorch loop (peer).

    python benchmarks/train.py [--size demo|small] [--steps 30] [--rounds 2] [--workers 1,2] [--json]

Ours is the command as it is: latents read from a real S3 server, posterior and noise drawn, loss with learned variance,
clipping, AdamW, moving average, loss log. The peer is a plain PyTorch Latte (benchmarks/torch_twin.py) with the same
loss, clipping, AdamW and average, its batches in memory already. Both sides take turns; medians are compared. The first
step, which compiles the graphs, is told apart, as are the share of the time that ours waits for data and the speed of
two workers that share the cores.

demo   8 clips of 16 frames, 8x8 latents, width 192, depth 8: the demo's model
small  2 clips of 16 frames, 32x32 latents: Latte-S/2
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import sides  # of this folder

sys.path.insert(0, str(Path(__file__).parent))

SIZES: dict[str, dict[str, Any]] = {
    "demo": {
        "clips": 8,
        "model": {"input_size": 8, "patch_size": 4, "hidden_size": 192, "depth": 6, "num_heads": 4, "num_frames": 16},
    },
    "small": {
        "clips": 2,
        "model": {"input_size": 32, "patch_size": 2, "hidden_size": 384, "depth": 12, "num_heads": 6, "num_frames": 16},
    },
}
VIDEOS, VIDEO_FRAMES = 32, 64
LEARNING_RATE, EMA_DECAY, MAX_NORM = 1e-4, 0.9999, 0.1


def main() -> None:
    """Measure and print; with --json the last line is one JSON object."""
    parser = argparse.ArgumentParser(description="training against PyTorch on a CPU")
    parser.add_argument("--size", choices=sorted(SIZES), default="demo")
    parser.add_argument("--steps", type=int, default=30, help="steps of each turn, after the first")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side")
    parser.add_argument("--workers", default="1,2", help="numbers of workers, separated by commas; 1 is compared")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the peer's kernels")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        print(json.dumps(_peer(SIZES[options.size], options.steps, options.threads)))
        return
    counts = [int(text) for text in options.workers.split(",")]
    if 1 not in counts:
        parser.error("--workers: 1 is what is compared; name it")
    ours: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    peers = []
    from pipelines import store as stores

    with tempfile.TemporaryDirectory(prefix="latte-bench-") as name, stores.serve(Path(name) / "store") as store:
        os.environ.update(store.environment)
        root = f"s3://{stores.BUCKET}/bench"
        latents = _write_latents(root, SIZES[options.size]["model"])
        for turn in range(options.rounds):
            for count in counts:
                ours[count].append(_ours(options, root, latents, count, turn, Path(name)))
            peers.append(_run_peer(options))
    result = _summary(options, ours, peers)
    for key, value in result.items():
        print(f"  {key:<22} {value}")
    if options.json:
        print(json.dumps(result))


def _summary(
    options: argparse.Namespace, ours: dict[int, list[dict[str, Any]]], peers: list[dict[str, Any]]
) -> dict[str, Any]:
    step_s = {count: statistics.median(1 / turn["steps_per_s"] for turn in turns) for count, turns in ours.items()}
    peer_s = statistics.median(peer["step_s"] for peer in peers)
    alone = ours[1]
    return {
        "benchmark": f"train: {options.size}",
        "peer": "PyTorch",
        "ours_s": round(step_s[1], 4),
        "peer_s": round(peer_s, 4),
        "ratio": round(peer_s / step_s[1], 3),
        "peak_bytes": max(turn["peak_bytes"] for turn in alone),
        "peer_peak_bytes": max(peer["peak_bytes"] for peer in peers),
        "compile_s": round(statistics.median(turn["first_step_s"] for turn in alone) - step_s[1], 2),
        "data_wait_share": statistics.median(turn["data_wait_share"] for turn in alone),
        "scaling": {str(count): round(step_s[1] / seconds, 3) for count, seconds in step_s.items()},
        "loss": alone[0]["loss"],
        "peer_loss": peers[0]["loss"],
    }


def _ours(
    options: argparse.Namespace, root: str, latents: str, workers: int, turn: int, folder: Path
) -> dict[str, Any]:
    size = SIZES[options.size]
    target = folder / "checkpoint.json"
    code = (
        "import resource, sys; from latte.cli import cli; cli(sys.argv[1:], standalone_mode=False); "
        "print(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))"
    )
    settings = {
        "root": root,
        "name": f"{options.size}-{workers}-{turn}",
        "latents": latents,
        "model": json.dumps(size["model"]),
        "steps": options.steps + 1,
        "workers": workers,
        "batch_size": size["clips"],
        "learning_rate": LEARNING_RATE,
        "ema_decay": EMA_DECAY,
        "clip_grad_norm": MAX_NORM,
        "clip_start_step": 1,
    }
    command = [sys.executable, "-c", code, "train", "--manifest", str(target)]
    command += [f"{key}={value}" for key, value in settings.items()]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "GLOG_v": "3"})
    if done.returncode:
        raise SystemExit(f"latte train ended with exit code {done.returncode}:\n{done.stderr}")
    metrics = json.loads(target.read_text())["metrics"]
    return {**metrics, "peak_bytes": int(done.stdout.split()[-1]) * 1024}


def _write_latents(root: str, model: dict[str, Any]) -> str:
    """Random latents of the layout that the encode step writes; returns their manifest."""
    from latte import storage
    from latte.data import latents
    from latte.storage import manifest

    place = storage.join(root, "datasets", "random")
    side = model["input_size"]
    rows = np.random.default_rng(0).standard_normal((VIDEOS, VIDEO_FRAMES, 2, 4, side, side), np.float32)
    rows[:, :, 1] = -8.0  # log-variance
    data = rows.astype(np.float16).tobytes()
    shard = manifest.publish_shard(data, storage.join(place, "shards", "0.safetensors"), VIDEOS)
    size = len(data) // VIDEOS
    videos = [
        {"id": f"{i}.mp4", "label": None, "num_frames": VIDEO_FRAMES, "uri": "", "shard": 0, "offset": i * size}
        for i in range(VIDEOS)
    ]
    index = {
        "row_shape": [2, 4, side, side],
        "dtype": "float16",
        "shards": ["shards/0.safetensors"],
        "videos": videos,
    }
    ref = storage.write_json(storage.join(place, latents.INDEX), index)
    manifest.finish(
        manifest.Manifest(
            kind="latents",
            name="random",
            uri=place,
            fingerprint=ref.sha256,
            shards=[shard, manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256)],
            inputs={"vae": ""},
            config={
                "classes": [],
                "image_size": 8 * side,
                "latent_size": side,
                "latent_channels": 4,
                "scaling_factor": 1.0,
            },
        )
    )
    return storage.join(place, "manifest.json")


def _run_peer(options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--peer", "--size", options.size]
    command += ["--steps", str(options.steps), "--threads", str(options.threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=sides.environment("peer"))
    return json.loads(done.stdout.splitlines()[-1])


def _peer(size: dict[str, Any], steps: int, threads: int) -> dict[str, Any]:
    """The PyTorch side: fresh weights, random batches made beforehand."""
    import torch
    from torch_twin import LatteTwin

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = size["model"]
    net = LatteTwin(**model)
    with torch.no_grad():  # adaLN-zero, as in the published code
        for name, param in net.named_parameters():
            if "adaLN_modulation" in name or "final_layer.linear" in name:
                param.zero_()
    params = [param for param in net.parameters() if param.requires_grad]
    weights = [param.detach() for param in params]
    averages = [weight.clone() for weight in weights]
    adam = torch.optim.AdamW(params, lr=LEARNING_RATE, weight_decay=0.0)
    shape = (size["clips"], model["num_frames"], 4, model["input_size"], model["input_size"])
    losses_of = _hybrid_loss()
    times, first_loss = [], 0.0
    for step in range(steps + 3):
        x0, noise = torch.randn(shape), torch.randn(shape)
        t = torch.randint(0, 1000, (size["clips"],))
        started = time.perf_counter()
        adam.zero_grad()
        loss = losses_of(net, x0, t, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - EMA_DECAY)
        value = loss.item()
        times.append(time.perf_counter() - started)
        if step == 0:
            first_loss = value
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # The first steps fill caches: they do not count.
    return {"step_s": statistics.mean(times[3:]), "loss": first_loss, "peak_bytes": peak_bytes}


def _hybrid_loss() -> Any:
    """Squared error of the noise and the bound that teaches the variance, for the linear schedule, in PyTorch."""
    import torch

    betas = np.linspace(1e-4, 0.02, 1000)
    cumprod = np.cumprod(1 - betas)
    before = np.append(1.0, cumprod[:-1])
    posterior = betas * (1 - before) / (1 - cumprod)
    columns = {
        "clean": np.sqrt(cumprod),
        "noisy": np.sqrt(1 - cumprod),
        "mean_x0": betas * np.sqrt(before) / (1 - cumprod),
        "mean_xt": (1 - before) * np.sqrt(1 - betas) / (1 - cumprod),
        "log_smallest": np.log(np.append(posterior[1], posterior[1:])),
        "log_largest": np.log(betas),
    }
    tables = {name: torch.tensor(column, dtype=torch.float32) for name, column in columns.items()}

    def cdf(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (1 + torch.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def loss_of(net: Any, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        at = {name: table[t].reshape(-1, 1, 1, 1, 1) for name, table in tables.items()}
        xt = at["clean"] * x0 + at["noisy"] * noise  # (N, F, C, h, w)
        predicted, share = net(xt, t).chunk(2, dim=2)
        share = (share + 1) / 2
        log_variance = share * at["log_largest"] + (1 - share) * at["log_smallest"]
        x0_predicted = (xt - at["noisy"] * predicted.detach()) / at["clean"]
        mean = at["mean_x0"] * x0_predicted + at["mean_xt"] * xt
        true_mean = at["mean_x0"] * x0 + at["mean_xt"] * xt
        kl = 0.5 * (
            log_variance
            - at["log_smallest"]
            - 1
            + torch.exp(at["log_smallest"] - log_variance)
            + (true_mean - mean) ** 2 * torch.exp(-log_variance)
        )
        inverse = torch.exp(-0.5 * log_variance)
        above, below = cdf(inverse * (x0 - mean + 1 / 255)), cdf(inverse * (x0 - mean - 1 / 255))
        inside = torch.log((above - below).clamp(min=1e-12))
        lowest, highest = torch.log(above.clamp(min=1e-12)), torch.log((1 - below).clamp(min=1e-12))
        likelihood = torch.where(x0 < -0.999, lowest, torch.where(x0 > 0.999, highest, inside))
        bound = torch.where((t == 0).reshape(-1, 1, 1, 1, 1), -likelihood, kl) / np.log(2.0)
        return ((noise - predicted) ** 2).mean() + bound.mean()

    return loss_of


if __name__ == "__main__":
    main()
