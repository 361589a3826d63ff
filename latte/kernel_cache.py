"""The folder in which MindSpore compiles on a CPU; and the fused kernels in it, kept from one process to the next.

MindSpore turns the arithmetic between two products into kernels of its own (AKG, LLVM) and links them with g++, which
takes seconds for a network. It looks for them in a folder first, but a process that is killed while it compiles leaves
broken files there, and two processes disturb each other. So every process has a folder of its own: it starts with links
to what earlier ones have finished, and gives back at its end what it has finished itself.
"""

import atexit
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mindspore as ms

from latte import kernel_watch, machine_errors
from latte.errors import UserError

_VARIABLE = "MS_COMPILER_CACHE_PATH"
_RUNNING = "running-"
_KERNELS = "akg_kernel_meta"  # AKG's name
_ENDINGS = (".so", ".o", ".info", ".json")  # the last one says that a kernel is there
_LIMIT = 4000  # kernels that are kept, about 100 MB
_STALE_SECONDS = 86_400.0
_LOCK = ".lock"
_COMPILER_LOG = "dsa_transfrom.log"

_own: Path | None = None


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

    Where kernels are fused, call it in the main thread before others start: they inherit that SIGPIPE is blocked.

    Raises:
        UserError: the folder is mounted noexec, or there is no g++.
        StorageError: its disk is full.
    """
    global _own
    fused = available()
    if fused:
        _prepare_compiler()
    chosen = os.environ.get(_VARIABLE)
    if chosen and not Path(chosen).name.startswith(_RUNNING):
        if machine_errors.has_no_space(chosen):
            raise machine_errors.no_space(chosen)
        return
    kept = kept_folder("kept")
    place = kept.parent if kept else Path(tempfile.gettempdir())
    if machine_errors.has_no_space(place):
        raise machine_errors.no_space(place)
    own = Path(tempfile.mkdtemp(prefix=_RUNNING, dir=place))
    if fused and os.statvfs(own).f_flag & os.ST_NOEXEC:
        own.rmdir()
        raise UserError(f"{own.parent}: mounted noexec; name a folder for MindSpore's kernels in {_VARIABLE}")
    _hold(own)
    (own / _KERNELS).mkdir(mode=0o700)
    os.environ[_VARIABLE] = str(own)
    _own = own
    if kept and fused:
        for path in kept.glob("*.json"):
            for each in _files(path):
                with contextlib.suppress(FileNotFoundError):  # another process made room
                    os.link(each, own / _KERNELS / each.name)
    atexit.register(_as_process, os.getpid(), _give_back, own, kept)


def own_folder() -> Path | None:
    """The folder of this process; None before `prepare`, and where the user has named one for all."""
    return _own


def _prepare_compiler() -> None:
    # MindSpore handles SIGPIPE and takes it, whichever connection broke, for the end of its compiler: the next graph
    # would not compile and the one after it wait for ever. Python looks at what a write returns.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    package = Path(ms.__file__).parent
    os.environ.setdefault("AKG_WHITE_LIST_PATH", str(package / "_akg"))  # or else it complains on standard output
    log = Path.cwd() / _COMPILER_LOG  # written wherever the process is when it first compiles
    if not log.exists():
        atexit.register(_as_process, os.getpid(), log.unlink, missing_ok=True)
    _watch()


def _watch() -> None:
    """Start what ends a compiler that will never answer; it leaves with this process."""
    # A session of its own: Ctrl-C is not meant for it.
    watch = subprocess.Popen(
        [sys.executable, "-P", "-m", kernel_watch.__name__, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def end() -> None:
        watch.kill()
        watch.wait()

    atexit.register(_as_process, os.getpid(), end)


@cache
def kept_folder(name: str) -> Path | None:
    """The folder of this name for what is kept for this processor and MindSpore; None where there can be none."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    machine = hashlib.sha256(f"{ms.__version__} {flags}".encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latte" / "kernels" / machine
    kept = root / name
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
            if not _in_use(left):
                shutil.rmtree(left, ignore_errors=True)
    return kept


def _hold(own: Path) -> None:
    """Lock a folder as long as this process, or one that it forks, is there."""
    handle = os.open(own / (_LOCK + ".new"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)  # closed by its end
    with contextlib.suppress(OSError):  # a file system without locks: then the folder goes by its age
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(own / (_LOCK + ".new"), own / _LOCK)  # nobody sees it unlocked


def _in_use(folder: Path) -> bool:
    """Whether the process of a folder is at work still, however long; one that has locked nothing goes by its age."""
    try:
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime < _STALE_SECONDS
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


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
