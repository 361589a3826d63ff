"""Imports point one way, files stay in their rooms, links lead somewhere, and the compiled YAML is the repository's."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROOMS = ("latte", "components", "pipelines")
SOURCES = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))
OTHERS = sorted(path for room in ("tests", "benchmarks", "requirements") for path in (REPOSITORY / room).rglob("*.py"))
DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md")]
    + [path for folder in (*ROOMS, "configs", "docs", "images") for path in (REPOSITORY / folder).rglob("*.md")]
)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top_level_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_point_one_way(path: Path) -> None:
    room, *rest = path.relative_to(REPOSITORY).parts
    roots = {name.split(".")[0] for name in imports(path)}
    if room == "latte":
        assert not roots & {"kfp", "kubernetes", "components", "pipelines"}
        if rest[0] == "models":
            own = {name for name in imports(path) if name.startswith("latte.")}
            allowed = ("latte.models", "latte.device", "latte.config", "latte.errors")
            assert all(name.startswith(allowed) for name in own), own
        if rest[0] != "steps" and rest[0] != "cli.py":
            assert not any(name.startswith("latte.steps") for name in top_level_imports(path))
    if room == "components":
        assert "pipelines" not in roots
        assert "mindspore" not in roots


@pytest.mark.parametrize("path", [*SOURCES, *OTHERS], ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_file_outgrows_its_room(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def headings(document: Path) -> set[str]:
    """What a link to a part of a document may name: its headings, as pages of a repository spell them."""
    lines = re.findall(r"^#+ +(.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in link:
            continue
        path, _, part = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.is_relative_to(REPOSITORY), link
        assert target.exists(), link
        assert not part or part in headings(target), link


def test_steps_and_components_do_not_import_mindspore_or_torch_until_they_work() -> None:
    code = (
        "import sys, importlib\n"
        "from latte.cli import STEPS\n"
        "for module, *_ in [*STEPS.values(), ('convert',)]:\n"
        "    importlib.import_module(f'latte.steps.{module}')\n"
        "import pipelines.train_and_evaluate, pipelines.settings\n"
        "print(sorted({'mindspore', 'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_compiled_yaml_in_the_repository_is_current(tmp_path: Path) -> None:
    from pipelines.compiled import write_all

    for written in write_all(tmp_path):
        kept = REPOSITORY / written.relative_to(tmp_path)
        assert kept.read_text() == written.read_text(), f"{kept}: run `latte-pipeline compile`"
