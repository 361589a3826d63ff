"""Fused kernels of MindSpore on a CPU, kept from one process to the next.

MindSpore turns the arithmetic between two products into kernels of its own (AKG, LLVM) and links them with g++, which
takes seconds for a network. It looks for them in a folder first, but a process that is killed while it compiles leaves
broken files there, and two processes disturb each other. So every process has a folder of its own: it starts with links
to what earlier ones have finished, and gives back at its end what it has finished itself.
"""

import atexit
import contextlib
import hashlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mindspore as ms

from latte.errors import UserError

_VARIABLE = "MS_COMPILER_CACHE_PATH"
_RUNNING = "running-"
_KERNELS = "akg_kernel_meta"  # AKG's name
_ENDINGS = (".so", ".o", ".info", ".json")  # the last one says that a kernel is there
_LIMIT = 4000  # kernels that are kept, about 100 MB
_STALE_SECONDS = 86_400.0
_COMPILER_LOG = "dsa_transfrom.log"


def available() -> bool:
    """Whether this MindSpore has its compiler for CPUs, as the packages for x86-64 have; LATTE_FUSED_KERNELS=0 says no.

    Raises:
        UserError: it has, but there is no g++ for it to link with.
    """
    if os.environ.get("LATTE_FUSED_KERNELS") == "0":
        return False
    if not (Path(ms.__file__).parent / "lib/plugin/cpu/libakg.so").exists():
        return False
    if shutil.which("g++") is None:
        raise UserError("g++: not found; on a CPU MindSpore links its fused kernels with it (apt-get install g++)")
    return True


def prepare() -> None:
    """Give this process its folder, before MindSpore compiles anything; MS_COMPILER_CACHE_PATH of the user's stays.

    Call it in the main thread before others start: they inherit that SIGPIPE is blocked.
    """
    # MindSpore handles SIGPIPE and takes it, whichever connection broke, for the end of its compiler: the next graph
    # would not compile and the one after it wait for ever. Python looks at what a write returns.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    package = Path(ms.__file__).parent
    os.environ.setdefault("AKG_WHITE_LIST_PATH", str(package / "_akg"))  # or else it complains on standard output
    log = Path.cwd() / _COMPILER_LOG  # written wherever the process is when it first compiles
    if not log.exists():
        atexit.register(_as_process, os.getpid(), log.unlink, missing_ok=True)
    chosen = os.environ.get(_VARIABLE)
    if chosen and not Path(chosen).name.startswith(_RUNNING):
        return
    kept = _kept()
    own = Path(tempfile.mkdtemp(prefix=_RUNNING, dir=kept.parent if kept else None))
    if os.statvfs(own).f_flag & os.ST_NOEXEC:
        own.rmdir()
        raise UserError(f"{own.parent}: mounted noexec; name a folder for MindSpore's kernels in {_VARIABLE}")
    (own / _KERNELS).mkdir(mode=0o700)
    os.environ[_VARIABLE] = str(own)
    if kept:
        for path in kept.glob("*.json"):
            for each in _files(path):
                with contextlib.suppress(FileNotFoundError):  # another process made room
                    os.link(each, own / _KERNELS / each.name)
    atexit.register(_as_process, os.getpid(), _give_back, own, kept)


def _kept() -> Path | None:
    """The folder of finished kernels for this processor and MindSpore; None where there can be none."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    machine = hashlib.sha256(f"{ms.__version__} {flags}".encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latte" / "kernels" / machine
    kept = root / "kept"
    try:
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    # What lies here is executed: it must be this user's, and writable for nobody else.
    for folder in (root, kept):
        facts = folder.lstat()
        if facts.st_uid != os.getuid() or facts.st_mode & 0o022 or not os.access(folder, os.W_OK):
            return None
    for left in root.glob(_RUNNING + "*"):
        with contextlib.suppress(FileNotFoundError):  # its process ended just now
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    return kept


def _as_process(pid: int, call: Callable[..., None], *args: Any, **options: Any) -> None:
    """Call, unless this is a child that was forked since."""
    if os.getpid() == pid:
        call(*args, **options)


def _give_back(own: Path, kept: Path | None) -> None:
    """Keep the kernels that are whole, then remove the folder."""
    if kept:
        for path in (own / _KERNELS).glob("*.json"):
            if not (kept / path.name).exists() and _is_whole(path):
                for each in _files(path):
                    os.replace(each, kept / each.name)
        for path in _oldest(kept):
            for each in reversed(list(_files(path))):
                each.unlink(missing_ok=True)
    shutil.rmtree(own, ignore_errors=True)


def _oldest(kept: Path) -> list[Path]:
    """The kernels beyond the limit; other processes may be removing them, too."""
    ages = []
    for path in kept.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            ages.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(ages)[: max(len(ages) - _LIMIT, 0)]]


def _files(description: Path) -> Iterator[Path]:
    return (description.with_suffix(ending) for ending in _ENDINGS)


def _is_whole(description: Path) -> bool:
    """Whether a kernel's files are there and are what its description says."""
    try:
        facts = json.loads(description.read_text())
        library = description.with_suffix(".so").read_bytes()
    except (OSError, ValueError):
        return False
    return facts.get("sha256") == hashlib.sha256(library).hexdigest() and all(p.exists() for p in _files(description))
