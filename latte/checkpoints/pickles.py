"""A reader of pickles that runs nothing: it walks the opcodes and knows containers, numbers, text and torch's tensors.

A class that a pickle names is never imported: it becomes an `Inert` object that only remembers its name. A call is
carried out only for torch's functions that rebuild a tensor and for a few containers; a short list of harmless calls
found in published checkpoints (a device, a path, numpy's scalars, OmegaConf's nodes) gives an `Inert`; every other call
is refused. Work and memory are bounded by the number of opcodes and bytes.
"""

import io
import pickletools
import struct
from collections.abc import Callable
from typing import Any

from latte.checkpoints.stored import MAX_NAME_LENGTH, Refusal, show

# The pickle of Latte-XL/2 with its EMA and optimizer has about 50,000 opcodes in 2 MB.
MAX_BYTES = 32 << 20
MAX_OPCODES = 400_000
MAX_LONG_BYTES = 64

# Classes and functions whose call gives an Inert that keeps the arguments; nothing of them is run.
_HARMLESS_MODULES = ("omegaconf.", "yacs.", "torch.jit._pickle.")
_HARMLESS_CALLS = frozenset(
    [
        "collections.defaultdict",
        "collections.Counter",
        "collections.deque",
        "argparse.Namespace",
        "torch.device",
        "torch.Size",
        "torch.serialization._get_layout",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_qtensor",
        "numpy.dtype",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.WindowsPath",
        "pathlib.Path",
        "builtins.set",
        "builtins.frozenset",
        "builtins.slice",
        "builtins.complex",
        "builtins.bytearray",
        "_codecs.encode",
        "datetime.datetime",
        "datetime.timedelta",
        "datetime.date",
    ]
)
# Python 2's names, which pickles of protocol 2 keep.
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Inert:
    """Stands for an object of a class that is not imported: the class's name and what the pickle put into it."""

    __slots__ = ("args", "elements", "entries", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] | None = None) -> None:
        self.name = name
        self.args = args  # None: the class itself, not an instance
        self.state: Any = None
        self.entries: dict[Any, Any] = {}
        self.elements: list[Any] = []

    def __repr__(self) -> str:
        return f"<inert {show(self.name)}>"


class Container(dict):
    """An OrderedDict of the pickle, whose attributes (a state_dict's `_metadata`) are dropped."""


# A call that is carried out: takes the arguments, gives the value; raises Refusal.
Call = Callable[[tuple[Any, ...]], Any]


def interpret(
    data: bytes | memoryview, persistent: Callable[[Any], Any], calls: dict[str, Call], start: int = 0
) -> tuple[Any, int]:
    """Read one pickle without running it.

    Args:
        data: bytes that hold the pickle; no more than MAX_BYTES of them are read.
        persistent: gives the object behind a persistent id (torch's storages); raises Refusal.
        calls: the functions, by full name, whose call is carried out by ours.
        start: where in `data` the pickle begins.

    Returns:
        The value and the position after the pickle.

    Raises:
        Refusal: it is damaged, too large, or does what a checkpoint does not need.
    """
    window = io.BytesIO(data[start : start + MAX_BYTES])
    machine = _Machine(persistent, calls)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(window)):
            if count > MAX_OPCODES:
                raise Refusal(f"its pickle has more than {MAX_OPCODES:,} operations")
            if opcode.name == "STOP":
                return machine.pop(), start + window.tell()
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        # What a damaged pickle makes of genops and of the stack; a bug here would be found by the tests of good files.
        raise Refusal(f"its pickle is damaged ({type(error).__name__})") from None
    raise Refusal("its pickle does not end")


class _Machine:
    def __init__(self, persistent: Callable[[Any], Any], calls: dict[str, Call]) -> None:
        self._persistent, self._calls = persistent, calls
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each open mark
        self._memo: dict[int, Any] = {}
        self._num_pairs = 0  # that fill OrderedDicts; one list of them can be used again and again

    def pop(self) -> Any:
        return self._stack.pop()

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSHES:
            if isinstance(argument, int) and argument.bit_length() > MAX_LONG_BYTES * 8:
                raise Refusal("its pickle holds an absurdly long number")
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if argument >= 1 << 32:
                raise Refusal("its pickle numbers its objects absurdly")
            self._memo[argument] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        else:
            handler = getattr(self, "_" + name.lower(), None)
            if handler is None:
                raise Refusal(f"its pickle uses {name}, which no checkpoint needs")
            handler(argument)

    # Structure

    def _proto(self, argument: Any) -> None:
        if argument > 5:
            raise Refusal(f"its pickle is of protocol {show(argument)}")

    def _frame(self, argument: Any) -> None:
        """Frames only help readers that stream."""

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def _dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    # Containers; sets become lists, because their elements may not be hashable without running something

    def _list(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(items)

    def _tuple(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(tuple(items))

    def _tuple1(self, _: Any) -> None:
        self._stack[-1:] = [(self._stack[-1],)]

    def _tuple2(self, _: Any) -> None:
        self._stack[-2:] = [(self._stack[-2], self._stack[-1])]

    def _tuple3(self, _: Any) -> None:
        self._stack[-3:] = [(self._stack[-3], self._stack[-2], self._stack[-1])]

    def _dict(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append({})
        self._set_items(items)

    def _frozenset(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(items)

    def _append(self, _: Any) -> None:
        self._extend([self.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _additems(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set_items([key, value])

    def _setitems(self, _: Any) -> None:
        self._set_items(self._to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Inert):
            target = target.elements
        if not isinstance(target, list):
            raise Refusal("its pickle appends to what is no list")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Inert):
            target = target.entries
        if not isinstance(target, dict) or len(items) % 2:
            raise Refusal("its pickle sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_as_key(key)] = value

    # Names, objects and calls

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(Inert(_full_name(module, name)))

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refusal("its pickle names a class by what is no text")
        if len(name) + len(module) > MAX_NAME_LENGTH:
            raise Refusal("its pickle names a class by an absurdly long text")
        self._stack.append(Inert(_full_name(module, name)))

    def _inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        args = tuple(self._to_mark())
        self._stack.append(self._call(Inert(_full_name(module, name)), args))

    def _obj(self, _: Any) -> None:
        cls, *args = self._to_mark()
        self._stack.append(self._call(cls, tuple(args)))

    def _newobj(self, _: Any) -> None:
        args, cls = self.pop(), self.pop()
        self._stack.append(self._instance(cls, args))

    def _newobj_ex(self, _: Any) -> None:
        _keywords, args, cls = self.pop(), self.pop(), self.pop()
        self._stack.append(self._instance(cls, args))

    def _reduce(self, _: Any) -> None:
        args, function = self.pop(), self.pop()
        self._stack.append(self._call(function, args))

    def _build(self, _: Any) -> None:
        state = self.pop()
        target = self._stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, Container):
            raise Refusal("its pickle sets the state of what is no object")

    def _persid(self, argument: str) -> None:
        self._stack.append(self._persistent(argument))

    def _binpersid(self, _: Any) -> None:
        self._stack.append(self._persistent(self.pop()))

    def _instance(self, cls: Any, args: Any) -> Any:
        """An object made by a class's `__new__`: a known container, or inert."""
        if not isinstance(cls, Inert) or cls.args is not None or not isinstance(args, tuple):
            raise Refusal("its pickle makes an object of what is no class")
        if cls.name == "collections.OrderedDict":
            return Container()
        return Inert(cls.name, args)

    def _call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Inert) or function.args is not None or not isinstance(args, tuple):
            raise Refusal("its pickle calls what is no function")
        if function.name in self._calls:
            return self._calls[function.name](args)
        if function.name == "collections.OrderedDict":
            self._num_pairs += len(args[0]) if args and isinstance(args[0], list | tuple) else 0
            if self._num_pairs > MAX_OPCODES:
                raise Refusal("its pickle fills OrderedDicts without end")
            return _ordered_dict(args)
        if function.name == "copyreg._reconstructor" and args and isinstance(args[0], Inert):
            return self._instance(args[0], args[1:])
        if function.name in _HARMLESS_CALLS or function.name.startswith(_HARMLESS_MODULES):
            return Inert(function.name, args)
        raise Refusal(f"its pickle calls {show(function.name)}; a checkpoint needs no such call, so nothing was run")


def _full_name(module: str, name: str) -> str:
    return f"{_OLD_MODULES.get(module, module)}.{name}"


def _as_key(key: Any) -> Any:
    # Only text names tensors. Hashing a tuple of tuples of … could take for ever, and chosen numbers collide in a
    # dictionary until it is as slow; an Inert is hashed by identity.
    return key if isinstance(key, str | Inert) else Inert("key")


def _ordered_dict(args: tuple[Any, ...]) -> Container:
    container = Container()
    if args:
        pairs = args[0]
        if len(args) != 1 or not isinstance(pairs, list | tuple):
            raise Refusal("its pickle fills an OrderedDict with what are no pairs")
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise Refusal("its pickle fills an OrderedDict with what are no pairs")
            container[_as_key(pair[0])] = pair[1]
    return container


_PUSHES = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    ]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
