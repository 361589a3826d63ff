"""Mutated checkpoints are refused in one line, or read as what they were before."""

import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from latte import checkpoints
from latte.checkpoints import store
from latte.errors import UserError
from tests import peers
from tests.published import same_in_order as same
from tests.soak import scaled
from tests.unit.checkpoints import hostile


def read_or_refuse(path: Path) -> dict[str, np.ndarray] | None:
    """The tensors, or None where the file is refused as it should be: in one line that names it."""
    try:
        return checkpoints.read(str(path))
    except UserError as error:
        line = str(error)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return None


def mutate(rng: random.Random, content: bytes) -> bytes:
    """Flip bits, cut off, overwrite, move, repeat or remove."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(data))
        length = rng.choice([1, 2, 8, 100])
        kind = rng.randrange(7)
        if kind <= 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 3:
            del data[max(at, 1) :]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5 and len(data) > length + 1:
            del data[at : at + length]
        else:
            data[at : at + length] = rng.choice([b"\0", b"\xff"]) * length
        if not data:
            break
    return bytes(data)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, bytes]:
    """One small file of each format; those of "checked" formats have checksums over every tensor."""
    folder = tmp_path_factory.mktemp("originals")
    tensors = peers.weights({f"layer.{i}.weight": (3, 4) for i in range(4)}, seed=1)

    def zipped(path):
        import torch

        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
        torch.save({"ema": state, "args": {"depth": 2}}, path)

    def legacy(path):
        import torch

        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
        torch.save(state, path, _use_new_zipfile_serialization=False)

    def script(path):
        import torch

        torch.manual_seed(1)
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        torch.jit.script(net).save(path)

    live = tmp_path_factory.mktemp("live")
    for name, write in (("zip checked", zipped), ("legacy", legacy), ("script checked", script)):
        recorded = peers.file(f"mutated-{name.partition(' ')[0]}.pt", live, write)
        (folder / name).write_bytes(recorded.read_bytes())
    save_file(tensors, folder / "safetensors")
    store.save(tensors, folder / "weights.ckpt")
    plain = (folder / "weights.ckpt").read_bytes()
    (folder / "ckpt checked").write_bytes(plain + b"crc_num" + zlib.crc32(plain).to_bytes(10, "big"))
    (folder / "weights.ckpt").rename(folder / "ckpt")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.peers
@pytest.mark.soak
def test_mutated_files_are_refused_or_read_the_same(tmp_path, originals):
    rng = random.Random(3)
    path = tmp_path / "mutated.bin"
    expected = {}
    for name, content in originals.items():
        path.write_bytes(content)
        expected[name] = checkpoints.read(str(path))
    refused = 0
    mutations = scaled(10_000)
    for i in range(mutations):
        name = list(originals)[i % len(originals)]
        content = mutate(rng, originals[name])
        path.write_bytes(content)
        found = read_or_refuse(path)
        if found is None:
            refused += 1
            continue
        # A flipped bit in a tensor shows only where the format has checksums.
        has_checksums = content.startswith(b"PK") or content[-17:-10] == b"crc_num"
        if name.endswith("checked") and has_checksums:
            assert same(found, expected[name]), (i, name)
        assert sum(array.nbytes for array in found.values()) <= 8 * len(content) + (1 << 20)
    assert refused > mutations // 2


@pytest.mark.soak
def test_mutated_pickles_with_right_checksums_stay_bounded(tmp_path):
    """A checksum keeps no attacker out: the pickle itself is mutated and the archive written anew."""
    rng = random.Random(4)
    path = tmp_path / "mutated.pt"
    for _ in range(scaled(10_000)):
        pickled = mutate(
            rng, hostile.checkpoint(args=b"cargparse\nNamespace\n)\x81}" + hostile.text("depth") + b"K\x01sb")
        )
        path.write_bytes(hostile.archive(pickled))
        found = read_or_refuse(path) or {}
        assert sum(array.nbytes for array in found.values()) <= 1 << 21
