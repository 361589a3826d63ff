"""Tensors as a file keeps them: mapped bytes with a type, a shape and strides, checked before anything is touched."""

import dataclasses
import math
import mmap
import stat
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# Torch has at most 64 axes, numpy 32; no published network has more than 6.
MAX_AXES = 16
MAX_TENSORS = 100_000
MAX_NAME_LENGTH = 1_000
# numpy has no bfloat16: its 16 bits are the upper half of a float32, which is what a reader gets, exactly.
BFLOAT16 = "bfloat16"
COUNTER_ENDING = ".num_batches_tracked"
DTYPES = {
    name: np.dtype(name)
    for name in (
        *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128"),
    )
}


class Refusal(Exception):  # noqa: N818 (it is not a bug of ours: the file is refused)
    """Why a file or a tensor is not read; the reader adds the file's name and makes it a UserError."""


@dataclass
class Storage:
    """A run of elements of one type that tensors are views of.

    Attributes:
        dtype: name of the element type, one of DTYPES, "bfloat16", or "" where the tensor names it.
        pieces: the bytes, mapped, in order; several only where a file splits a large tensor.
    """

    dtype: str
    pieces: list[np.ndarray] = field(default_factory=list)
    num_elements: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that the file holds of it."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file, not read yet.

    Attributes:
        storage: the elements it is a view of.
        dtype: name of the type that the file keeps.
        shape: elements along each axis.
        strides: distance, in elements, between neighbours along each axis.
        offset: first element.
        widened: float16 is read as float32, which is exact.
    """

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    widened: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def read_dtype(self) -> np.dtype:
        """The type of `array()`: float32 for bfloat16 and for what is widened, else the file's own."""
        is_wide = self.dtype == BFLOAT16 or (self.widened and self.dtype == "float16")
        return np.dtype("float32") if is_wide else DTYPES[self.dtype]

    @property
    def read_bytes(self) -> int:
        """Bytes of `array()`."""
        return self.size * self.read_dtype.itemsize

    def check(self) -> None:
        """Check type, shape and strides against the storage.

        Raises:
            Refusal: an unknown type, an absurd shape, or elements outside of the storage or on top of each other.
        """
        item_bytes = element_bytes(self.dtype)
        numbers = (*self.shape, *self.strides, self.offset)
        if any(type(n) is not int or n < 0 or n >= 1 << 62 for n in numbers):
            raise Refusal("its shape, strides or offset are not counts")
        if len(self.shape) != len(self.strides) or len(self.shape) > MAX_AXES:
            raise Refusal(f"it has {len(self.shape)} axes and {len(self.strides)} strides")
        held = self.storage.num_bytes // item_bytes
        if self.size == 0:
            if self.offset > held:
                raise Refusal("it lies outside of its storage")
            return
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if last >= held:
            raise Refusal(f"shape {show(self.shape)} needs {last + 1} elements, its storage holds {held}")
        reach = 1
        for step, n in sorted((step, n) for n, step in zip(self.shape, self.strides, strict=True) if n > 1):
            if step < reach:
                raise Refusal(f"shape {show(self.shape)} with strides {show(self.strides)} overlaps itself")
            reach = step * (n - 1) + reach

    def array(self) -> np.ndarray:
        """The tensor, a read-only view of the mapped file where its type allows; bfloat16 is copied to float32."""
        raw = self.storage.pieces[0] if len(self.storage.pieces) == 1 else _joined(self.storage.pieces)
        item = np.dtype("uint16") if self.dtype == BFLOAT16 else DTYPES[self.dtype]
        flat = raw[: raw.size // item.itemsize * item.itemsize].view(item)[self.offset :]
        if self.size == 0:
            return np.zeros(self.shape, self.read_dtype)
        if self.is_contiguous:
            view = flat[: self.size].reshape(self.shape)
        else:
            steps = [step * item.itemsize for step in self.strides]
            view = np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)
        if self.dtype == BFLOAT16:
            return (view.astype(np.uint32) << 16).view(np.float32)
        return view.astype(np.float32) if self.widened and self.dtype == "float16" else view

    def squeezed(self, axes: int) -> "StoredTensor":
        """The same tensor with its last axes, all of one element, dropped until `axes` are left."""
        if any(n != 1 for n in self.shape[axes:]):
            raise Refusal(f"shape {show(self.shape)} cannot become one of {axes} axes")
        return dataclasses.replace(self, shape=self.shape[:axes], strides=self.strides[:axes])

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie one after the other, the last axis fastest."""
        expected = 1
        for n, step in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n > 1 and step != expected:
                return False
            expected *= n
        return True


@dataclass(frozen=True)
class Checkpoint:
    """Content of a file, nothing of it read yet.

    Attributes:
        layout: the kind of file, for example "PyTorch zip".
        part: which of several sets of tensors was taken, for example "ema"; empty where there is one.
        tensors: by name, in the file's order.
        left_out: (what, why) for everything else that the file holds.
        settings: plain values found beside the tensors (the published training arguments), by name.
        files: the mapped files, for their digest.
        uris: where they are, as they were asked for.
        program: module and code of a TorchScript archive (`latte.checkpoints.script.Program`).
    """

    layout: str
    part: str
    tensors: dict[str, StoredTensor]
    left_out: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    files: list[np.ndarray] = field(default_factory=list)
    uris: list[str] = field(default_factory=list)
    program: Any = None


def check_regular(path: Path) -> None:
    """Check that a path, where there is something, is no pipe or device, which could be read without end.

    Raises:
        Refusal: it is neither a file nor a folder.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # whoever opens it says why it cannot
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise Refusal("not a regular file")


def map_file(path: Path) -> np.ndarray:
    """The file's bytes, mapped read-only, as uint8.

    Raises:
        Refusal: the file is empty, or not a regular one.
    """
    check_regular(path)
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise Refusal("the file is empty")
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def forget(array: np.ndarray) -> None:
    """Let the kernel drop the pages behind a mapped array from this process; they are read again when touched."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def element_bytes(dtype: str) -> int:
    """Bytes of one stored element.

    Raises:
        Refusal: no such type.
    """
    if dtype == BFLOAT16:
        return 2
    if dtype not in DTYPES:
        raise Refusal(f"element type {show(dtype)} is not supported")
    return DTYPES[dtype].itemsize


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a tensor whose last axis is fastest."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def show(value: Any) -> str:
    """A value of a file for an error's one line: short and printable, whatever the file holds."""
    if isinstance(value, tuple | list):
        left, right = "()" if isinstance(value, tuple) else "[]"
        parts = [f"a {type(part).__name__}" if isinstance(part, tuple | list) else show(part) for part in value]
        return left + ", ".join(parts[:MAX_AXES]) + right
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge number"
    if not isinstance(value, str | int | float | bytes | bool | type(None)):
        return f"a {type(value).__name__}"
    text = repr(value[:121] if isinstance(value, str | bytes) else value)  # not all of it: it may be 30 MB long
    return text if len(text) <= 120 else text[:117] + "…"


def is_counter(name: str, size: int, names: Container[str]) -> bool:
    """Whether a tensor is the counter of a batch normalisation in `names`, which no forward pass reads."""
    layer = name.removesuffix(COUNTER_ENDING)
    return layer != name and size == 1 and f"{layer}.running_mean" in names


def check_name(name: Any) -> str:
    """A tensor's name.

    Raises:
        Refusal: it is no text, empty, or too long to be one.
    """
    if not isinstance(name, str) or not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise Refusal(f"{show(name)} is not a tensor's name")
    return name


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)
