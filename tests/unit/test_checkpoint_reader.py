import argparse
import collections
import io
import json
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from latte import checkpoints
from latte.checkpoints import store
from latte.errors import UserError
from tests.soak import scaled
from tests.unit import hostile

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Tensors of every type, contiguous, strided, tied, empty and of no axes."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    return {
        "float32": base,
        "transposed": base.T,
        "part": base[1:4, ::2],
        "tied": base,
        "float64": torch.randn(3, dtype=torch.float64),
        "float16": torch.randn(3, 2).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "int64": torch.arange(4),
        "int8": torch.arange(4, dtype=torch.int8),
        "uint8": torch.arange(4, dtype=torch.uint8),
        "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "complex": torch.randn(2, dtype=torch.complex64),
        "weight": torch.nn.Parameter(torch.randn(2, 3, 1, 1)),
    }


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return list(ours) == list(theirs) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(ours.values(), theirs.values(), strict=True)
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False])
def test_reads_what_torch_saves(tmp_path, state, protocol, is_zip):
    path = tmp_path / "weights.pt"
    torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    assert same(checkpoints.read(str(path)), {name: as_numpy(tensor) for name, tensor in state.items()})
    assert not next(iter(checkpoints.read(str(path)).values())).flags.writeable


def test_refuses_what_would_be_read_wrongly(tmp_path):
    views = {
        "negated": (torch.randn(3, dtype=torch.complex64).conj().imag, "negated or conjugated"),
        "float8": (torch.ones(2).to(torch.float8_e4m3fn), "element type 'float8_e4m3fn' is not supported"),
        "sparse": (torch.eye(3).to_sparse(), "holds no tensors"),
    }
    for name, (tensor, message) in views.items():
        torch.save({"w": tensor}, tmp_path / f"{name}.pt")
        with pytest.raises(UserError, match=message):
            checkpoints.read(str(tmp_path / f"{name}.pt"))


def test_reads_without_checksums(tmp_path, state):
    path = tmp_path / "weights.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(checkpoints.read(str(path)), {name: as_numpy(tensor) for name, tensor in state.items()})


def test_reads_modules_pickled_whole_and_as_torchscript(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.BatchNorm1d(4)))
    expected = {name: as_numpy(tensor) for name, tensor in net.state_dict().items()}
    torch.jit.script(net).save(tmp_path / "script.pt")
    torch.save(net, tmp_path / "module.pt")
    torch.save(net, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for file in ("script.pt", "module.pt", "legacy.pt"):
        assert same(checkpoints.read(str(tmp_path / file)), expected), file
    assert checkpoints.open_checkpoint(str(tmp_path / "script.pt")).layout == "TorchScript archive"


@pytest.mark.parametrize("name", ["uncond", "class", "text"])
def test_takes_the_ema_of_published_checkpoints(name):
    found = checkpoints.open_checkpoint(str(DATA / f"{name}.pt"))
    settings_ = json.loads((DATA / f"{name}.json").read_text())
    assert (found.layout, found.part) == ("PyTorch zip", "ema")
    assert ("model", "ema is taken") in found.left_out
    assert {key: found.settings[key] for key in settings_} == settings_
    # The files' `model` is `ema` + 0.01; the rest of the file is the same.
    ema = found.tensors["final_layer.linear.bias"].array()
    raw = (DATA / f"{name}.pt").read_bytes()
    assert ema.tobytes() in raw
    assert (ema + np.float32(0.01)).tobytes() in raw


@pytest.mark.parametrize("part", ["model", "state_dict", "module"])
def test_unwraps_other_layouts(tmp_path, part):
    path = tmp_path / "training.pt"
    torch.save(
        {"epoch": 3, part: {"w": torch.ones(2)}, "optimizer": {"state": {0: {"step": 1}}}, "lrs": {0: 1e-4}}, path
    )
    found = checkpoints.open_checkpoint(str(path))
    assert found.part == part
    assert list(found.tensors) == ["w"]
    assert dict(found.left_out) == {"epoch": "no weights", "optimizer": "no weights", "lrs": "no weights"}


def test_objects_of_other_classes_are_inert(tmp_path):
    """What training scripts put beside the weights; none of it is imported or called."""
    path = tmp_path / "training.pt"
    args = argparse.Namespace(
        num_heads=3, name="run", folder=Path("x"), device=torch.device("cpu"), scalar=np.float32(1), dtype=torch.float16
    )
    beside = {
        "args": args,
        "sets": {1, 2},
        "default": collections.defaultdict(list, a=[1]),
        "array": np.ones(3),
        "size": torch.Size([1, 2]),
        "rng": random.Random(1).getstate(),
    }
    torch.save({"model": {"w": torch.ones(2)}, **beside}, path)
    found = checkpoints.open_checkpoint(str(path))
    assert list(found.tensors) == ["w"]
    assert {name for name, _ in found.left_out} == set(beside)
    assert found.settings == {"num_heads": 3, "name": "run"}


def test_reads_safetensors_and_shards(tmp_path, state):
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
    safetensors.torch.save_file(tensors, tmp_path / "whole.safetensors", metadata={"format": "pt"})
    whole = checkpoints.read(str(tmp_path / "whole.safetensors"))
    assert set(whole) == set(tensors)
    assert all(np.array_equal(whole[name], as_numpy(tensor)) for name, tensor in tensors.items())

    names = list(tensors)
    halves = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in halves.items():
        safetensors.torch.save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    sharded = checkpoints.read(str(path))
    assert list(sharded) == names
    assert all(np.array_equal(sharded[name], whole[name]) for name in names)

    index["weight_map"]["float32"] = "b.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index\.json: tensor 'float32' is not expected in a\.safetensors"):
        checkpoints.read(str(path))
    index["weight_map"]["float32"] = "../a.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="not a file beside it"):
        checkpoints.read(str(path))


_DTYPES = [np.float16, np.float32, np.float64, np.int8, np.int32, np.int64, np.uint8, np.bool_]
_ARRAYS = st.sampled_from(_DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4))
)
_NAMES = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=20)


@pytest.mark.soak
@settings(max_examples=scaled(300), deadline=None)
@given(tensors=st.dictionaries(_NAMES.filter(lambda name: name != "__metadata__"), _ARRAYS, min_size=1, max_size=5))
def test_what_is_saved_is_read_back_to_the_bit(tmp_path_factory, tensors):
    folder = tmp_path_factory.mktemp("saved")
    for ending in ("safetensors", "ckpt"):
        path = folder / f"weights.{ending}"
        ref = store.save(tensors, path)
        found = checkpoints.read(str(path))
        assert same({name: found[name] for name in tensors}, tensors)
        assert ref.bytes == path.stat().st_size
        assert store.save(found, folder / f"again.{ending}").sha256 == ref.sha256 or ending == "ckpt"


def test_imports_neither_torch_nor_mindspore():
    code = (
        "import sys; from latte import checkpoints; "
        f"checkpoints.read({str(DATA / 'class.pt')!r}); "
        "print(sorted({'torch', 'mindspore', 'omegaconf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_hostile_files_run_nothing_and_stay_small(tmp_path):
    """Each is refused in one line that names the file, or read as if the hostile part were not there."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.hostile", str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert not (tmp_path / "canary").exists()
    assert list(tmp_path.iterdir()) == []
    assert result["modules"] == []
    assert result["peak_bytes"] < 400 << 20
    outcomes = result["outcomes"]
    assert set(outcomes) == set(hostile.collection("x"))
    read_all_the_same = set()
    for name, outcome in outcomes.items():
        if isinstance(outcome, dict):
            assert outcome == {"w": [[1.0, 2.0], [3.0, 4.0]]}, name
            read_all_the_same.add(name)
        else:
            assert "hostile-" in outcome and "\n" not in outcome and len(outcome) < 400, name
    # Classes that are never called and structures that cost little: inert.
    assert read_all_the_same == {
        "NEWOBJ", "NEWOBJ_EX", "BUILD", "BUILD of a class", "append to a call", "set item of a class", "copyreg",
        "deep lists", "deep tuples", "list in itself", "billion laughs", "billion laughs as a key", "memo", "sets",
        "colliding numbers as keys",
    }  # fmt: skip


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
    torch.manual_seed(1)
    tensors = {f"layer.{i}.weight": torch.randn(3, 4) for i in range(4)}
    torch.save({"ema": tensors, "args": {"depth": 2}}, folder / "zip checked")
    torch.save(tensors, folder / "legacy", _use_new_zipfile_serialization=False)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    torch.jit.script(net).save(folder / "script checked")
    safetensors.torch.save_file(tensors, folder / "safetensors")
    store.save({name: tensor.numpy() for name, tensor in tensors.items()}, folder / "weights.ckpt")
    plain = (folder / "weights.ckpt").read_bytes()
    (folder / "ckpt checked").write_bytes(plain + b"crc_num" + zlib.crc32(plain).to_bytes(10, "big"))
    (folder / "weights.ckpt").rename(folder / "ckpt")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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


def test_reads_large_archives(tmp_path):
    """An archive above 4 GB says so in a second directory end and in each entry; here with small numbers."""
    content = hostile.archive(hostile.checkpoint())
    end = content.index(b"PK\x05\x06")
    count, size, start = struct.unpack_from("<HLL", content, end + 10)
    wide_end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    narrow_end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = tmp_path / "large.pt"
    path.write_bytes(content[:end] + wide_end + locator + narrow_end)
    assert checkpoints.read(str(path))["w"].tolist() == [[1, 2], [3, 4]]
    path.write_bytes(content[:end] + wide_end + locator.replace(b"\x06\x07", b"\x06\x08") + narrow_end)
    with pytest.raises(UserError, match="directory"):
        checkpoints.read(str(path))

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, part in {"a/data.pkl": hostile.checkpoint(), "a/data/0": hostile.TENSOR_BYTES}.items():
            with file.open(name, "w", force_zip64=True) as entry:
                entry.write(part)
    path.write_bytes(out.getvalue())
    assert checkpoints.read(str(path))["w"].tolist() == [[1, 2], [3, 4]]


def test_an_archive_whose_comment_looks_like_a_directory(tmp_path):
    path = tmp_path / "commented.pt"
    path.write_bytes(hostile.archive(hostile.checkpoint()))
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"PK\x05\x06 and some more words, more than a directory's end has, PK\x05\x06"
    assert checkpoints.read(str(path))["w"].tolist() == [[1, 2], [3, 4]]


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match=r"none\.pt: no such object"):
        checkpoints.read(str(tmp_path / "none.pt"))
    with pytest.raises(UserError, match="a folder, expected a checkpoint file"):
        checkpoints.read(str(tmp_path))
