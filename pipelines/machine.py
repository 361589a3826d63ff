"""Needs of a run on this machine, each looked at for real, each with what to do about it."""

import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from components.image import IMAGE
from latte import storage
from latte.errors import LatteError, UserError
from latte.units import size
from pipelines import containers, settings, store
from pipelines.namespace_check import Finding, NotLookedAtError, look

# Less does not take a small run to its end.
_LEAST_DISK_BYTES = 1 << 30
_LEAST_MEMORY_BYTES = 2 << 30
_RUNS = Path("runs")


def examine(path: Path | None, pipeline: str, root: str | None) -> Iterator[Finding]:
    """Look at this machine, at Docker's image, the store, and at the settings of a run.

    Args:
        path: settings file or a preset's name; None: not looked at.
        pipeline: whose settings they are.
        root: that the run will write to; None: that of the settings, or a store of the run's own.
    """
    looks: dict[str, Callable[[], str]] = {
        "machine": _machine,
        "MindSpore": _mindspore,
        "temporary files": lambda: _room(Path(tempfile.gettempdir()), "set TMPDIR to a folder of another disk"),
        "runs": lambda: _room(_RUNS.absolute(), "name a folder of another disk with --run-dir"),
        "image": _image,
    }
    for what, check in looks.items():
        yield look(what, check)
    config = None
    if path is None:
        yield Finding("settings", None, "not looked at: name them with -c")
    else:
        try:
            config = settings.load(path, (), pipeline)
            lines = [*settings.check_dataset(config, str(path)), *settings.remarks(config)]
        except LatteError as error:
            yield Finding("settings", False, str(error))
        else:
            yield from (Finding("settings", True, line) for line in (f"{path}: {pipeline} can start", *lines))
    named = root or (config.root if config is not None else None)
    yield look("store", lambda: _store(named))


def _machine() -> str:
    memory = psutil.virtual_memory()
    if memory.available < _LEAST_MEMORY_BYTES:
        raise UserError(f"{size(memory.available)} of memory are free; a step needs 2 GB and more: end something else")
    return f"{len(os.sched_getaffinity(0))} cores, {size(memory.available)} of {size(memory.total)} of memory free"


def _mindspore() -> str:
    from latte import device

    try:
        return f"{importlib.metadata.version('mindspore')}, computes on {device.target()}"
    except importlib.metadata.PackageNotFoundError:
        raise UserError("not installed in this environment; run `make setup`") from None


def _room(folder: Path, remedy: str) -> str:
    """Free bytes of a folder, which need not be there yet."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"{there}: no permission to write there; {remedy}")
    free = shutil.disk_usage(there).free
    if free < _LEAST_DISK_BYTES:
        raise UserError(f"{folder}: {size(free)} free; {remedy}")
    return f"{folder}: {size(free)} free"


def _image() -> str:
    try:
        return containers.require(IMAGE, pull=False)
    except LatteError as error:
        raise NotLookedAtError(f"{error} (only --runner docker needs it)") from None


def _store(root: str | None) -> str:
    if root is not None:
        storage.check_root(root)
        return f"{root}: written, read and deleted"
    if store.available():
        return "SeaweedFS, started for the run; another one with --root"
    return "the run's folder, as there is no SeaweedFS for this machine; another one with --root"
