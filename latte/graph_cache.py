"""Compiled graphs of MindSpore on a CPU, kept from one process to the next beside the fused kernels.

What MindSpore does to a network before it runs takes seconds, for a training step up to a minute. It can write the
result down and read it again (its compile cache), but knows a graph only by when in a process it was compiled. So it is
given one graph at a time, in this process's own folder, and which one is decided here, by a digest of all that a graph
follows from. What cannot be described is compiled every time.
"""

import contextlib
import hashlib
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import mindspore as ms
import numpy as np
import pydantic
from mindspore import nn
from mindspore.graph import api

from latte import interrupts, kernel_cache

_LIMIT = 400  # graphs that are kept, about 1 MB each
_ENDING = ".mindir"
# MindSpore's own, some of which change when it compiles; but for those that a graph follows from.
_OF_THE_CELL = {*vars(nn.Cell()), "__parse_method__", "_mutable_flags"} - {
    "_amp_level", "_cells", "_has_config_recompute", "_jit_config_dict", "_params", "cell_type", "has_bprop",
    "mixed_precision_type", "requires_grad", "training",
}  # fmt: skip
_CONTEXT = (
    "mode", "device_target", "deterministic", "enable_graph_kernel", "graph_kernel_flags", "runtime_num_threads",
    "jit_level", "jit_syntax_level",
)  # fmt: skip

_calls: WeakKeyDictionary[nn.Cell, set[tuple[Any, ...]]] = WeakKeyDictionary()
_compiling = threading.Lock()
_numbers: dict[Path, int] = {}


def call(method: Callable[..., Any], *inputs: ms.Tensor | None) -> Any:
    """Call a compiled method of a network; its first call with inputs of these shapes takes the graph that is kept.

    Args:
        method: bound method of a Cell, compiled by `ms.jit`. Every parameter it works on has to be the Cell's, under a
            name of its own: by their names MindSpore finds them again.
        inputs: tensors, or None for those that are left out.

    Returns:
        What the method returns.
    """
    if interrupts.came():  # its exception was lost on the way, in a destructor or in C++
        sys.exit(interrupts.EXIT_CODE)
    cell: nn.Cell = method.__self__  # type: ignore[attr-defined]
    seen = _calls.setdefault(cell, set())
    this = (method.__name__, cell.training, *(_input(each) for each in inputs))
    if this in seen:
        return method(*inputs)
    folder = kernel_cache.own_folder()
    with _compiling:
        seen.add(this)
        key = None if folder is None else _key(cell, this)
        if folder is None or key is None:
            return method(*inputs)
        try:
            with _kept(folder / f"rank_{_rank()}" / "graph_cache", key):
                return method(*inputs)
        except RuntimeError as error:
            if "MindIR" not in str(error):  # the form in which a graph is kept has no word for something in it
                raise
        return method(*inputs)


@contextlib.contextmanager
def _kept(place: Path, key: str) -> Iterator[None]:
    """Let MindSpore read this graph where it is kept, or else write it, in `place`; and keep what it has written."""
    number = _numbers.get(place, 0)
    own = place / f"compile_cache_{number}{_ENDING}"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    graphs = kernel_cache.kept_folder("graphs")
    found = _read(graphs, key) if graphs else None
    if found:
        own.write_bytes(found)
    # The check of its own would look at the files that the started script imports, and at no settings.
    os.environ["MS_DEV_FORCE_USE_COMPILE_CACHE"] = "1"
    api.entry_script_path = str(Path(__file__))
    ms.set_context(enable_compile_cache=True)
    try:
        yield
    finally:
        ms.set_context(enable_compile_cache=False)
        written = [path for path in place.glob(f"*{_ENDING}") if path != own or not found]
        # MindSpore counts the graphs of a process; what it has written tells how far it is.
        _numbers[place] = max([number + bool(found), *(int(path.stem.rpartition("_")[2]) + 1 for path in written)])
        if graphs and len(written) == 1:
            _keep(written[0].read_bytes(), graphs, key)
        for path in place.glob(f"*{_ENDING}"):
            path.unlink()


def _read(graphs: Path, key: str) -> bytes | None:
    """A graph that is kept; None where there is none, or a damaged one."""
    for path in graphs.glob(f"{key}-*{_ENDING}"):
        with contextlib.suppress(OSError):  # another process made room
            data = path.read_bytes()
            if path.stem.rpartition("-")[2] == _sha256(data):
                os.utime(path)
                return data
            path.unlink()
    return None


def _keep(data: bytes, graphs: Path, key: str) -> None:
    with contextlib.suppress(OSError):  # no room: then it is compiled again
        handle, name = tempfile.mkstemp(dir=graphs)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, graphs / f"{key}-{_sha256(data)}{_ENDING}")
        ages = sorted((path.stat().st_mtime, path) for path in graphs.iterdir())
        for _, path in ages[: max(len(ages) - _LIMIT, 0)]:
            path.unlink()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _key(cell: nn.Cell, this: tuple[Any, ...]) -> str | None:
    """Digest of all that a graph follows from; None where something in the network cannot be described."""
    description = _Description()
    try:
        description.add([_surroundings(), [ms.get_context(name) for name in _CONTEXT], this, cell])
    except TypeError:
        return None
    return description.digest()


def _rank() -> int:
    """Number of this process among those that train together."""
    if "MS_ROLE" not in os.environ:
        return 0
    from mindspore.communication import get_rank

    return int(get_rank())


def _input(value: ms.Tensor | None) -> tuple[Any, ...] | None:
    return None if value is None else (tuple(value.shape), str(value.dtype))


@cache
def _surroundings() -> list[str]:
    """All else that a graph follows from: our sources, the versions, and what tells MindSpore how to compile."""
    sources = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        sources.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    # Where kernels lie, and who this process is among workers, is no part of a graph.
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("MS_DEV_")]
    return [ms.__version__, platform.python_version(), sources.hexdigest(), *variables]


class _Description:
    """A digest over values of many kinds, each with its type; what comes again by when it came first."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._met: dict[int, int] = {}
        self._alive: list[Any] = []  # an id is given to another object once its own is gone

    def digest(self) -> str:
        return self._sha256.hexdigest()[:32]

    def add(self, value: Any) -> None:
        """Take in a value.

        Raises:
            TypeError: it, or what it holds, is of a kind that cannot be described, or of sources other than ours.
        """
        if value is None or isinstance(value, bool | int | float | str | np.generic | ms.Type):
            self._write(f"{type(value).__name__} {value!r}")
        elif isinstance(value, type):
            self._write(_place_of(value))
        elif hasattr(type(value), "__members__"):  # an enumeration, also one of MindSpore's library
            self._write(f"{_place_of(type(value))} {value.name}")
        elif (number := self._met.get(id(value))) is not None:
            self._write(f"again {number}")
        else:
            self._met[id(value)] = len(self._met)
            self._alive.append(value)
            self._add_object(value)

    def _add_object(self, value: Any) -> None:
        if isinstance(value, list | tuple):
            self._add_all(*value)
        elif isinstance(value, dict):
            self._add_all(*value.items())
        elif isinstance(value, ms.Parameter):
            self._add_all(value.name, tuple(value.shape), value.dtype, value.requires_grad)
        elif isinstance(value, ms.Tensor | np.ndarray):
            array = np.ascontiguousarray(value.asnumpy() if isinstance(value, ms.Tensor) else value)
            self._add_all(array.shape, str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest())
        elif isinstance(value, nn.Cell):
            self._add_all(type(value), {name: each for name, each in vars(value).items() if name not in _OF_THE_CELL})
        elif isinstance(value, pydantic.BaseModel):
            self._add_all(type(value), value.model_dump_json())
        elif isinstance(value, MethodType):
            self._add_all(value.__func__, value.__self__)
        elif isinstance(value, FunctionType):
            closed_over = [each.cell_contents for each in value.__closure__ or ()]
            self._add_all(_place_of(value), value.__defaults__, value.__kwdefaults__, closed_over)
        else:
            # Operators, differentiation, our own plain objects; whatever keeps its state elsewhere has no dictionary.
            self._add_all(type(value), vars(value))

    def _add_all(self, *values: Any) -> None:
        self._write(f"{len(values)} values")
        for each in values:
            self.add(each)

    def _write(self, text: str) -> None:
        self._sha256.update(f"{len(text)} {text}".encode())


def _place_of(named: type | FunctionType) -> str:
    """Place of a class or a function; only of our own sources and of these packages the digest knows more."""
    if named.__module__.partition(".")[0] not in ("builtins", "latte", "mindspore", "numpy"):
        raise TypeError(f"{named.__module__}.{named.__qualname__}")
    return f"{named.__module__}.{named.__qualname__}"
