"""Scoring a set: the score step (ours) beside the package cd-fvd, fed by PyAV (peer).

    python benchmarks/score.py [--detector i3d|videomae] [--clips 12] [--repeats 2] [--json]

I3D has its published size, VideoMAE 6 blocks of 384 channels at the published 16 frames of 224 pixels: ViT-giant takes
4 GB on each side. As many generated clips as real ones, 16 frames of 64x64 pixels, lossless files, the same random
weights. Each side is one process that loads, compiles and warms up, then waits for its turn; only one computes at a
time, and medians are compared. Both must come to the same distance. Each side first scores a third of the clips; how
much its peak memory grows from there to all of them is printed (`grown_bytes`). The peer gives no interval and keeps no
features; its own reader of video files needs torchvision and is left out.
"""

import argparse
import contextlib
import importlib.metadata
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

FRAMES, SIZE, FPS = 16, 64, 8.0
# Clips that go through a detector together: VideoMAE's attention is large.
BATCH = {"i3d": 2, "videomae": 1}
VIDEOMAE = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}


def main() -> None:
    """Measure and print; with --json the last line is one JSON object."""
    from sample import take_turns

    parser = argparse.ArgumentParser(description="the score step against cd-fvd")
    parser.add_argument("--detector", choices=tuple(BATCH), default="i3d", help="network that both sides score by")
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
        _prepare(Path(folder), options.clips, options.detector)
        arguments = ["--detector", options.detector, "--clips", str(options.clips), "--threads", str(options.threads)]
        turns = take_turns(__file__, folder, options.repeats, arguments)
    ours, peer = (turns[side][-1] for side in ("ours", "peer"))
    if not np.isclose(ours["value"], peer["value"], rtol=1e-3):
        raise SystemExit(f"the sides disagree: {ours['value']} and {peer['value']}")
    ours_s, peer_s = (statistics.median(turn["seconds"] for turn in turns[side]) for side in ("ours", "peer"))
    result = {
        "benchmark": "score",
        "detector": options.detector,
        "peer": f"cd-fvd {importlib.metadata.version('cd-fvd')}, files read by PyAV",
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


def _prepare(folder: Path, clips: int, kind: str) -> None:
    """Two sets of files, and one set of weights for both sides."""
    from sample import publish, random_weights

    from latte import kinds, storage
    from latte.data import latents
    from latte.storage import manifest
    from latte.video import clip_files

    model = VIDEOMAE if kind == "videomae" else {}
    weights = random_weights(kinds.KINDS[kind].shapes(kinds.KINDS[kind].configured(model, "benchmark")))
    for name in weights:
        if name.endswith("running_var"):
            weights[name] = np.abs(weights[name]) + 1.0
    facts: dict[str, Any] = {"kind": kind, "random": True, "model": model}
    publish(folder / "detector", "weights", "model.safetensors", weights, config=facts)
    for side in range(2):
        items: list[dict[str, Any]] = []
        (folder / f"clips{side}").mkdir()
        for index in range(clips):
            path = folder / f"clips{side}" / f"{index:05d}.mkv"
            clip_files.write_lossless(path, _moving(1000 * side + index), FPS)
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
        listed = {"videos": videos, "row_shape": [2, 4, 8, 8], "dtype": "float16", "shards": []}
        uri = (folder / "real").as_uri()
        shard = manifest.publish_shard(json.dumps(listed).encode(), storage.join(uri, latents.INDEX))
        facts = {"image_size": SIZE, "scaling_factor": 0.18}
        manifest.finish(
            manifest.Manifest(
                kind="latents",
                name="r",
                uri=uri,
                fingerprint="r",
                shards=[shard],
                inputs={"catalog": "r"},
                config=facts,
            )
        )


def _serve_ours(options: argparse.Namespace) -> None:
    from sample import answer, peak_bytes, turns_of_this_side

    from latte.metrics.names import metric_of
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
                detector=str(folder / "detector" / "manifest.json"),
                protocol={"num_clips": count, "frame_stride": 1},
                batch_size=BATCH[options.detector],
            )
        )
        return float(done.metrics[metric_of(done)])

    with contextlib.redirect_stderr(io.StringIO()):
        measure(max(2, options.clips // 3))
        first_peak_bytes = peak_bytes()
        for _ in turns_of_this_side():
            started = time.perf_counter()
            value = measure(options.clips)
            answer(seconds=time.perf_counter() - started, value=value, first_peak_bytes=first_peak_bytes)


def _serve_peer(options: argparse.Namespace) -> None:
    import av
    import torch
    from cdfvd_peer import evaluator, videomae_evaluator
    from safetensors.numpy import load_file
    from sample import answer, peak_bytes, turns_of_this_side

    torch.set_num_threads(options.threads)
    folder = Path(options.folder)
    weights = load_file(folder / "detector" / "model.safetensors")
    if options.detector == "videomae":
        from latte.models.detector_configs import VideoMAEConfig

        scorer = videomae_evaluator(weights, VideoMAEConfig(**VIDEOMAE))
    else:
        scorer = evaluator(weights)
    batch = BATCH[options.detector]

    def frames_of(path: Path) -> np.ndarray:
        with av.open(str(path)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])

    def measure(count: int) -> float:
        scorer.empty_fake_stats()
        scorer.empty_real_stats()
        for side, add in enumerate((scorer.add_fake_stats, scorer.add_real_stats)):
            paths = sorted((folder / f"clips{side}").iterdir())[:count]
            for first in range(0, count, batch):
                add(np.stack([frames_of(path) for path in paths[first : first + batch]]))  # (N, F, H, W, 3)
        return float(scorer.compute_fvd_from_stats())

    measure(max(2, options.clips // 3))
    first_peak_bytes = peak_bytes()
    for _ in turns_of_this_side():
        started = time.perf_counter()
        value = measure(options.clips)
        answer(seconds=time.perf_counter() - started, value=value, first_peak_bytes=first_peak_bytes)


if __name__ == "__main__":
    main()
