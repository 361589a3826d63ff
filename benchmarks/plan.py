"""Planning an encoding job of many videos: seconds and memory from a listed catalog to every task's shards.

    python benchmarks/plan.py [--videos 1000000] [--json]

The catalog is made in memory, as if S3 had listed it: hashing and listing take what the disk or the store take. It is
planned a first time, then again with a hundredth of it new and the rest published; peer_s is a tenth of the videos
scaled up, so that a ratio near 1 says that time grows with the number of videos and not faster.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from latte.data import encode_plan
from latte.data.catalog import Catalog, CatalogEntry
from latte.data.latents import INDEX
from latte.storage.manifest import Shard, fingerprint

_SHARD_BYTES = 256_000_000


def main() -> None:
    """Measure and print; with --json the last line is one JSON object."""
    parser = argparse.ArgumentParser(description="planning an encoding job of many videos")
    parser.add_argument("--videos", type=int, default=1_000_000, help="entries of the catalog")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(_measure(options.videos)))
        return
    few, many = (_in_process(count) for count in (max(1, options.videos // 10), options.videos))
    ours_s, peer_s = sum(many["seconds"].values()), 10 * sum(few["seconds"].values())
    result = {
        "benchmark": "plan",
        "peer": "ten times a tenth of the videos",
        "ours_s": round(ours_s, 3),
        "peer_s": round(peer_s, 3),
        "ratio": round(peer_s / ours_s, 3),
        "peak_bytes": many["peak_bytes"],
        "videos": options.videos,
        "plan_bytes": many["plan_bytes"],
        **{f"{name}_s": round(seconds, 3) for name, seconds in many["seconds"].items()},
    }
    for key, value in result.items():
        print(f"  {key:<16} {value}")
    if options.json:
        print(json.dumps(result))


def _in_process(videos: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", "--videos", str(videos)]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return answer


def _measure(videos: int) -> dict[str, Any]:
    entries = [_entry(number) for number in range(videos)]
    catalog = Catalog(entries, [f"class-{number:03d}" for number in range(100)], [])
    laps: dict[str, float] = {}
    began = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        laps[name] = time.perf_counter() - began
        began = time.perf_counter()

    with tempfile.TemporaryDirectory(prefix="latte-bench-") as folder:
        uri = Path(folder, encode_plan.PLAN).as_uri()
        if not catalog.digest:
            raise SystemExit("the catalog has no digest")
        lap("digest")
        plan = encode_plan.make(catalog, encode_plan.Published({}, {}), _SHARD_BYTES, 32)
        lap("make")
        shard = encode_plan.write(plan, uri, Path(folder).as_uri())
        lap("write")
        again = encode_plan.read(uri)
        lap("read")
        work = sum(len(s.videos) for t in range(32) for s in encode_plan.task_shards(again, folder, t, 32, True))
        lap("share_out")
        known = {entry.digest: encode_plan.Known("shard", 16, 0, 25.0) for entry in entries if entry.bytes % 100}
        began = time.perf_counter()
        new = encode_plan.make(catalog, encode_plan.Published({}, known), _SHARD_BYTES, 32)
        lap("make_again")
        known |= {entry.digest: encode_plan.Known("shard", 16, 0, 25.0) for _, more in new.shards for entry in more}
        done = encode_plan.Published({"shard": Shard(uri="file:///shard.safetensors", bytes=1, sha256="")}, known)
        began = time.perf_counter()
        merged = encode_plan.merge(catalog, done, 1)
        encode_plan.write_index(merged, folder, Path(folder).as_uri(), (2, 4, 32, 32), "float16", Path(folder).as_uri())
        lap("merge")
        if work != videos or len(merged.videos) != videos or not Path(folder, INDEX).exists():
            raise SystemExit(f"planned {work} and merged {len(merged.videos)} of {videos} videos")
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": laps, "peak_bytes": peak_bytes, "plan_bytes": shard.bytes}


def _entry(number: int) -> CatalogEntry:
    name = f"class-{number % 100:03d}/video-{number:07d}.mp4"
    size_bytes = 1_000_000 + number
    return CatalogEntry(name, f"s3://bucket/videos/{name}", fingerprint("s3", number), number % 100, None, size_bytes)


if __name__ == "__main__":
    main()
