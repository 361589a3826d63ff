"""Imports point one way, files stay in their rooms, links lead somewhere, and the compiled YAML is the repository's."""

import ast
import graphlib
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


# The rooms of `latte`, lowest first: each imports from those before it, and from itself.
ORDER = (
    "__init__", "errors", "terminal", "uris", "units", "rng", "signals", "interrupts", "owners", "processes",
    "progress", "finite", "spacing", "machine_errors", "kernel_watch", "kernel_cache", "graph_cache", "yaml_text",
    "config", "config_help", "credentials", "storage", "tracking", "places", "uses", "device", "operators", "models",
    "checkpoints", "kinds", "facts", "diffusion", "networks", "texts", "video", "data", "sampling", "training",
    "planning", "metrics", "inventory", "report", "steps", "cli",
)  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_point_one_way(path: Path) -> None:
    room, *rest = path.relative_to(REPOSITORY).with_suffix("").parts
    roots = {name.split(".")[0] for name in imports(path)}
    if room == "latte":
        assert not roots & {"kfp", "kubernetes", "components", "pipelines"}
        own = {name for name in imports(path) if name.startswith("latte.")}
        above = {name for name in own if rank(name) > ORDER.index(rest[0])}
        assert not above, f"{above} are above {rest[0]}"
        if rest[0] == "models":
            allowed = (
                "latte.models",
                "latte.device",
                "latte.operators",
                "latte.graph_cache",
                "latte.config",
                "latte.errors",
            )
            assert all(name.startswith(allowed) for name in own), own
    if room == "components":
        assert "pipelines" not in roots
        assert "mindspore" not in roots


def rank(name: str) -> int:
    """Which of the rooms a module or a name in it belongs to."""
    part = name.split(".")[1]
    return ORDER.index(part) if part in ORDER else 0


def test_modules_do_not_import_each_other_in_circles() -> None:
    modules = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in SOURCES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {name: (top_level_imports(path) & set(modules)) - {name} for name, path in modules.items()}
    # A package's front may import the modules behind it; what these take from the front is there by then.
    for name, path in modules.items():
        if path.name == "__init__.py":
            graph[name] = {other for other in graph[name] if not other.startswith(f"{name}.")}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def asks_for_the_scheme(code: str) -> list[str]:
    """Expressions that tell one kind of store from another by how its URIs begin."""
    found = []
    for node in ast.walk(ast.parse(code)):
        operands: list[ast.expr] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            operands = node.args if node.func.attr in ("startswith", "removeprefix", "match", "fullmatch") else []
        elif isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        parts = [part for operand in operands for part in ast.walk(operand)]
        texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        if any(text.startswith(("s3:", "file:")) for text in texts) or (
            any(isinstance(part, ast.Attribute) and part.attr == "scheme" for part in parts)
            and {"s3", "file"} & set(texts)
        ):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_kind_of_a_store_is_asked_for_in_one_place(path: Path) -> None:
    here, code = path.relative_to(REPOSITORY), path.read_text()
    asked = asks_for_the_scheme(code) + re.findall(r"startswith\(.*SCHEME\)", code)
    if here == Path("latte/storage/__init__.py"):
        assert asked == ["startswith(bucket.SCHEME)"]
    elif here != Path("latte/uris.py"):  # how URIs are spelled
        assert not asked, "call what every kind of store has: latte/storage/backend.py"


@pytest.mark.parametrize(
    "code",
    [
        "uri.startswith('s3://')", "uri.startswith(('s3://', 'file://'))", "uri.removeprefix('file://')",
        "urlsplit(uri).scheme == 's3'", "uri[:5] != 's3://'", "re.match('s3:.*', uri)",
    ],
)  # fmt: skip
def test_a_scheme_that_is_asked_for_is_found(code: str) -> None:
    assert asks_for_the_scheme(code)
    assert not asks_for_the_scheme("uri = f's3://{bucket}/{key}'; said = 'expected s3://bucket/key'")


@pytest.mark.parametrize("path", [*SOURCES, *OTHERS], ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_file_outgrows_its_room(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def class_names() -> dict[str, set[str]]:
    """Public classes by name: the modules that define one of that name; an operator has one for each device."""
    names: dict[str, set[str]] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                module = str(path.relative_to(REPOSITORY)).replace("operators/ascend", "operators/cpu")
                names.setdefault(node.name, set()).add(module)
    return names


def test_no_two_classes_have_one_name() -> None:
    assert {name: modules for name, modules in class_names().items() if len(modules) > 1} == {}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_docstrings_begin_with_the_thing_that_they_name(path: Path) -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)]
    assert [text for text in texts if text and re.match(r"(Where|What|How|Which)\b", text)] == []


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
        "from latte.steps import STEPS\n"
        "for step in STEPS:\n"
        "    importlib.import_module(f'latte.steps.{step}')\n"
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
