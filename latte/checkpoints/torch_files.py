"""PyTorch's three file formats, read without torch: zip archives, the older stream of pickles, TorchScript archives."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from latte.checkpoints.archive import Archive
from latte.checkpoints.parts import choose, entries
from latte.checkpoints.pickles import Call, Inert, interpret
from latte.checkpoints.script import MAX_CODE_BYTES, MAX_FILES, Program
from latte.checkpoints.stored import (
    MAX_AXES,
    MAX_NAME_LENGTH,
    Checkpoint,
    Refusal,
    Storage,
    StoredTensor,
    element_bytes,
    show,
)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_STORAGE_TYPES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "",
}  # fmt: skip
_DTYPE_NAMES = {
    "torch.float": "float32", "torch.double": "float64", "torch.half": "float16", "torch.long": "int64",
    "torch.int": "int32", "torch.short": "int16",
}  # fmt: skip


def read_zip(data: np.ndarray, part: str = "") -> Checkpoint:
    """A zip archive of torch.save or torch.jit.save; `part` as in `latte.checkpoints.parts.choose`.

    Raises:
        Refusal: it is damaged, hostile, or holds no tensors.
    """
    archive = Archive(data)
    pickles = [name for name in archive.entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refusal(
            f"a zip archive, but not one that PyTorch wrote: it has {len(pickles)} entries data.pkl, expected 1"
        )
    prefix = pickles[0].removesuffix("data.pkl")
    order = prefix + "byteorder"
    if order in archive.entries and archive.verify(order, archive.read(order)).tobytes() != b"little":
        raise Refusal("its numbers are big-endian, which is not supported")
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage:
        dtype, key, num_elements = _storage_id(identity)
        if key not in storages:
            content = archive.read(f"{prefix}data/{key}")
            if content.size != num_elements * (element_bytes(dtype) if dtype else 1):
                raise Refusal(f"storage {show(key)} has {content.size} bytes for {show(num_elements)} elements")
            storages[key] = Storage(dtype, [content], num_elements)
        return _same(storages[key], dtype, num_elements, key)

    content = archive.verify(pickles[0], archive.read(pickles[0]))
    value, _ = interpret(content.data, persistent, CALLS)
    is_script = prefix + "constants.pkl" in archive.entries
    found = choose("TorchScript archive" if is_script else "PyTorch zip", value, list(storages.values()), part)
    if is_script and isinstance(value, Inert) and not part:
        found = dataclasses.replace(found, program=_program(archive, prefix, value))
    users = {id(tensor.storage): name for name, tensor in reversed(found.tensors.items())}
    for key, storage in storages.items():  # only what is taken is read: the optimizer's state may be twice as large
        if id(storage) in users:
            try:
                archive.verify(f"{prefix}data/{key}", storage.pieces[0])
            except Refusal as error:
                raise Refusal(f"tensor {show(users[id(storage)])}: {error}") from None
    return found


def _program(archive: Archive, prefix: str, root: Inert) -> Program:
    """Code of a TorchScript archive, what it holds besides tensors, as text."""
    folder = f"{prefix}code/"
    names = [name for name in archive.entries if name.startswith(folder) and name.endswith(".py")]
    num_bytes = sum(archive.entries[name].bytes for name in names)
    if len(names) > MAX_FILES or num_bytes > MAX_CODE_BYTES:
        raise Refusal(f"its code of {len(names)} files and {num_bytes} bytes is absurdly large")
    code = {}
    for name in names:
        text = archive.verify(name, archive.read(name)).tobytes()
        code[name.removeprefix(folder)] = text.decode("utf-8", "backslashreplace")
    return Program(root, code)


def read_legacy(data: np.ndarray, part: str = "") -> Checkpoint:
    """The stream that torch.save wrote before version 1.6: pickles (magic, version, system, value, keys), then bytes.

    Raises:
        Refusal: it is damaged, hostile, or holds no tensors.
    """
    view = data.data
    magic, position = interpret(view, _no_storage, {})
    version, position = interpret(view, _no_storage, {}, position)
    if magic != LEGACY_MAGIC or version != _LEGACY_PROTOCOL:
        raise Refusal("a pickle, but not one that PyTorch wrote")
    system, position = interpret(view, _no_storage, {}, position)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refusal("its numbers are big-endian, which is not supported")
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Any:
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            return identity[1]  # a whole module was pickled, with its source beside it
        dtype, key, num_elements = _storage_id(identity)
        storage = storages.setdefault(key, Storage(dtype, [], num_elements))
        return _same(storage, dtype, num_elements, key)

    value, position = interpret(view, persistent, CALLS, position)
    keys, position = interpret(view, _no_storage, {}, position)
    if not isinstance(keys, list) or any(not isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise Refusal("its list of storages does not fit its tensors")
    for key in keys:
        storage = storages[key]
        try:
            position = _fill(storage, key, data, position)
        except Refusal as error:
            raise Refusal(f"tensor {show(_user(storage, value))}: {error}") from None
    if position != data.size:
        raise Refusal(f"{data.size - position} bytes follow after its last storage")
    return choose("PyTorch before 1.6", value, list(storages.values()), part)


def _fill(storage: Storage, key: str, data: np.ndarray, position: int) -> int:
    start = position + 8
    end = start + storage.num_elements * (element_bytes(storage.dtype) if storage.dtype else 1)
    if end > data.size:
        raise Refusal(f"storage {show(key)} ends after the end of the file; the file is truncated")
    if int.from_bytes(data[position:start].tobytes(), "little") != storage.num_elements:
        raise Refusal(f"storage {show(key)} has another size than its tensors say")
    storage.pieces.append(data[start:end])
    return end


def _user(storage: Storage, value: Any) -> str:
    """Name of the first tensor that is a view of `storage`; "?" where only something unnamed is."""
    parts = [value, *(value.values() if isinstance(value, dict) else [])]
    work = itertools.count()
    named = (entry for part in parts for entry in entries(part, work))
    return next((name for name, item in named if isinstance(item, StoredTensor) and item.storage is storage), "?")


def _storage_id(identity: Any) -> tuple[str, str, int]:
    """Element type, key and number of elements of a persistent id ("storage", type, key, location, elements)."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise Refusal("a persistent id in its pickle is not a storage")
    _, kind, key, _, num_elements = identity[:5]
    if len(identity) == 6 and identity[5] is not None:
        raise Refusal("a storage is a view of another one, which only very old files have")
    name = kind.name if isinstance(kind, Inert) else ""
    module, _, short = name.rpartition(".")
    if module not in ("torch", "torch.cuda", "torch.storage") or short not in _STORAGE_TYPES:
        raise Refusal(f"storage type {show(name)} is not known")
    if (
        not isinstance(key, str)
        or len(key) > MAX_NAME_LENGTH
        or not key.isalnum()
        or type(num_elements) is not int
        or not 0 <= num_elements < 1 << 48
    ):
        raise Refusal("a persistent id in its pickle has no sound key or size")
    return _STORAGE_TYPES[short], key, num_elements


def _same(storage: Storage, dtype: str, num_elements: int, key: str) -> Storage:
    if (storage.dtype, storage.num_elements) != (dtype, num_elements):
        raise Refusal(f"storage {show(key)} is used with two types or sizes")
    return storage


def _no_storage(_: Any) -> Any:
    raise Refusal("a storage is named where none can be")


# The calls of torch's pickles that rebuild tensors


def _rebuild_tensor(args: tuple[Any, ...]) -> StoredTensor:
    return _tensor(args, None, args[6:7])


def _rebuild_tensor_v3(args: tuple[Any, ...]) -> StoredTensor:
    if len(args) < 7 or not isinstance(args[6], Inert):
        raise Refusal("a tensor names no element type")
    name = args[6].name
    return _tensor(args, _DTYPE_NAMES.get(name, name.removeprefix("torch.")), args[7:8])


def _tensor(args: tuple[Any, ...], dtype: str | None, metadata: tuple[Any, ...]) -> StoredTensor:
    if len(args) < 4 or not isinstance(args[0], Storage):
        raise Refusal("a tensor is made of what is no storage")
    if any(isinstance(bits, dict) and any(bits.values()) for bits in metadata):
        raise Refusal("a tensor is stored negated or conjugated, which is not supported")
    storage, offset, shape, strides = args[:4]
    shape, strides = (part.args[0] if _is_size(part) else part for part in (shape, strides))
    if not isinstance(shape, tuple | list) or not isinstance(strides, tuple | list):
        raise Refusal("a tensor's shape or strides are no tuple")
    if max(len(shape), len(strides)) > MAX_AXES:  # before a list is copied, as often as the pickle likes
        raise Refusal(f"a tensor has {len(shape)} axes and {len(strides)} strides")
    return StoredTensor(storage, dtype or storage.dtype, tuple(shape), tuple(strides), offset)


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, Inert)
        and value.name == "torch.Size"
        and bool(value.args)
        and isinstance(value.args[0], tuple | list)  # type: ignore[index]
    )


def _rebuild_parameter(args: tuple[Any, ...]) -> Any:
    if not args or not isinstance(args[0], StoredTensor):
        raise Refusal("a parameter is made of what is no tensor")
    return args[0]


def _rebuild_from_type(args: tuple[Any, ...]) -> Any:
    """A tensor of a subclass: (function that rebuilds it, class, the function's arguments, state)."""
    if len(args) != 4 or not isinstance(args[0], Inert) or not isinstance(args[2], tuple):
        raise Refusal("a tensor of a subclass is malformed")
    name = args[0].name
    if name not in CALLS or name.endswith("_rebuild_from_type_v2"):
        raise Refusal(f"a tensor of a subclass is rebuilt by {show(name)}; a checkpoint needs no such call")
    return CALLS[name](args[2])


CALLS: dict[str, Call] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
}
