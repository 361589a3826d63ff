"""The locked environment, built anew from the public index, imports everything that `make demo` and `make test` do."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# The benchmarks' folder is on pytest's path.
BENCHMARKS = {path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")}
OWN = {"latte", "components", "pipelines", "tests", "benchmarks", *BENCHMARKS}
PEERS = {"torch", "diffusers", "transformers", "cdfvd"}


def imported() -> set[str]:
    """Top-level names of all packages that code and tests import anywhere, lazily or not."""
    found = set()
    for room in ("latte", "components", "pipelines", "tests"):
        for path in (REPOSITORY / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    return found - OWN - set(sys.stdlib_module_names)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Path]:
    """A fresh virtual environment with what the lock files name, from the index alone: no folder of wheels counts."""
    (tmp_path / "no wheels").mkdir()
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables["PIP_FIND_LINKS"] = str(tmp_path / "no wheels")  # goes before what pip's configuration says
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    locks = REPOSITORY / "requirements"
    options = [part for name in ("hashed", "run", "dev") for part in ("-r", locks / f"{name}.lock")]
    done = subprocess.run(
        [folder / "bin" / "pip", "install", "--quiet", "--no-compile", "--no-deps", "--require-hashes", *options],
        env=variables, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    yield folder
    shutil.rmtree(folder)


def test_what_the_locks_name_is_on_the_public_index_and_enough(environment: Path) -> None:
    wanted = sorted(imported() - PEERS)
    assert {"mindspore", "kfp", "av", "pytest", "tensorboardX"} <= set(wanted)
    code = (
        "import importlib, sys\n"
        f"for name in {wanted!r}:\n"
        "    importlib.import_module(name)\n"
        "import latte.training.loop, pipelines.local, pipelines.train_and_evaluate, pipelines.notebook\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [environment / "bin" / "python", "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "GLOG_v": "3"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
