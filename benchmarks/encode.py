"""Encoding a dataset: the encode step (ours) beside a plain loop of decord, PIL and diffusers (peer), same weights.

    python benchmarks/encode.py [--autoencoder published] [--clips 3] [--repeats 3] [--many 0] [--json]

Real clips of 16 frames become latents in files. Each side is a process of its own that loads, compiles and warms up,
then waits for its turn; only one computes at a time, and medians are compared. Ours also decodes alone and encodes
alone: its time over the slower of the two says how well they overlap. The peer does not hash, resume or survive a
broken video. With --many ours then encodes few and many clips of 32x32 pixels, each in a fresh process, for its peak
memory.

published   an autoencoder of sd-vae-ft-mse's shape, frames of 256x256, 4 in a batch
small       a hundredth of its multiplications, frames of 64x64, 16 in a batch
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import sides  # of this folder

_COMMON = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "norm_num_groups": 32, "scaling_factor": 0.18215}
MODELS: dict[str, dict[str, Any]] = {
    "published": {**_COMMON, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2},
    "small": {**_COMMON, "block_out_channels": [32, 64, 128, 128], "layers_per_block": 1},
}
# Side of the frames, frames in a batch, clips.
SIZES = {"published": (256, 4, 3), "small": (64, 16, 120)}
# Encoding so few must need about as much memory as encoding many.
FEW_CLIPS = 10
MEMORY_IMAGE_SIZE = 32


def main() -> None:
    """Measure and print; with --json the last line is one JSON object."""
    parser = argparse.ArgumentParser(description="the encode step against a plain loop with diffusers")
    parser.add_argument("--autoencoder", choices=MODELS, default="published", help="how large")
    parser.add_argument("--clips", type=int, help="clips of 16 frames; 3 or 120 without")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side; medians are printed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the peer's kernels")
    parser.add_argument("--many", type=int, default=0, help="clips whose peak memory is measured; 0 for none")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--only-memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.clips = options.clips or SIZES[options.autoencoder][2]
    if options.side:
        (_serve_ours if options.side == "ours" else _serve_peer)(options)
        return

    with tempfile.TemporaryDirectory(prefix="latte-bench-") as folder:
        _prepare(Path(folder), options)
        processes = {side: _start(side, Path(folder), options) for side in ("ours", "peer")}
        for process in processes.values():
            _read(process)
        turns: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
        for _ in range(options.repeats):
            for side, process in processes.items():
                print("go", file=process.stdin, flush=True)
                turns[side].append(_read(process))
        for process in processes.values():
            process.communicate()
        counts = (FEW_CLIPS, options.many) if options.many else ()
        peaks = {count: _peak_bytes_of(count, Path(folder), options) for count in counts}
    ours, peer = (np.array(turns[side][-1]["values"]) for side in ("ours", "peer"))
    if not np.allclose(ours, peer, rtol=1e-2, atol=1e-3):
        raise SystemExit(f"the sides disagree: {ours} and {peer}")
    ours_s, peer_s, decode_s, encode_s = (
        statistics.median(turn[key] for turn in turns[side])
        for side, key in (("ours", "seconds"), ("peer", "seconds"), ("ours", "decode_s"), ("ours", "encode_s"))
    )
    result = {
        "benchmark": f"encode: {options.autoencoder}",
        "peer": "plain loop: decord, PIL, diffusers",
        "ours_s": round(ours_s, 4),
        "peer_s": round(peer_s, 4),
        "ratio": round(peer_s / ours_s, 3),
        "peak_bytes": turns["ours"][-1]["peak_bytes"],
        **{f"peak_bytes_{count}_clips": peak_bytes for count, peak_bytes in peaks.items()},
        "peer_peak_bytes": turns["peer"][-1]["peak_bytes"],
        "clips": options.clips,
        "decode_alone_s": round(decode_s, 4),
        "encode_alone_s": round(encode_s, 4),
        "over_slowest_stage": round(ours_s / max(decode_s, encode_s), 3),
    }
    for key, value in result.items():
        print(f"  {key:<24} {value}")
    if options.json:
        print(json.dumps(result))


def _prepare(folder: Path, options: argparse.Namespace) -> None:
    """Real clips, and one set of weights for both sides."""
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file

    from latte import storage
    from latte.storage import manifest
    from pipelines.demo.data import cut_demo_clips

    cut_demo_clips(folder / "all")
    _take(options.clips, folder)
    model = MODELS[options.autoencoder]
    blocks = len(model["block_out_channels"])
    net = AutoencoderKL(
        **model, down_block_types=["DownEncoderBlock2D"] * blocks, up_block_types=["UpDecoderBlock2D"] * blocks
    )
    net.save_pretrained(folder / "peer")
    uri = (folder / "vae").as_uri()
    (folder / "vae").mkdir()
    path = folder / "vae" / "model.safetensors"
    save_file(net.state_dict(), path)
    shard = manifest.Shard(uri=path.as_uri(), bytes=path.stat().st_size, sha256=storage.sha256_file(path))
    facts = {"kind": "vae", "model": model}
    manifest.finish(
        manifest.Manifest(kind="weights", name="vae", uri=uri, fingerprint="0", shards=[shard], config=facts)
    )


def _take(clips: int, folder: Path, place: str = "") -> Path:
    """Put so many clips, spread over all, into a folder of videos; more than there are differ by an empty box each."""
    found = sorted((folder / "all").rglob("*.mp4"))
    videos = folder / place / "videos"
    videos.mkdir(parents=True)
    for number in range(clips):
        clip = found[number * max(1, len(found) // clips) % len(found)].read_bytes()
        mark = number.to_bytes(8, "big")
        (videos / f"{number:05d}.mp4").write_bytes(clip + (8 + len(mark)).to_bytes(4, "big") + b"free" + mark)
    return videos.parent


def _peak_bytes_of(clips: int, folder: Path, options: argparse.Namespace) -> int:
    """Peak memory of our side, decoders included, with so many clips."""
    place = _take(clips, folder, f"{clips}-clips")
    shutil.copytree(folder / "vae", place / "vae")
    process = _start("ours", place, options, more=("--only-memory",))
    _read(process)
    print("go", file=process.stdin, flush=True)
    peak_bytes = int(_read(process)["peak_bytes"])
    process.communicate()
    return peak_bytes


def _start(side: str, folder: Path, options: argparse.Namespace, more: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), *more]
    command += ["--autoencoder", options.autoencoder, "--threads", str(options.threads)]
    env = sides.environment(side)
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def _read(process: subprocess.Popen[str]) -> dict[str, Any]:
    for line in process.stdout or ():
        if line.startswith("{"):
            answer: dict[str, Any] = json.loads(line)
            return answer
    raise SystemExit(f"a side ended with exit code {process.wait()}")


def _turns() -> Any:
    """Says that this side is warm, then waits for each turn."""
    print("{}", flush=True)
    for _ in sys.stdin:
        yield


def _answer(decoders_bytes: int = 0, **facts: Any) -> None:
    print(json.dumps({**facts, "peak_bytes": _peak_bytes(Path("/proc/self")) + decoders_bytes}), flush=True)


def _peak_bytes(process: Path) -> int:
    """Most memory that a process held since its program began; getrusage would begin with what its parent held."""
    return int((process / "status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def _decoders_peak_bytes() -> int:
    """Most memory that this process's decoders held, all together."""
    total_bytes = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"latte.video.decoder_process\0{os.getpid()}\0" in (folder / "cmdline").read_text():
                total_bytes += _peak_bytes(folder)
    return total_bytes


def _serve_ours(options: argparse.Namespace) -> None:
    from latte import storage
    from latte.data import encode_plan, encoding
    from latte.data.catalog import DatasetConfig
    from latte.data.latents import LatentClips
    from latte.steps import encode
    from latte.storage import manifest
    from latte.video.decoders import Chunk, Limits, decode_all
    from latte.video.sources import VideoSource

    folder = Path(options.folder)
    size, batch, _ = SIZES[options.autoencoder]
    if options.only_memory:
        size = MEMORY_IMAGE_SIZE
    vae = manifest.read(folder / "vae" / "manifest.json")
    network = encoding.load_encoder(vae, batch, size)
    blank = np.zeros((batch, size, size, 3), np.uint8)
    network(blank)
    config = encode.EncodeConfig(
        root=(folder / "root").as_uri(),
        name="bench",
        dataset=DatasetConfig(videos=str(folder / "videos")),
        vae=str(folder / "vae" / "manifest.json"),
        image_size=size,
        num_tasks=4,
    )
    latent = size // 2 ** (len(MODELS[options.autoencoder]["block_out_channels"]) - 1)
    settings = encoding.Settings(size, batch, "float16", (2, 4, latent, latent), None, 2, Limits())
    for _ in _turns():
        shutil.rmtree(folder / "root", ignore_errors=True)
        with contextlib.redirect_stderr(io.StringIO()):
            started = time.perf_counter()
            planned = encode.plan(config)
            plan = encode_plan.read(planned.shard(encode_plan.PLAN).uri)
            shards = encode_plan.task_shards(plan, planned.uri.split("/catalogs/")[0], 0, 1, by_etag=False)
            encoding.encode_all(shards, settings, network)
            done = encode.merge(config, storage.join(planned.uri, "manifest.json"))
            seconds = time.perf_counter() - started

        started = time.perf_counter()
        sources = [VideoSource(video.uri, video.content) for shard in shards for video in shard.videos]
        frames = decoders_bytes = 0
        for event in decode_all(sources, size):
            if isinstance(event, Chunk):
                frames += len(event.frames)
            elif event.index == len(sources) // 2:
                decoders_bytes = _decoders_peak_bytes()
        decode_s = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(0 if options.only_memory else -(-frames // batch)):
            network(blank)
        encode_s = time.perf_counter() - started

        clips = LatentClips(done, folder)
        values = [float(clips.clip(i, 0, 1, 16)[0].mean()) for i in range(len(clips.videos))]
        _answer(decoders_bytes, seconds=seconds, decode_s=decode_s, encode_s=encode_s, values=values)


def _serve_peer(options: argparse.Namespace) -> None:
    import decord
    import torch
    from diffusers import AutoencoderKL
    from PIL import Image
    from safetensors.torch import save_file

    torch.set_num_threads(options.threads)
    folder = Path(options.folder)
    size, batch_frames, _ = SIZES[options.autoencoder]
    net = AutoencoderKL.from_pretrained(folder / "peer").eval()

    def transform(pixels: np.ndarray) -> np.ndarray:
        frame = Image.fromarray(pixels)
        while min(frame.size) >= 2 * size:
            frame = frame.resize((frame.width // 2, frame.height // 2), Image.Resampling.BOX)
        scale = size / min(frame.size)
        frame = frame.resize((round(frame.width * scale), round(frame.height * scale)), Image.Resampling.BICUBIC)
        left, top = (frame.width - size) // 2, (frame.height - size) // 2
        return np.asarray(frame)[top : top + size, left : left + size]

    with torch.inference_mode():
        net.encode(torch.zeros(batch_frames, 3, size, size))
        for _ in _turns():
            values = []
            started = time.perf_counter()
            for path in sorted((folder / "videos").iterdir()):
                reader = decord.VideoReader(str(path))
                parts = []
                for start in range(0, len(reader), batch_frames):
                    batch = reader.get_batch(range(start, min(start + batch_frames, len(reader)))).asnumpy()
                    frames = torch.from_numpy(np.stack([transform(frame) for frame in batch]))  # (n, S, S, 3)
                    posterior = net.encode(frames.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist
                    parts.append(torch.stack([posterior.mean, posterior.logvar], 1).half())  # (n, 2, C, h, w)
                latents = torch.cat(parts)
                save_file({"latents": latents}, folder / "peer" / f"{path.stem}.safetensors")
                values.append(float(latents[:, 0].float().mean()))
            _answer(seconds=time.perf_counter() - started, values=values)


if __name__ == "__main__":
    main()
