"""Faults of the machine that an exception tells of, a full disk or a compiler that was killed, in one line."""

import errno
import os
import shutil
import tempfile

from latte.errors import LatteError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Libraries that write files without Python's help say it in words.
_FULL_WORDS = ("No space left on device", "os error 28", "Disk quota exceeded")
# What MindSpore says when its compiler has gone, at once and whenever it is needed again.
_COMPILER_WORDS = ("Response is empty", "DuplexPipe", "[json.exception.parse_error.101]")
_KERNELS = "MS_COMPILER_CACHE_PATH"
_ENOUGH_BYTES = 16 << 20


def explained(error: BaseException) -> LatteError | None:
    """The one line for an exception that the machine is to blame for; None for every other one."""
    message = str(error)
    kernels = os.environ.get(_KERNELS, "")
    if isinstance(error, RuntimeError) and any(words in message for words in _COMPILER_WORDS):
        if kernels and has_no_space(kernels):
            return no_space(kernels)
        return LatteError(
            "MindSpore's compiler of kernels has ended without a word, as a process does that is killed, for example "
            "for want of memory; run the same command again, or set LATTE_FUSED_KERNELS=0"
        )
    full = isinstance(error, OSError) and error.errno in _FULL
    if full or any(words in message for words in _FULL_WORDS):
        if isinstance(error, OSError) and error.filename:
            return StorageError(f"{error.filename}: no space left on the disk")
        folders = [name for name in (tempfile.gettempdir(), os.getcwd(), kernels) if name and has_no_space(name)]
        where = f" of {folders[0]}" if folders else f"; it may be that of {tempfile.gettempdir()} (TMPDIR)"
        return StorageError(f"no space left on the disk{where}")
    return None


def has_no_space(folder: str | os.PathLike[str]) -> bool:
    """Whether the disk of a folder has too little space for MindSpore's kernels."""
    try:
        return shutil.disk_usage(folder).free < _ENOUGH_BYTES
    except OSError:
        return False


def no_space(folder: str | os.PathLike[str]) -> StorageError:
    """The one line for a disk that has none for MindSpore's kernels."""
    return StorageError(
        f"{os.fspath(folder)}: no space left on the disk for MindSpore's kernels; free {_ENOUGH_BYTES >> 20} MiB, "
        "or name another folder in XDG_CACHE_HOME"
    )
