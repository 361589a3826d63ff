"""The locks: what the project asks for and no more, and each package can be installed on x86-64 and on aarch64."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.utils import canonicalize_name

from tests.unit import test_layout

REPOSITORY = Path(__file__).parents[2]
LOCKS = sorted((REPOSITORY / "requirements").glob("*.lock"))
# Published as source only, in Python; the second is a peer that only tests and benchmarks compare with.
SOURCES = ("kfp-server-api", "cd-fvd")
# The oldest glibc that the wheels ask for; openEuler 22.03, on Kunpeng, has 2.34, Debian 12 has 2.36.
PLATFORMS = ("aarch64-manylinux_2_28", "x86_64-manylinux_2_28")


def resolve(lock: Path, platform: str) -> subprocess.CompletedProcess[str]:
    """Look a lock's packages up in the index that pip is told of; nothing but their descriptions is fetched."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))
    assert uv is not None, "uv is in requirements/dev.lock"
    names = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX", "PIP_CERT": "SSL_CERT_FILE"}
    told = {ours: os.environ[name] for name, ours in names.items() if os.environ.get(name)}
    command = [uv, "pip", "compile", "--quiet", "--no-config", "--no-deps", "--python-version", "3.11"]
    command += ["--python-platform", platform, "--no-header", "--only-binary", ":all:"]
    for name in SOURCES:
        command += ["--no-binary", name]
    return subprocess.run(
        [*command, str(lock)], env={**os.environ, **told}, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_a_wheel(lock: Path, platform: str) -> None:
    done = resolve(lock, platform)
    assert done.returncode == 0, done.stderr
    found = {line.split("==")[0] for line in done.stdout.splitlines() if "==" in line}
    assert found == set(re.findall(r"^([\w.-]+)==", lock.read_text(), re.MULTILINE))


def test_a_package_without_a_wheel_for_aarch64_is_found(tmp_path: Path) -> None:
    (tmp_path / "some.lock").write_text("numpy==1.26.4\nintel-openmp==2026.2.0\n")
    done = resolve(tmp_path / "some.lock", PLATFORMS[0])
    assert done.returncode != 0
    assert "intel-openmp==2026.2.0" in done.stderr
    assert resolve(tmp_path / "some.lock", PLATFORMS[1]).returncode == 0


def test_what_runs_and_is_published_as_source_only_has_nothing_to_compile() -> None:
    files = importlib.metadata.files("kfp-server-api")
    assert files
    assert not [path for path in files if path.suffix in (".so", ".pyd", ".a")]


def project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def lock_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", REPOSITORY / "requirements" / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lock)
    return lock


def pinned(lock: str) -> dict[str, set[str]]:
    """Name and version of each package of a lock's text, and the SHA-256 of its files."""
    entries = re.findall(r"^([\w.-]+==[\w.+!-]+)(.*)", lock.replace("\\\n", " "), re.MULTILINE)
    return {name: set(re.findall(r"--hash=sha256:([0-9a-f]{64})", rest)) for name, rest in entries}


@pytest.mark.parametrize("path", [path for path in LOCKS if path.name != "peers.lock"], ids=lambda path: path.name)
def test_every_locked_package_is_pinned_to_files_of_the_index(path: Path) -> None:
    found = pinned(path.read_text())
    assert set(found) == set(re.findall(r"^[\w.-]+==[^ ;]+", path.read_text(), re.MULTILINE))
    in_index = pinned(lock_module().with_hashes("".join(f"{name}\n" for name in found)))
    for name, hashes in found.items():
        assert hashes, name
        assert hashes <= in_index[name], name


def test_a_file_that_is_another_is_not_installed(tmp_path: Path) -> None:
    text = re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", lock_module().with_hashes("six==1.17.0\n"))
    (tmp_path / "some.lock").write_text(text)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--dest", tmp_path]
    done = subprocess.run([*command, "-r", tmp_path / "some.lock"], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr


@pytest.mark.parametrize("file", ["Makefile", "images/Dockerfile"])
def test_whatever_is_installed_from_a_lock_is_checked(file: str) -> None:
    commands = re.sub(r"\\\n", " ", (REPOSITORY / file).read_text()).splitlines()
    installing = [line for line in commands if " install " in line and ".lock" in line and "peers.lock" not in line]
    assert installing
    assert [line for line in installing if "--require-hashes" not in line] == []


def test_the_lock_holds_what_the_project_asks_for_and_no_more() -> None:
    lock = lock_module()
    locked = re.findall(r"^([\w.-]+)==", (REPOSITORY / "requirements" / "run.lock").read_text(), re.MULTILINE)
    assert sorted({*locked, *lock.HASHED}) == sorted(lock.closure(project()["dependencies"]))


def test_every_package_that_is_asked_for_is_imported_or_says_what_it_is_for() -> None:
    block = (REPOSITORY / "pyproject.toml").read_text().split("\ndependencies = [")[1].split("\n]")[0]
    asked = {
        canonicalize_name(re.match(r"[\w.-]+", line.strip(' "'))[0])
        for line in block.splitlines()[1:]
        if "#" not in line
    }
    modules = {name.split(".")[0] for path in test_layout.SOURCES for name in test_layout.imports(path)}
    packages = importlib.metadata.packages_distributions()
    assert asked <= {canonicalize_name(name) for module in modules for name in packages.get(module, [])}
