"""Memory of long clips and large files: bounded by a setting, and by the file's size. Each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from latte.checkpoints.architectures import latte_shapes
from latte.models.configs import LatteConfig
from tests import torch_files

ROOT = Path(__file__).parents[2]
# Resets the process's peak memory and reads it; getrusage would count the memory of the process it was started from.
PEAK = """
from pathlib import Path
def reset():
    Path("/proc/self/clear_refs").write_text("5")
def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
"""
AUTOENCODER = """
import json
import numpy as np
from latte import device
from latte.models import autoencoder_kl as module
device.setup(seed=0)
sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
net = module.AutoencoderKL(module.AutoencoderKLConfig(**sizes))
grown = {}
for run, shape in ((module.encode_in_chunks, (3, 64, 64)), (module.decode_in_chunks, (4, 32, 32))):
    grown[run.__name__] = []
    for frames, chunk in ((4, 4), (96, 4), (96, 96)):
        items = np.ones((frames, *shape), np.float32)
        reset()
        before = status("VmRSS")
        run(net, items, chunk)
        grown[run.__name__].append(status("VmHWM") - before)
print(json.dumps(grown))
"""
CONVERT = """
import sys
from latte.cli import cli
cli(sys.argv[1:], standalone_mode=False)
print("peak", status("VmHWM"))
"""


def peak_of(program: str, *arguments: str) -> str:
    """The last line that a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK + program, *arguments], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout.splitlines()[-1]


def test_a_long_clip_takes_no_more_memory_than_a_chunk():
    for name, (_, in_chunks, whole) in json.loads(peak_of(AUTOENCODER)).items():
        # What is kept of every frame: its image, float32, twice while the parts are joined.
        assert in_chunks < 2 * 96 * 3 * 64 * 64 * 4 + (8 << 20), name
        assert whole > 10 * in_chunks, name


def test_converting_takes_at_most_the_files_size(tmp_path):
    """1.3 times its size is the promise; less than once is needed."""
    shapes = latte_shapes(LatteConfig.preset("Latte-B/2"))
    source, target = tmp_path / "published.pt", tmp_path / "weights.safetensors"
    torch_files.save({"ema": {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}}, source)
    files = ["--source", str(source), "--target", str(target)]
    line = peak_of(CONVERT, "convert", "--kind", "latte", *files)
    assert int(line.removeprefix("peak ")) < target.stat().st_size
