import argparse
import collections
import io
import json
import random
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from latte import checkpoints
from latte.checkpoints import store
from latte.errors import UserError
from tests import peers, torch_files
from tests.published import same_in_order as same
from tests.soak import scaled
from tests.unit.checkpoints import hostile

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"


def torch_state():
    """Tensors of every type, contiguous, strided, tied, empty and of no axes."""
    import torch

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


def as_numpy(state):
    """The tensors as torch itself turns them into arrays; NumPy has no bfloat16."""
    import torch

    return {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
        for name, tensor in state.items()
    }


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return arrays_of(peers.answer("torch-state", lambda: as_numpy(torch_state())))


def arrays_of(answers: dict[str, peers.Answer]) -> dict[str, np.ndarray]:
    return {name: answer.values.reshape(answer.shape) for name, answer in answers.items()}


@pytest.mark.peers
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False])
def test_reads_what_torch_saves(tmp_path, state, protocol, is_zip):
    def write(path):
        import torch

        torch.save(torch_state(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)

    path = peers.file(f"state-{protocol}-{'zip' if is_zip else 'legacy'}.pt", tmp_path, write)
    assert same(checkpoints.read(str(path)), state)
    assert not next(iter(checkpoints.read(str(path)).values())).flags.writeable


@pytest.mark.peers
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("negated", "negated or conjugated"),
        ("float8", "element type 'float8_e4m3fn' is not supported"),
        ("sparse", "holds no tensors"),
    ],
)
def test_refuses_what_would_be_read_wrongly(tmp_path, name, message):
    def write(path):
        import torch

        tensors = {
            "negated": torch.randn(3, dtype=torch.complex64).conj().imag,
            "float8": torch.ones(2).to(torch.float8_e4m3fn),
            "sparse": torch.eye(3).to_sparse(),
        }
        torch.save({"w": tensors[name]}, path)

    with pytest.raises(UserError, match=message):
        checkpoints.read(str(peers.file(f"{name}.pt", tmp_path, write)))


@pytest.mark.peers
def test_reads_without_checksums(tmp_path, state):
    def write(path):
        import torch

        torch.serialization.set_crc32_options(False)
        try:
            torch.save(torch_state(), path)
        finally:
            torch.serialization.set_crc32_options(True)

    assert same(checkpoints.read(str(peers.file("no-checksums.pt", tmp_path, write))), state)


def torch_net():
    import torch

    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.BatchNorm1d(4)))


@pytest.mark.peers
def test_reads_modules_pickled_whole_and_as_torchscript(tmp_path):
    def script(path):
        import torch

        torch.jit.script(torch_net()).save(path)

    def module(path):
        import torch

        torch.save(torch_net(), path)

    def legacy(path):
        import torch

        # Where it finds a module's source, this format holds it, with its path: as from an interactive session instead.
        with warnings.catch_warnings(), mock.patch("inspect.getsourcelines", side_effect=OSError):
            warnings.simplefilter("ignore")
            torch.save(torch_net(), path, _use_new_zipfile_serialization=False)

    expected = arrays_of(peers.answer("torch-module", lambda: as_numpy(torch_net().state_dict())))
    for write in (script, module, legacy):
        path = peers.file(f"module-{write.__name__}.pt", tmp_path, write)
        assert same(checkpoints.read(str(path)), expected), path
    assert checkpoints.open_checkpoint(str(peers.file("module-script.pt", tmp_path, script))).layout == (
        "TorchScript archive"
    )


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
    state = {0: {"step": 1}}
    torch_files.save(
        {"epoch": 3, part: {"w": np.ones(2, np.float32)}, "optimizer": {"state": state}, "lrs": {0: 1e-4}}, path
    )
    found = checkpoints.open_checkpoint(str(path))
    assert found.part == part
    assert list(found.tensors) == ["w"]
    assert dict(found.left_out) == {"epoch": "no weights", "optimizer": "no weights", "lrs": "no weights"}


@pytest.mark.peers
def test_objects_of_other_classes_are_inert(tmp_path):
    """What training scripts put beside the weights; none of it is imported or called."""

    def write(path):
        import torch

        args = argparse.Namespace(
            num_heads=3,
            name="run",
            folder=Path("x"),
            device=torch.device("cpu"),
            scalar=np.float32(1),
            dtype=torch.float16,
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

    found = checkpoints.open_checkpoint(str(peers.file("training.pt", tmp_path, write)))
    assert list(found.tensors) == ["w"]
    assert {name for name, _ in found.left_out} == {"args", "sets", "default", "array", "size", "rng"}
    assert found.settings == {"num_heads": 3, "name": "run"}


@pytest.mark.peers
def test_reads_safetensors_and_shards(tmp_path, state):
    def write(path):
        import safetensors.torch

        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in torch_state().items()}
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})

    def write_part(names):
        def write(path):
            import safetensors.torch

            tensors = torch_state()
            safetensors.torch.save_file({name: tensors[name].detach().contiguous().clone() for name in names}, path)

        return write

    whole = checkpoints.read(str(peers.file("whole.safetensors", tmp_path, write)))
    assert set(whole) == set(state)
    assert all(np.array_equal(whole[name], array) for name, array in state.items())

    names = list(state)
    halves = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in halves.items():
        (tmp_path / file).write_bytes(peers.file(f"shards/{file}", tmp_path, write_part(part)).read_bytes())
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
        [sys.executable, "-m", "tests.unit.checkpoints.hostile", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
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
