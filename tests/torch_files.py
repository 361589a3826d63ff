"""Checkpoints in PyTorch's zip format, written without PyTorch, for tests of what lies in them.

`tests/parity/test_torch_files.py` reads them with `torch.load`. Formats as such are tested on files of `torch.save`.
"""

import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_STORAGES = {
    "float16": "HalfStorage", "float32": "FloatStorage", "float64": "DoubleStorage", "int32": "IntStorage",
    "int64": "LongStorage",
}  # fmt: skip


@dataclass(frozen=True)
class BFloat16:
    """A float32 array to be written as bfloat16: its upper halves, cut off."""

    array: np.ndarray


def save(content: Any, path: Path) -> None:
    """Write nested dicts and lists of arrays, numbers, texts and None as `torch.save` does; arrays become tensors."""
    storages: list[np.ndarray] = []
    pickled = b"\x80\x02" + _pickled(content, storages) + b"."
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        for number, array in enumerate(storages):
            file.writestr(f"archive/data/{number}", array.tobytes())


def _pickled(value: Any, storages: list[np.ndarray]) -> bytes:
    if isinstance(value, dict):
        pairs = (_pickled(key, storages) + _pickled(item, storages) for key, item in value.items())
        return b"}(" + b"".join(pairs) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_pickled(item, storages) for item in value) + b"e"
    if isinstance(value, BFloat16):
        halves = np.ascontiguousarray(value.array, "<f4").view("<u2").reshape(-1, 2)[:, 1].reshape(value.array.shape)
        return _tensor(halves, "BFloat16Storage", storages)
    if isinstance(value, np.ndarray):
        return _tensor(value, _STORAGES[value.dtype.name], storages)
    # Numbers, texts and None as they are; without the frame of a pickle of their own.
    return pickle.dumps(value, 2)[2:-1]


def _tensor(array: np.ndarray, storage: str, storages: list[np.ndarray]) -> bytes:
    strides, step = [], 1
    for size in reversed(array.shape):
        strides.append(step)
        step *= size
    # The same array again is a tensor tied to the first.
    number = next((number for number, known in enumerate(storages) if known is array), len(storages))
    held = b"(" + _text("storage") + f"ctorch\n{storage}\n".encode() + _text(str(number)) + _text("cpu")
    held += _number(array.size) + b"tQ"
    if number == len(storages):
        storages.append(np.ascontiguousarray(array))
    shape = b"(" + b"".join(map(_number, array.shape)) + b"t(" + b"".join(map(_number, reversed(strides))) + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + held + b"K\0" + shape + b"\x89ccollections\nOrderedDict\n)RtR"


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _number(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded
