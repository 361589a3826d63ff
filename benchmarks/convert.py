"""Converting a published checkpoint: `latte convert` beside a plain copy of the file, and beside PyTorch.

    python benchmarks/convert.py [--preset Latte-XL/2] [--repeats 3] [--folder DIR] [--json]

Writes a file of the published layout (2.7 GB for Latte-XL/2) with random weights, then takes turns: a plain copy,
`latte convert` to safetensors, and the same with `torch.load(weights_only=True)` and `safetensors.torch.save_file`, the
two in processes of their own whose peak memory is measured (resident set, mapped pages included). All three read from
the page cache and end when the data is on the disk. Our time includes what neither does: the checksum of every tensor
and the SHA-256 of source and target. `ratio` is that to the copy (below 1: slower than it), `torch_ratio` the other.
"""

import argparse
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

_MAKE = """
import sys, torch
from latte.kinds.latte import shapes_of
from latte.models.configs import LatteConfig
torch.manual_seed(0)
shapes = shapes_of(LatteConfig.preset(sys.argv[2]))
torch.save({"ema": {name: torch.randn(shape) for name, shape in shapes.items()}}, sys.argv[1])
"""
_TORCH = """
import os, sys, torch
from safetensors.torch import save_file
save_file(torch.load(sys.argv[1], map_location="cpu", weights_only=True)["ema"], sys.argv[2])
with open(sys.argv[2], "rb") as file:
    os.fsync(file.fileno())
"""


def main() -> None:
    """Measure and print; with --json the last line is one JSON object."""
    parser = argparse.ArgumentParser(description="time and memory of converting a published checkpoint")
    parser.add_argument("--preset", default="Latte-XL/2", help="size of the checkpoint")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side; medians are printed")
    parser.add_argument("--folder", default=None, help="where the files are written (needs four times the size)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="latte-bench-", dir=options.folder) as folder:
        source = Path(folder) / "published.pt"
        _run([sys.executable, "-c", _MAKE, str(source), options.preset])
        ours, theirs, copies = [], [], []
        for _ in range(options.repeats):
            copies.append(_copy(source, Path(folder) / "copy.pt"))
            target = Path(folder) / "ours.safetensors"
            command = [sys.executable, "-m", "latte.cli", "convert", "--kind", "latte"]
            ours.append(_run([*command, "--source", str(source), "--target", str(target)]))
            output_bytes = target.stat().st_size
            target.unlink()
            target = Path(folder) / "torch.safetensors"
            theirs.append(_run([sys.executable, "-c", _TORCH, str(source), str(target)]))
            target.unlink()

    result: dict[str, Any] = {
        "benchmark": f"convert {options.preset}",
        "peer": "a plain copy of the file",
        "ours_s": round(statistics.median(seconds for seconds, _ in ours), 2),
        "peer_s": round(statistics.median(copies), 2),
        "torch_s": round(statistics.median(seconds for seconds, _ in theirs), 2),
        "peak_bytes": max(peak for _, peak in ours),
        "torch_peak_bytes": max(peak for _, peak in theirs),
        "output_bytes": output_bytes,
    }
    result["ratio"] = round(result["peer_s"] / result["ours_s"], 3)
    result["torch_ratio"] = round(result["torch_s"] / result["ours_s"], 3)
    result["peak_over_output"] = round(result["peak_bytes"] / output_bytes, 3)
    print(f"{options.preset}, {output_bytes / 1e9:.2f} GB, median of {options.repeats}")
    print(f"  plain copy     {result['peer_s']:7.2f} s")
    for label, seconds, peak in (("latte convert", "ours_s", "peak_bytes"), ("torch", "torch_s", "torch_peak_bytes")):
        share = result[peak] / output_bytes
        print(f"  {label:<13}  {result[seconds]:7.2f} s, peak {result[peak] / 1e9:.2f} GB = {share:.2f} x the output")
    if options.json:
        print(json.dumps(result))


def _run(command: list[str]) -> tuple[float, int]:
    """Wall time in seconds and peak resident set in bytes of a command that must succeed."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "GLOG_v": "3"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed with {process.returncode}: {' '.join(command)}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def _copy(source: Path, target: Path) -> float:
    """Seconds of a plain copy that ends when the data is on the disk."""
    started = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


if __name__ == "__main__":
    main()
