"""The programs of a real Kubernetes, built once from their published Go modules and kept.

`python -m tests.cluster.programs` builds them. go.mod names the versions. On two cores a first build takes about ten
minutes; later ones find theirs in the cache.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import filelock

FOLDER = Path(__file__).parent
# A folder to keep them in, of which a machine for tests may have one of its own.
CACHE = "LATTE_TESTS_CACHE"
_KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
NAMES = ("etcd", *_KUBERNETES)


class NoGoError(Exception):
    """Nothing here could build them."""


def version(module: str) -> str:
    """Of a module that go.mod requires, without the v."""
    found = re.search(rf"^\s*{re.escape(module)} v(\S+)", (FOLDER / "go.mod").read_text(), re.M)
    assert found, module
    return found[1]


def folder() -> Path:
    """Where they lie, or will."""
    digest = hashlib.sha256((FOLDER / "go.mod").read_bytes() + (FOLDER / "go.sum").read_bytes()).hexdigest()[:8]
    names = f"kubernetes-{version('k8s.io/kubernetes')}-etcd-{version('go.etcd.io/etcd/server/v3')}-{digest}"
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "latte-tests") / names


def built() -> Path:
    """Folder with all of them, which are built first where they are not there.

    Raises:
        NoGoError: they are not there, and neither is Go.
    """
    place = folder()
    if place.is_dir():
        return place
    if not shutil.which("go"):
        raise NoGoError("error: no Go on this machine; the tests build Kubernetes with it: install Go 1.26 or later")
    place.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{place}.lock"):
        if not place.is_dir():
            with tempfile.TemporaryDirectory(dir=place.parent) as unfinished:
                _build(Path(unfinished))
                os.chmod(unfinished, 0o755)
                Path(unfinished).rename(place)
                Path(unfinished).mkdir()  # to be removed in place of what was moved
    return place


def _build(into: Path) -> None:
    number = version("k8s.io/kubernetes")
    major, minor, _ = number.split(".")
    told = "k8s.io/component-base/version.git"
    flags = f"-s -w -X {told}Version=v{number} -X {told}Major={major} -X {told}Minor={minor}"
    command = ["go", "build", "-trimpath", "-ldflags", flags, "-o"]
    environment = {**os.environ, "CGO_ENABLED": "0"}
    packages = [f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES]
    subprocess.run([*command, f"{into}/", *packages], cwd=FOLDER, env=environment, check=True)
    etcd = [*command, into / "etcd", "go.etcd.io/etcd/server/v3"]
    subprocess.run(etcd, cwd=FOLDER, env=environment, check=True)


if __name__ == "__main__":
    started = time.monotonic()
    try:
        place = built()
    except NoGoError as error:
        sys.exit(str(error))
    print(f"{place}: there after {time.monotonic() - started:.0f} s")
