"""Memory of long clips and large files: bounded by a setting, and by the file's size. Each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from latte.checkpoints import store
from latte.kinds import t5
from latte.kinds.latte import shapes_of
from latte.models.configs import LatteConfig
from latte.models.t2v_configs import T5Config
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

T5 = """
import json, sys
import numpy as np
from latte import device, texts
from latte.checkpoints import open_checkpoint
from latte.models.t2v_configs import T5Config
from latte.models.t5 import EncoderInPieces
device.setup(seed=0)
config = T5Config(**json.loads(sys.argv[2]))
reset()
before = status("VmRSS")
read = texts._reader(open_checkpoint(sys.argv[1]).tensors, config, sys.argv[1])
EncoderInPieces(config, read).encode(np.ones((1, 120), np.int64), np.ones((1, 120), np.float32))
print(status("VmHWM") - before)
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
    shapes = shapes_of(LatteConfig.preset("Latte-B/2"))
    source, target = tmp_path / "published.pt", tmp_path / "weights.safetensors"
    torch_files.save({"ema": {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}}, source)
    files = ["--source", str(source), "--target", str(target)]
    line = peak_of(CONVERT, "convert", "--kind", "latte", *files)
    assert int(line.removeprefix("peak ")) < target.stat().st_size


def test_captions_take_the_memory_of_one_block_of_the_text_encoder(tmp_path):
    sizes = {"vocab_size": 1000, "d_model": 512, "d_ff": 2048, "num_layers": 24, "num_heads": 8}
    shapes = t5.shapes_of(T5Config(**sizes))
    weights = tmp_path / "model.safetensors"
    header = store.safetensors_header({name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}, weights)
    num_bytes = 4 * sum(int(np.prod(shape)) for shape in shapes.values())  # 405 MB
    with weights.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + num_bytes)  # zeros, which take no room on the disk
    # Four blocks and the compiler: a block alone would be 17 MB.
    assert int(peak_of(T5, str(weights), json.dumps(sizes))) < num_bytes / 3
