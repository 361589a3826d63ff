"""A TorchScript I3D under names of its own against what PyTorch answers with the same archive."""

import contextlib
import zipfile
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from latte import checkpoints, device
from latte.checkpoints.stored import Refusal
from latte.errors import UserError
from latte.kinds import i3d_script
from latte.models.configs import I3DConfig
from latte.models.i3d import I3D
from latte.steps.convert import ConvertConfig, run
from tests import peers


def _write(path: Path) -> None:
    from tests import torchscript_i3d

    torchscript_i3d.write(path)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peers.file("i3d_torchscript.pt", tmp_path_factory.mktemp("script"), _write)


def _changed(archive: Path, path: Path, ending: str, old: str, new: str) -> Path:
    """The archive with text replaced in the files of code that end so."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        changed = 0
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(ending) and old.encode() in content:
                content = content.replace(old.encode(), new.encode())
                changed += 1
            target.writestr(name, content)
        assert changed
    return path


def _convert(source: Path, target: Path, **model: float) -> dict:
    return run(ConvertConfig(kind="i3d", source=str(source), target=str(target), model=model)).config


@pytest.mark.peers
def test_class_scores_equal_those_of_the_archive_in_torch(archive: Path, tmp_path: Path) -> None:
    facts = _convert(archive, tmp_path / "i3d.safetensors")
    assert facts["model"]["batch_norm_epsilon"] == 1e-3
    device.setup()
    net = I3D(I3DConfig(**facts["model"]))
    weights = checkpoints.read(str(tmp_path / "i3d.safetensors"))
    for param in net.get_parameters():
        param.set_data(ms.Tensor(np.array(weights[param.name])))
    clips = np.random.default_rng(4).uniform(-1, 1, (1, 3, 16, 224, 224)).astype(np.float32)

    def ask() -> np.ndarray:
        from tests import torchscript_i3d

        return torchscript_i3d.scores(archive, clips)

    theirs = peers.one("i3d-torchscript", ask)
    ours = theirs.same_places(net(ms.Tensor(clips)).asnumpy())
    assert np.abs(ours - theirs.values).max() <= 1e-4 * theirs.largest


@pytest.mark.parametrize(
    ("ending", "old", "new", "said"),
    [
        (".py", "torch.relu", "import(", "is not TorchScript's"),
        (".py", "torch.relu", "(" * 60, "nested without end"),
        (".py", "torch.cat", "torch.stack", "no four branches"),
        (".py", "torch.batch_norm", "torch.group_norm", "no batch normalisation where I3D has"),
        (
            "torchscript_i3d.py",
            "(stem).forward(x2, )",
            "(stem).forward(torch.mul(x2, 2), )",
            "has layers before those of I3D",
        ),
        ("torchscript_i3d.py", "(stem).forward(x2, )", "x2" + ".b" * 20_000, "nested without end|not TorchScript's"),
        ("torchscript_i3d.py", "(stem).forward(x2, )", "-" * 50_000 + "1", "nested without end|not TorchScript's"),
        ("torchscript_i3d.py", "(stem).forward(x2, )", "x2#" + "#" * (4 << 20), "absurdly large"),
        ("torchscript_i3d.py", "if return_features", "if rescale", "returns no class scores"),
        ("torchscript_i3d.py", "    return _2", "    return (self).forward(x, )", "takes more than 200,000 steps"),
    ],
)
def test_other_code_is_refused_in_a_line(
    archive: Path, tmp_path: Path, ending: str, old: str, new: str, said: str
) -> None:
    changed = _changed(archive, tmp_path / "changed.pt", ending, old, new)
    with pytest.raises(UserError, match=said) as refused:
        _convert(changed, tmp_path / "i3d.safetensors")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "i3d.safetensors").exists()


def test_an_epsilon_that_the_code_contradicts_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its code says batch_norm_epsilon 0\.001, the config says"):
        _convert(archive, tmp_path / "i3d.safetensors", batch_norm_epsilon=1e-5)


def test_damaged_code_is_refused_or_read_and_never_an_error_of_ours(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as source:
        files = {name: source.read(name) for name in source.namelist()}
    rng = np.random.default_rng(1)
    touched = sorted(name for name in files if name.endswith((".py", "data.pkl")))
    for _ in range(20):
        changed = {name: bytearray(content) for name, content in files.items()}
        for name in rng.choice(touched, 3):
            content = changed[name]
            content[rng.integers(len(content))] = rng.choice(np.frombuffer(b"()[],.:0 \n-x", np.uint8))
        with zipfile.ZipFile(tmp_path / "damaged.pt", "w") as target:
            for name, content in changed.items():
                target.writestr(name, bytes(content))
        with contextlib.suppress(UserError, Refusal):
            program = checkpoints.open_checkpoint(str(tmp_path / "damaged.pt")).program
            assert program is None or i3d_script.read(program)
