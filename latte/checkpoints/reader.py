"""Opening a checkpoint of any known format by its content: PyTorch's three, safetensors (sharded too), MindSpore's.

Nothing is executed, torch and MindSpore are not imported, and tensors stay mapped until they are read.
"""

import dataclasses
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from latte import storage
from latte.checkpoints import foreign, torch_files
from latte.checkpoints.parts import with_prefix
from latte.checkpoints.stored import (
    MAX_AXES,
    MAX_TENSORS,
    Checkpoint,
    Refusal,
    Storage,
    StoredTensor,
    check_name,
    check_regular,
    contiguous_strides,
    element_bytes,
    map_file,
    show,
)
from latte.errors import UserError

MAX_HEADER_BYTES = 8 << 20
SAFETENSORS_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "C64": "complex64",
}  # fmt: skip
MINDSPORE_TYPES = {
    "Float64": "float64", "Float32": "float32", "Float16": "float16", "BFloat16": "bfloat16", "Int64": "int64",
    "Int32": "int32", "Int16": "int16", "Int8": "int8", "UInt64": "uint64", "UInt32": "uint32", "UInt16": "uint16",
    "UInt8": "uint8", "Bool": "bool",
}  # fmt: skip
_CRC_MARK = b"crc_num"
_NAME_MAX = 255  # bytes of a file's name, on every file system that is common
_CRC_BYTES = len(_CRC_MARK) + 10


def open_checkpoint(uri: str, part: str = "") -> Checkpoint:
    """Open a checkpoint file (a path or URI), or the index of a sharded one (`*.index.json`).

    Args:
        uri: the file.
        part: which of several sets of tensors to take: keys of a training checkpoint joined by "/", or what the names
            of the tensors begin with; empty for the moving average, or else the weights.

    Raises:
        UserError: no such file, not a checkpoint, damaged or hostile; one line that names the file and the tensor.
    """
    try:
        if str(uri).endswith(".json"):
            return _only(_open_index(str(uri)), part)
        place = storage.path(str(uri))
        if place is not None:
            if words := foreign.by_place(place):
                raise Refusal(words)
            check_regular(place)
        with storage.as_local_file(str(uri)) as path:
            return dataclasses.replace(_open_file(path, part), uris=[str(uri)])
    except Refusal as error:
        raise UserError(f"{uri}: {error}") from None
    except IsADirectoryError:
        raise UserError(f"{uri}: a folder, expected a checkpoint file") from None


def check_small(uri: str) -> None:
    """Check the size of a JSON file beside weights before it is read; where there is none, it is left to the reader.

    Raises:
        Refusal: it is absurdly large, or not a regular file.
    """
    path = storage.path(uri)
    if path is not None:
        check_regular(path)
    info = storage.stat(uri)
    if info is not None and info.bytes > MAX_HEADER_BYTES:
        raise Refusal(f"it has {info.bytes} bytes, which is absurdly large")


def _open_file(path: Path, part: str) -> Checkpoint:
    data = map_file(path)
    start = data[:64].tobytes()
    if start.startswith(b"PK\x03\x04"):
        found = torch_files.read_zip(data, part)
    elif start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= data.size:
        found = _only(_read_safetensors(data), part)
    elif start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        found = torch_files.read_legacy(data, part)
    elif start.startswith(b"\n"):
        found = _only(_read_mindspore(data), part)
    else:
        raise Refusal(_unknown(start))
    return dataclasses.replace(found, files=[data])


def _only(found: Checkpoint, part: str) -> Checkpoint:
    """Of a file without parts, the tensors whose names begin with the one that is asked for."""
    if not part:
        return found
    tensors = with_prefix(found.tensors, part)
    rest = [(name, f"{part} is taken") for name in found.tensors if not name.startswith(f"{part}.")]
    return dataclasses.replace(found, part=part, tensors=tensors, left_out=found.left_out + rest)


def _unknown(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page, not a checkpoint; the download went wrong"
    return "not a checkpoint: neither PyTorch's, nor safetensors, nor MindSpore's"


# safetensors: 8 bytes with the header's length, a JSON header, the tensors' bytes without holes


def _read_safetensors(data: np.ndarray) -> Checkpoint:
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > MAX_HEADER_BYTES or 8 + length > data.size:
        raise Refusal(f"its header claims {length} bytes; the file is truncated or no safetensors file")
    header = _parse_json(data[8 : 8 + length].tobytes())
    body = data[8 + length :]
    tensors: dict[str, StoredTensor] = {}
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            tensor, begin, end = _safetensor(check_name(name), entry, body)
        except Refusal as error:
            raise Refusal(f"tensor {show(name)}: {error}") from None
        tensors[name] = tensor
        spans.append((begin, end))
    spans.sort()
    at = 0
    for begin, end in spans:
        if begin != at:
            raise Refusal("its tensors overlap or leave holes")
        at = end
    if at != body.size:
        raise Refusal(f"its tensors take {at} bytes, the file has {body.size} for them")
    if not tensors:
        raise Refusal("it holds no tensors")
    return Checkpoint("safetensors", "", tensors)


def _parse_json(text: bytes) -> dict[str, Any]:
    if text.count(b"[") + text.count(b"{") + text.count(b",") > 16 * MAX_TENSORS:
        raise Refusal("its header is absurdly large")
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"its header is not JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise Refusal("its header is not a JSON object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Refusal("its header names a tensor twice")
    return value


def _safetensor(name: str, entry: Any, body: np.ndarray) -> tuple[StoredTensor, int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Refusal("its entry in the header is malformed")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in SAFETENSORS_TYPES:
        raise Refusal(f"element type {show(entry['dtype'])} is not supported")
    dtype = SAFETENSORS_TYPES[entry["dtype"]]
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2 or len(shape) > MAX_AXES:
        raise Refusal("its shape or offsets are not counts")
    begin, end = offsets
    if not begin <= end <= body.size:
        raise Refusal("it ends after the end of the file; the file is truncated")
    return _dense(dtype, shape, [body[begin:end]]), begin, end


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _dense(dtype: str, shape: list[int], pieces: list[np.ndarray]) -> StoredTensor:
    """A tensor that fills its bytes exactly."""
    sizes = tuple(shape)
    tensor = StoredTensor(Storage(dtype, pieces), dtype, sizes, contiguous_strides(sizes))
    if tensor.size * element_bytes(dtype) != tensor.storage.num_bytes:
        raise Refusal(f"shape {show(sizes)} of {dtype} does not fit its {tensor.storage.num_bytes} bytes")
    tensor.check()
    return tensor


def _open_index(uri: str) -> Checkpoint:
    """A sharded checkpoint: `weight_map` says which file, beside the index, has which tensor."""
    check_small(uri)
    text = storage.read_bytes(uri)
    places = _parse_json(text).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise Refusal("not the index of a sharded checkpoint: it has no weight_map")
    folder = uri.rpartition("/")[0]
    tensors: dict[str, StoredTensor] = {}
    files, uris, layouts = [np.frombuffer(text, np.uint8)], [uri], set()
    for file in sorted({str(file) for file in places.values()}):
        if "/" in file or "\\" in file or file in ("", ".", "..") or len(file) > _NAME_MAX or not file.isprintable():
            raise Refusal(f"the index names {show(file)}, which is not a file beside it")
        if file.endswith(".json"):
            raise Refusal(f"the index names {show(file)}, which is an index itself")
        place = f"{folder}/{file}" if folder else file
        if not storage.exists(storage.from_path(place)):
            raise Refusal(f"{file}, which the index names, is not there beside it")
        shard = open_checkpoint(place)
        expected = {name for name, place in places.items() if place == file}
        for name in sorted(expected ^ set(shard.tensors)):
            where = "is missing in" if name in expected else "is not expected in"
            raise Refusal(f"tensor {show(name)} {where} {file}")
        tensors |= shard.tensors
        files += shard.files
        uris += shard.uris
        layouts.add(shard.layout)
    layout = f"sharded {', '.join(sorted(layouts))}"
    return Checkpoint(layout, "", {name: tensors[name] for name in places}, files=files, uris=uris)


# MindSpore: the protobuf message Checkpoint { repeated Value { tag = 1; TensorProto tensor = 2 } value = 1 } with
# TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }


def _read_mindspore(data: np.ndarray) -> Checkpoint:
    end = data.size
    if end > _CRC_BYTES and data[end - _CRC_BYTES : end - 10].tobytes() == _CRC_MARK:
        end -= _CRC_BYTES
        if zlib.crc32(data[:end].data) != int.from_bytes(data[end + len(_CRC_MARK) :].tobytes(), "big"):
            raise Refusal("it is damaged: its checksum is wrong")
    tensors: dict[str, StoredTensor] = {}
    left_out = []
    pieces: list[np.ndarray] = []
    last, facts = "", ("", [0])
    for number, begin, stop in _fields(data, 0, end):
        if number != 1 or begin < 0:
            raise Refusal("not a checkpoint: neither PyTorch's, nor safetensors, nor MindSpore's")
        name, dtype, dims, content = _value(data, begin, stop)
        if content is None or dtype == "str":
            left_out.append((name, "text or a map, not a tensor"))
            if len(left_out) > MAX_TENSORS:
                raise Refusal(f"it has more than {MAX_TENSORS:,} values that are no tensors")
            continue
        if name in tensors and (name != last or (dtype, dims) != facts):
            raise Refusal(f"tensor {show(name)} is there twice")
        # A tensor above 512 MB is written in several values of the same name, one after the other.
        pieces = [*pieces, content] if name == last else [content]
        last, facts = name, (dtype, dims)
        tensors[name] = StoredTensor(Storage(dtype, pieces), dtype, tuple(dims), ())
        if len(tensors) > MAX_TENSORS or len(pieces) > 1024:
            raise Refusal(f"it has more than {MAX_TENSORS:,} tensors, or one in absurdly many pieces")
    checked = {}
    for name, tensor in tensors.items():
        # A scalar is written with the dimensions [0].
        shape = [] if tensor.shape == (0,) and tensor.storage.num_bytes else list(tensor.shape)
        try:
            if tensor.dtype not in MINDSPORE_TYPES:
                raise Refusal(f"element type {show(tensor.dtype)} is not supported")
            checked[check_name(name)] = _dense(MINDSPORE_TYPES[tensor.dtype], shape, tensor.storage.pieces)
        except Refusal as error:
            raise Refusal(f"tensor {show(name)}: {error}") from None
    if not checked:
        raise Refusal("it holds no tensors")
    return Checkpoint("MindSpore", "", checked, left_out)


def _value(data: np.ndarray, begin: int, stop: int) -> tuple[str, str, list[int], np.ndarray | None]:
    """Name, type, dimensions and bytes of one Value; None for bytes where it is not a tensor."""
    name, dtype, dims, content = "", "", [], None
    for number, at, end in _fields(data, begin, stop):
        if number == 1 and at >= 0:
            name = _string(data, at, end)
        elif number == 2 and at >= 0:
            content = data[at:at]
            for inner, start, limit in _fields(data, at, end):
                if inner == 1 and start < 0:
                    dims.append(limit)
                elif inner == 2 and start >= 0:
                    dtype = _string(data, start, limit)
                elif inner == 3 and start >= 0:
                    content = data[start:limit]
                else:
                    raise Refusal(f"tensor {show(name)} is malformed")
                if len(dims) > MAX_AXES or any(not 0 <= n < 1 << 62 for n in dims):
                    raise Refusal(f"tensor {show(name)} has an absurd shape")
        elif number != 3:
            raise Refusal("it is damaged")
    return name, dtype, dims, content


def _fields(data: np.ndarray, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Fields of a protobuf message: (number, start, end) of its bytes, or (number, -1, value) of a plain number."""
    while position < end:
        key, position = _varint(data, position, end)
        kind = key & 7
        if kind == 0:
            value, position = _varint(data, position, end)
            yield key >> 3, -1, value
        elif kind == 2:
            size, position = _varint(data, position, end)
            if position + size > end:
                what = f"tensor {show(name)}" if (name := _cut_name(data, position, end)) else "a tensor"
                raise Refusal(f"{what} ends after the end of the file; the file is truncated or damaged")
            yield key >> 3, position, position + size
            position += size
        else:
            raise Refusal("not a checkpoint: neither PyTorch's, nor safetensors, nor MindSpore's")


def _cut_name(data: np.ndarray, position: int, end: int) -> str:
    """The name at the beginning of a Value whose end is missing; empty where that is missing too."""
    head = data[position : min(position + 129, end)].tobytes()
    if len(head) < 2 or head[0] != 0x0A or head[1] > 127 or len(head) < 2 + head[1]:
        return ""
    return head[2 : 2 + head[1]].decode("utf-8", "backslashreplace")


def _varint(data: np.ndarray, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = int(data[position])
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
    raise Refusal("it is truncated or damaged")


def _string(data: np.ndarray, begin: int, end: int) -> str:
    if end - begin > 4096:
        raise Refusal("it is damaged: a name is absurdly long")
    return data[begin:end].tobytes().decode("utf-8", "backslashreplace")
