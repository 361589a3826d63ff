"""Scoring a set: the score step (ours) beside a plain loop of PyAV, PyTorch's I3D and scipy's sqrtm (peer).

    python benchmarks/score.py [--clips 12] [--repeats 2] [--json]

As many generated clips as real ones, 16 frames of 64x64 pixels, lossless files, the same random weights. Each side is
one process that loads, compiles and warms up, then waits for its turn; only one computes at a time, and medians are
compared. Both must come to the same distance. Each side first scores a third of the clips; how much its peak memory
grows from there to all of them is printed (`grown_bytes`). The peer gives no interval and keeps no features.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

FRAMES, SIZE, BATCH, FPS = 16, 64, 2, 8.0


def main() -> None:
    """Measure and print; with --json the last line is one JSON object."""
    from sample import take_turns

    parser = argparse.ArgumentParser(description="the score step against a plain PyTorch loop")
    parser.add_argument("--clips", type=int, default=12, help="clips of each side of the comparison")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each side; medians are printed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the peer's kernels")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        (_serve_ours if options.side == "ours" else _serve_peer)(options)
        return
    with tempfile.TemporaryDirectory(prefix="latte-bench-") as folder:
        _prepare(Path(folder), options.clips)
        arguments = ["--clips", str(options.clips), "--threads", str(options.threads)]
        turns = take_turns(__file__, folder, options.repeats, arguments)
    ours, peer = (turns[side][-1] for side in ("ours", "peer"))
    if not np.isclose(ours["value"], peer["value"], rtol=1e-2):
        raise SystemExit(f"the sides disagree: {ours['value']} and {peer['value']}")
    ours_s, peer_s = (statistics.median(turn["seconds"] for turn in turns[side]) for side in ("ours", "peer"))
    result = {
        "benchmark": "score",
        "peer": "plain loop: PyAV, PyTorch I3D, scipy sqrtm",
        "ours_s": round(ours_s, 4),
        "peer_s": round(peer_s, 4),
        "ratio": round(peer_s / ours_s, 3),
        "peak_bytes": ours["peak_bytes"],
        "peer_peak_bytes": peer["peak_bytes"],
        "grown_bytes": ours["peak_bytes"] - ours["first_peak_bytes"],
        "peer_grown_bytes": peer["peak_bytes"] - peer["first_peak_bytes"],
        "clips": 2 * options.clips,
        "clips_per_s": round(2 * options.clips / ours_s, 3),
        "value": ours["value"],
        "peer_value": peer["value"],
    }
    for key, value in result.items():
        print(f"  {key:<18} {value}")
    if options.json:
        print(json.dumps(result))


def _moving(seed: int) -> np.ndarray:
    """Waves that move, (F, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    t, y, x = np.mgrid[:FRAMES, :SIZE, :SIZE].astype(np.float32)
    channels = [np.sin(x * a + y * b + t * c) for a, b, c in rng.uniform(-0.5, 0.5, (3, 3))]
    return (127.5 + 127.5 * np.stack(channels, axis=-1)).astype(np.uint8)


def _prepare(folder: Path, clips: int) -> None:
    """Two sets of files, and one set of weights for both sides."""
    from i3d_twin import I3DTwin
    from sample import publish, random_weights

    from latte import latents, manifest, storage, video

    shapes = {n: tuple(v.shape) for n, v in I3DTwin().state_dict().items() if not n.endswith("num_batches_tracked")}
    weights = random_weights(shapes)
    for name in weights:
        if name.endswith("running_var"):
            weights[name] = np.abs(weights[name]) + 1.0
    publish(folder / "i3d", "weights", "model.safetensors", weights, config={"kind": "i3d", "random": True})
    for side in range(2):
        items: list[dict[str, Any]] = []
        (folder / f"clips{side}").mkdir()
        for index in range(clips):
            path = folder / f"clips{side}" / f"{index:05d}.mkv"
            video.write_lossless(path, _moving(1000 * side + index), FPS)
            items.append({"index": index, "video": path.as_uri(), "sha256": storage.sha256_file(path)})
        if side == 0:
            for count in {clips, max(2, clips // 3)}:
                uri = (folder / f"set-{count}").as_uri()
                storage.write_json(storage.join(uri, "items.json"), items[:count])
                facts = {"num_frames": FRAMES, "image_size": SIZE}
                manifest.finish(
                    manifest.Manifest(kind="video_set", name="v", uri=uri, fingerprint=f"{count}", config=facts)
                )
            continue
        videos = [
            {"id": item["video"], "label": None, "num_frames": FRAMES, "uri": item["video"], "shard": 0, "offset": 0}
            for item in items
        ]
        index = {"videos": videos, "row_shape": [2, 4, 8, 8], "dtype": "float16", "shards": []}
        uri = (folder / "real").as_uri()
        shard = manifest.publish_shard(json.dumps(index).encode(), storage.join(uri, latents.INDEX))
        facts = {"image_size": SIZE, "scaling_factor": 0.18}
        manifest.finish(
            manifest.Manifest(kind="latents", name="r", uri=uri, fingerprint="r", shards=[shard], config=facts)
        )


def _serve_ours(options: argparse.Namespace) -> None:
    from sample import answer, peak_bytes, turns_of_this_side

    from latte.steps import score

    folder = Path(options.folder)

    def measure(count: int) -> float:
        shutil.rmtree(folder / "root", ignore_errors=True)
        done = score.run(
            score.ScoreConfig(
                root=(folder / "root").as_uri(),
                name="bench",
                videos=str(folder / f"set-{count}" / "manifest.json"),
                real=str(folder / "real" / "manifest.json"),
                detector=str(folder / "i3d" / "manifest.json"),
                protocol={"num_clips": count, "frame_stride": 1},
                batch_size=BATCH,
            )
        )
        return float(done.metrics[score.RANDOM_METRIC])

    with contextlib.redirect_stderr(io.StringIO()):
        measure(max(2, options.clips // 3))
        first_peak_bytes = peak_bytes()
        for _ in turns_of_this_side():
            started = time.perf_counter()
            value = measure(options.clips)
            answer(seconds=time.perf_counter() - started, value=value, first_peak_bytes=first_peak_bytes)


def _serve_peer(options: argparse.Namespace) -> None:
    import av
    import scipy.linalg
    import torch
    from i3d_twin import I3DTwin
    from safetensors.torch import load_file
    from sample import answer, peak_bytes, turns_of_this_side

    torch.set_num_threads(options.threads)
    folder = Path(options.folder)
    net = I3DTwin().eval()
    missing = net.load_state_dict(load_file(folder / "i3d" / "model.safetensors"), strict=False).missing_keys
    if any(not name.endswith("num_batches_tracked") for name in missing):
        raise SystemExit(f"weights do not fit: {missing[:3]}")

    def frames_of(path: Path) -> np.ndarray:
        with av.open(str(path)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])

    def features(paths: list[Path]) -> np.ndarray:
        parts = []
        for first in range(0, len(paths), BATCH):
            clips = torch.from_numpy(np.stack([frames_of(path) for path in paths[first : first + BATCH]]))
            x = clips.flatten(0, 1).permute(0, 3, 1, 2).float()  # (N F, 3, H, W)
            x = torch.nn.functional.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False)
            x = (x * (2 / 255) - 1).unflatten(0, (-1, FRAMES)).transpose(1, 2)  # (N, 3, F, 224, 224)
            parts.append(net(x).numpy())
        return np.concatenate(parts).astype(np.float64)

    def measure(count: int) -> float:
        both = [features(sorted((folder / f"clips{side}").iterdir())[:count]) for side in range(2)]
        (mu1, sigma1), (mu2, sigma2) = ((rows.mean(axis=0), np.cov(rows, rowvar=False, bias=True)) for rows in both)
        root = np.real(scipy.linalg.sqrtm(sigma1 @ sigma2))
        return float(np.square(mu1 - mu2).sum() + np.trace(sigma1 + sigma2 - 2 * root))

    with torch.inference_mode():
        measure(max(2, options.clips // 3))
        first_peak_bytes = peak_bytes()
        for _ in turns_of_this_side():
            started = time.perf_counter()
            value = measure(options.clips)
            answer(seconds=time.perf_counter() - started, value=value, first_peak_bytes=first_peak_bytes)


if __name__ == "__main__":
    main()
