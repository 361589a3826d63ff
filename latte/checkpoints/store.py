"""Writing checkpoints (`.safetensors`, `.ckpt`) tensor by tensor, and loading them into networks."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from latte import finite, storage
from latte.checkpoints.reader import MINDSPORE_TYPES, SAFETENSORS_TYPES, open_checkpoint
from latte.checkpoints.stored import Refusal, StoredTensor, forget, is_counter
from latte.errors import UserError

if TYPE_CHECKING:
    from mindspore import nn

Tensor = np.ndarray | StoredTensor
_SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_TYPES.items()}
_MINDSPORE_NAMES = {dtype: name for name, dtype in MINDSPORE_TYPES.items()}
# Above this MindSpore itself splits a tensor into several values; a protobuf message may not exceed 2 GB.
_PIECE_BYTES = 512 << 20
_WRITE_BYTES = 8 << 20


def save(tensors: Mapping[str, Tensor], target: str | Path, only_finite: bool = False) -> storage.Ref:
    """Write tensors by name to a file or URI, atomically; its ending, `.safetensors` or `.ckpt`, names the format.

    Equal tensors make equal bytes. No more than one tensor at a time is held in memory. With `only_finite` the numbers
    are looked at as they are written, and nothing is left behind where one is NaN or infinite.

    Raises:
        Refusal: `only_finite`, and a tensor holds NaN or infinity.
        UserError: the ending is another one, or the format has no such element type.
        StorageError: the store or the disk failed.
    """
    uri = storage.from_path(target)
    write = {".safetensors": _write_safetensors, ".ckpt": _write_mindspore}.get(Path(uri).suffix)
    if write is None:
        raise UserError(f"{target}: its ending names the format; write .safetensors or .ckpt")
    with storage.writing(uri) as path, path.open("wb") as file, ThreadPoolExecutor(1) as pool:
        hashing = _HashingFile(file, pool)
        write(tensors, hashing, str(target), only_finite)
    return storage.Ref(uri, hashing.bytes, hashing.sha256.hexdigest())


def load_into(net: "nn.Cell", uri: str, called: str = "") -> None:
    """See `latte.checkpoints.load`."""
    import mindspore as ms
    from mindspore import ops

    found = open_checkpoint(uri).tensors
    parameters = {parameter.name: parameter for parameter in net.get_parameters()}
    check_match(
        {
            name: (tensor.shape, str(tensor.read_dtype))
            for name, tensor in found.items()
            if name in parameters or not is_counter(name, tensor.size, parameters)
        },
        {name: (tuple(p.shape), str(p.dtype).lower()) for name, p in parameters.items()},
        called or uri,
    )
    for name, parameter in parameters.items():
        tensor = found[name]
        values = np.array(tensor.array())  # a copy: MindSpore may keep the memory it is given
        if what := finite.blemish(values):
            raise UserError(f"{called or uri}: {unusable(name, what)}")
        # A graph that was compiled before does not see set_data.
        ops.assign(parameter, ms.Tensor(values))
        forget(tensor.storage.pieces[0])


def check_match(
    found: Mapping[str, tuple[tuple[int, ...], str]], expected: Mapping[str, tuple[tuple[int, ...], str]], file: str
) -> None:
    """Compare (shape, type) by name in both directions.

    Raises:
        UserError: a tensor is missing, unknown, or of another shape or type; one line with the file and the first few.
    """
    problems = []
    for name in expected:
        if name not in found:
            problems.append(f"tensor {name} is missing")
        elif found[name][0] != expected[name][0]:
            problems.append(f"tensor {name} has shape {found[name][0]}, expected {expected[name][0]}")
        elif found[name][1] != expected[name][1]:
            problems.append(f"tensor {name} is {found[name][1]}, expected {expected[name][1]}")
    unknown = [name for name in found if name not in expected]
    problems += [f"tensor {name!r} is not part of the network" for name in unknown]
    if problems:
        more = f" (and {len(problems) - 3} more like it)" if len(problems) > 3 else ""
        raise UserError(f"{file}: " + "; ".join(problems[:3]) + more)


def unusable(name: str, what: str) -> str:
    """Message about a tensor that holds NaN or infinity."""
    return f"tensor {name} holds {what}, and so would all that it computes; take an earlier or undamaged file"


class _HashingFile:
    """A file being written whose SHA-256 is at hand when the last byte is out, without reading it again."""

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor) -> None:
        self._file, self._pool = file, pool
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        hashing = self._pool.submit(self.sha256.update, data)  # beside the write: both let go of the interpreter
        self._file.write(data)
        hashing.result()
        self.bytes += len(data)


def safetensors_header(tensors: Mapping[str, tuple[Sequence[int], np.dtype]], target: str | Path) -> bytes:
    """The first bytes of a safetensors file, a multiple of eight; the tensors' bytes follow in the order given.

    Args:
        tensors: shape and element type by name.
        target: the file, for errors.

    Raises:
        UserError: the format has no such element type.
    """
    header: dict[str, Any] = {}
    at = 0
    for name, (shape, dtype) in tensors.items():
        end = at + math.prod(shape) * dtype.itemsize
        kind = _known(_SAFETENSORS_NAMES, dtype, name, str(target))
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_safetensors(tensors: Mapping[str, Tensor], file: _HashingFile, target: str, only_finite: bool) -> None:
    # By size of the element, so that each tensor lies aligned, then by name, as the format's own library writes.
    names = sorted(tensors, key=lambda name: (-dtype_of(tensors[name]).itemsize, name))
    file.write(safetensors_header({name: (tensors[name].shape, dtype_of(tensors[name])) for name in names}, target))
    for name in names:
        for piece in _pieces(tensors[name]):
            file.write(_checked(piece, name, only_finite))


def _write_mindspore(tensors: Mapping[str, Tensor], file: _HashingFile, target: str, only_finite: bool) -> None:
    for name in tensors:
        shape, dtype = tuple(tensors[name].shape), dtype_of(tensors[name])
        kind = _known(_MINDSPORE_NAMES, dtype, name, target)
        dims = b"".join(_key(1, 0) + _varint(n) for n in shape or (0,))
        facts = dims + _field(2, kind.encode())
        size = math.prod(shape) * dtype.itemsize
        for start in range(0, max(size, 1), _PIECE_BYTES):
            length = min(_PIECE_BYTES, size - start)
            inner = len(facts) + len(_key(3, 2)) + len(_varint(length)) + length
            tag = _field(1, name.encode())
            outer = len(tag) + len(_key(2, 2)) + len(_varint(inner)) + inner
            file.write(_key(1, 2) + _varint(outer) + tag + _key(2, 2) + _varint(inner) + facts)
            file.write(_key(3, 2) + _varint(length))
            for piece in _pieces(tensors[name], start, length):
                file.write(_checked(piece, name, only_finite))


def dtype_of(tensor: Tensor) -> np.dtype:
    """The element type that a tensor is read with."""
    return tensor.read_dtype if isinstance(tensor, StoredTensor) else tensor.dtype


def _known(names: dict[str, str], dtype: np.dtype, name: str, target: str) -> str:
    if dtype.name not in names:
        raise UserError(f"{target}: tensor {name} is {dtype.name}, which this format does not know")
    return names[dtype.name]


def _checked(piece: np.ndarray, name: str, only_finite: bool) -> memoryview:
    if only_finite and (what := finite.blemish(piece)):
        raise Refusal(unusable(name, what))
    return piece.view(np.uint8).data


def _pieces(tensor: Tensor, start: int = 0, length: int | None = None) -> Iterator[np.ndarray]:
    """Elements in bytes `start` to `start + length` of a tensor in C order, a piece at a time."""
    array = tensor.array() if isinstance(tensor, StoredTensor) else tensor
    flat = np.ascontiguousarray(array).reshape(-1)
    step = _WRITE_BYTES // flat.itemsize
    first = start // flat.itemsize
    stop = flat.size if length is None else first + length // flat.itemsize
    for at in range(first, stop, step):
        yield flat[at : min(at + step, stop)]
        if isinstance(tensor, StoredTensor):
            forget(tensor.storage.pieces[0])


def _key(number: int, kind: int) -> bytes:
    return bytes([number << 3 | kind])


def _field(number: int, content: bytes) -> bytes:
    return _key(number, 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
