"""Making a set of videos: the sample step (ours) beside a plain PyTorch loop with diffusers' VAE (peer), same weights.

    python benchmarks/sample.py [--videos 16] [--steps 25] [--batch-size 8] [--repeats 3] [--json]

The demo's size: 16 frames of 64x64 pixels, a Latte of width 192 and depth 8 on 8x8 latents, DDIM. Each side is one
process that loads, compiles and warms up, then waits for its turn; only one computes at a time, and medians are
compared. Both start from the same noise, write each video losslessly and as a preview, and must make the same videos.
The peer does not hash, resume, or grow a set.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import sides  # of this folder

sys.path.insert(0, str(Path(__file__).parent))

LATTE: dict[str, Any] = {
    "input_size": 8,
    "patch_size": 2,
    "hidden_size": 192,
    "depth": 8,
    "num_heads": 3,
    "num_frames": 16,
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [32, 64, 128, 128],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
DIFFUSION_STEPS, SEED, FPS = 1000, 0, 8.0


def main() -> None:
    """Measure and print; with --json the last line is one JSON object."""
    parser = argparse.ArgumentParser(description="the sample step against a plain PyTorch loop")
    parser.add_argument("--videos", type=int, default=16, help="videos of the set")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps")
    parser.add_argument("--batch-size", type=int, default=8, help="videos generated together")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side; medians are printed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the peer's kernels")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        (_serve_ours if options.side == "ours" else _serve_peer)(options)
        return
    with tempfile.TemporaryDirectory(prefix="latte-bench-") as folder:
        _prepare(Path(folder))
        turns = take_turns(__file__, folder, options.repeats, _passed_on(options))
    ours, peer = (np.array(turns[side][-1]["values"]) for side in ("ours", "peer"))
    if not np.allclose(ours, peer, atol=1.0):
        raise SystemExit(f"the sides disagree: {ours} and {peer}")
    ours_s, peer_s = (statistics.median(turn["seconds"] for turn in turns[side]) for side in ("ours", "peer"))
    result = {
        "benchmark": "sample",
        "peer": "plain PyTorch loop with diffusers' VAE",
        "ours_s": round(ours_s, 4),
        "peer_s": round(peer_s, 4),
        "ratio": round(peer_s / ours_s, 3),
        "peak_bytes": turns["ours"][-1]["peak_bytes"],
        "peer_peak_bytes": turns["peer"][-1]["peak_bytes"],
        "videos": options.videos,
        "videos_per_s": round(options.videos / ours_s, 3),
        "peer_videos_per_s": round(options.videos / peer_s, 3),
    }
    for key, value in result.items():
        print(f"  {key:<18} {value}")
    if options.json:
        print(json.dumps(result))


def _passed_on(options: argparse.Namespace) -> list[str]:
    names = ("videos", "steps", "batch_size", "threads")
    return [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]


def take_turns(script: str, folder: str, repeats: int, arguments: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Start both sides of a benchmark, wait until they are warm, and let them compute in turns.

    Args:
        script: file that is started with `--side ours|peer --folder F` and answers with lines of JSON.
        folder: what both sides share.
        repeats: turns of each side.
        arguments: more arguments for the script.
    """
    processes = {
        side: subprocess.Popen(
            [sys.executable, script, "--side", side, "--folder", folder, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=sides.environment(side),
        )
        for side in ("ours", "peer")
    }
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in processes}
    try:
        for process in processes.values():
            _read(process)
        for _ in range(repeats):
            for side, process in processes.items():
                print("go", file=process.stdin, flush=True)
                turns[side].append(_read(process))
    finally:
        for process in processes.values():
            process.communicate()
    return turns


def _read(process: subprocess.Popen[str]) -> dict[str, Any]:
    for line in cast(IO[str], process.stdout):
        if line.startswith("{"):
            answer: dict[str, Any] = json.loads(line)
            return answer
    raise SystemExit(f"a side ended with exit code {process.wait()}")


def turns_of_this_side() -> Any:
    """Say that this side is warm, then wait for each turn."""
    print("{}", flush=True)
    for _ in sys.stdin:
        yield


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def answer(**facts: Any) -> None:
    """Report a turn, with the most memory that this process has held."""
    print(json.dumps({**facts, "peak_bytes": peak_bytes()}), flush=True)


def publish(folder: Path, kind: Any, name: str, arrays: dict[str, np.ndarray], **fields: Any) -> None:
    """Weights with a manifest at `folder/manifest.json`, as the steps read them."""
    from safetensors.numpy import save_file

    from latte import storage
    from latte.storage import manifest

    path = folder / name
    path.parent.mkdir(parents=True)
    save_file(arrays, path)
    shard = manifest.Shard(uri=path.as_uri(), bytes=path.stat().st_size, sha256=storage.sha256_file(path))
    manifest.finish(
        manifest.Manifest(kind=kind, name=folder.name, uri=folder.as_uri(), fingerprint="0", shards=[shard], **fields)
    )


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random weights of a fitting scale: norms near the identity, biases small."""
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in sorted(shapes.items()):
        value = rng.standard_normal(shape) * (0.02 if len(shape) < 2 else np.prod(shape[1:]) ** -0.5)
        is_norm = len(shape) == 1 and name.endswith("weight")
        weights[name] = (value + 1.0 if is_norm else value).astype(np.float32)
    return weights


def _prepare(folder: Path) -> None:
    """One set of weights for both sides."""
    from diffusers import AutoencoderKL
    from torch_twin import LatteTwin

    from latte.models.configs import LatteConfig
    from latte.storage import manifest

    blocks = len(VAE["block_out_channels"])
    vae = AutoencoderKL(
        **VAE, down_block_types=["DownEncoderBlock2D"] * blocks, up_block_types=["UpDecoderBlock2D"] * blocks
    )
    vae.save_pretrained(folder / "peer")
    arrays = {name: value.numpy() for name, value in vae.state_dict().items()}
    publish(folder / "vae", "weights", "model.safetensors", arrays, config={"kind": "vae", "model": VAE})
    shapes = {name: tuple(value.shape) for name, value in LatteTwin(**LATTE).state_dict().items()}
    publish(
        folder / "run",
        "checkpoint",
        "checkpoints/step-00000001/ema.safetensors",
        random_weights(shapes),
        config={
            "model": LatteConfig(**LATTE).model_dump(),
            "diffusion": {"noise_schedule": "linear"},
            "classes": [],
            "image_size": 64,
            "scaling_factor": VAE["scaling_factor"],
            "vae": manifest.read(folder / "vae" / "manifest.json").shards[0].sha256,
        },
        metrics={"step": 1},
    )


def _serve_ours(options: argparse.Namespace) -> None:
    from latte import storage
    from latte.steps import sample
    from latte.video import clip_files

    folder = Path(options.folder)
    root = folder / "root"

    def make(count: int) -> list[float]:
        shutil.rmtree(root, ignore_errors=True)
        done = sample.run(
            sample.SampleConfig(
                root=root.as_uri(),
                name="bench",
                checkpoint=str(folder / "run" / "manifest.json"),
                vae=str(folder / "vae" / "manifest.json"),
                num_videos=count,
                num_sampling_steps=options.steps,
                method="ddim",
                batch_size=options.batch_size,
                seed=SEED,
            )
        )
        items = storage.read_json(storage.join(done.uri, "items.json"))
        return [float(clip_files.read_lossless(item["video"]).mean()) for item in items[:4]]

    with contextlib.redirect_stderr(io.StringIO()):
        make(options.batch_size)
        for _ in turns_of_this_side():
            started = time.perf_counter()
            values = make(options.videos)
            answer(seconds=time.perf_counter() - started, values=values)


def _serve_peer(options: argparse.Namespace) -> None:
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file
    from torch_twin import LatteTwin

    from latte import rng
    from latte.video import clip_files

    torch.set_num_threads(options.threads)
    folder = Path(options.folder)
    vae = AutoencoderKL.from_pretrained(folder / "peer").eval()
    net = LatteTwin(**LATTE).eval()
    net.load_state_dict(load_file(folder / "run" / "checkpoints" / "step-00000001" / "ema.safetensors"))
    kept = np.cumprod(1.0 - np.linspace(1e-4, 0.02, DIFFUSION_STEPS))
    stride = (DIFFUSION_STEPS - 1) / max(1, options.steps - 1)
    steps = [round(i * stride) for i in range(options.steps)]
    shape = (LATTE["num_frames"], 4, LATTE["input_size"], LATTE["input_size"])

    def make(count: int) -> list[float]:
        target = folder / "peer-videos"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        means = []
        for first in range(0, count, options.batch_size):
            group = range(first, min(first + options.batch_size, count))
            noise = [rng.stream(SEED, "sample noise", i).standard_normal(shape, np.float32) for i in group]
            x = torch.from_numpy(np.stack(noise))  # (N, F, C, h, w)
            for position in reversed(range(len(steps))):
                step = steps[position]
                left = float(kept[steps[position - 1]]) if position else 1.0
                predicted = net(x, torch.full((len(x),), step))[:, :, :4]
                clean = (x - (1 - kept[step]) ** 0.5 * predicted) / kept[step] ** 0.5
                x = left**0.5 * clean + (1 - left) ** 0.5 * predicted
            images = torch.cat(
                [vae.decode(part).sample for part in (x.flatten(0, 1) / VAE["scaling_factor"]).split(16)]
            )  # (N F, 3, H, W)
            pixels = (images * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
            for index, frames in zip(group, pixels.reshape(len(x), -1, *pixels.shape[1:]), strict=True):
                clip_files.write_lossless(target / f"{index}.mkv", frames, FPS)
                clip_files.write_preview(target / f"{index}.mp4", frames, FPS)
                means.append(float(frames.mean()))
        return means[:4]

    with torch.inference_mode():
        make(options.batch_size)
        for _ in turns_of_this_side():
            started = time.perf_counter()
            values = make(options.videos)
            answer(seconds=time.perf_counter() - started, values=values)


if __name__ == "__main__":
    main()
