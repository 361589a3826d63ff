"""The code of a TorchScript archive, followed without running it: which operators meet which tensors, in what order.

The text under `code/` is parsed, never compiled. Its methods are then walked with stand-ins for values: a module is an
`Inert` of the archive's pickle, a weight a `StoredTensor`, what an operator gives a `ScriptNode` that remembers the
operator and its inputs. What decides nothing here (sizes, types) is unknown; of a branch on it both sides are walked. A
loop is walked once. Work is bounded by the length of the text and a count of steps.
"""

import ast
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latte.checkpoints.pickles import Inert
from latte.checkpoints.stored import Refusal, StoredTensor, show

MAX_CODE_BYTES = 4 << 20
MAX_BRACKETS = 50
MAX_FILES = 4096
_MAX_STEPS = 200_000
_MAX_CALLS = 60
_TORCH = ("torch.", "ops.aten.", "aten.")


@dataclass(frozen=True)
class Program:
    """A TorchScript archive's module, and its code by the name of the file (without `code/`)."""

    root: Inert
    code: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class ScriptNode:
    """Value of an operator: its name without `torch.`, and its arguments as they stand in the call."""

    op: str
    args: tuple[Any, ...] = ()


@dataclass(frozen=True)
class _Named:
    """A dotted name of the code: a function, a method's owner, or nothing that is known."""

    name: str


@dataclass(frozen=True)
class _Method:
    owner: Inert
    name: str


class _Unknown:
    """A value that is not followed."""


UNKNOWN = _Unknown()


def trace(program: Program, flags: Mapping[str, Any]) -> Any:
    """The value that `forward` returns, as the `ScriptNode` of the operator that made it.

    Args:
        program: the archive.
        flags: values of arguments by name; the first argument is `ScriptNode("input")`, every other is unknown.

    Raises:
        Refusal: the code is no code of TorchScript's, or takes too many steps.
    """
    try:
        return _Walker(program).method(program.root, "forward", [ScriptNode("input")], flags)
    except RecursionError:
        raise Refusal("its code is nested without end") from None


@dataclass
class _Walker:
    program: Program
    steps: Any = field(default_factory=itertools.count)
    calls: int = 0
    parsed: dict[str, dict[str, ast.AST]] = field(default_factory=dict)

    def method(self, owner: Inert, name: str, args: list[Any], flags: Mapping[str, Any]) -> Any:
        """The value of a method of a module."""
        module, _, cls = owner.name.rpartition(".")
        found = self._file(module).get(f"{cls}.{name}")
        if not isinstance(found, ast.FunctionDef):
            return UNKNOWN
        return self._run(found, [owner, *args], flags)

    def _function(self, name: str, args: list[Any], flags: Mapping[str, Any]) -> Any:
        module, _, short = name.rpartition(".")
        found = self._file(module).get(short)
        return self._run(found, args, flags) if isinstance(found, ast.FunctionDef) else UNKNOWN

    def _file(self, module: str) -> dict[str, ast.AST]:
        """Functions of a file by name, and methods by Class.method."""
        if module not in self.parsed:
            text = self.program.code.get(module.replace(".", "/") + ".py")
            self.parsed[module] = {} if text is None else _parse(module, text)
        return self.parsed[module]

    def _run(self, function: ast.FunctionDef, args: list[Any], flags: Mapping[str, Any]) -> Any:
        names = [argument.arg for argument in function.args.args]
        scope = {name: flags.get(name, UNKNOWN) for name in names}
        scope.update(zip(names, args, strict=False))
        if self.calls >= _MAX_CALLS:
            raise Refusal("its code calls itself without end")
        self.calls += 1
        try:
            found = self._block(function.body, scope)
        finally:
            self.calls -= 1
        return found[0] if found else UNKNOWN

    def _block(self, statements: list[ast.stmt], scope: dict[str, Any]) -> tuple[Any] | None:
        """Walk statements; the value of the last return that is reached, or None."""
        returned: tuple[Any] | None = None
        for statement in statements:
            self._step()
            if isinstance(statement, ast.Return):
                return (UNKNOWN if statement.value is None else self._value(statement.value, scope),)
            if isinstance(statement, ast.Assign):
                value = self._value(statement.value, scope)
                for target in statement.targets:
                    _assign(target, value, scope)
            elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                _assign(statement.target, self._value(statement.value, scope), scope)
            elif isinstance(statement, ast.Expr):
                self._value(statement.value, scope)
            elif isinstance(statement, ast.If):
                test = self._value(statement.test, scope)
                if isinstance(test, bool):
                    decided = self._block(statement.body if test else statement.orelse, scope)
                    if decided:
                        return decided
                else:
                    returned = self._block(statement.body, scope) or returned
                    returned = self._block(statement.orelse, scope) or returned
            elif isinstance(statement, ast.For | ast.While):
                if isinstance(statement, ast.For):
                    _assign(statement.target, UNKNOWN, scope)
                returned = self._block(statement.body, scope) or returned
        return returned

    def _step(self) -> None:
        if next(self.steps) > _MAX_STEPS:
            raise Refusal(f"its code takes more than {_MAX_STEPS:,} steps")

    def _value(self, node: ast.expr, scope: dict[str, Any]) -> Any:
        self._step()
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return scope.get(node.id, _Named(node.id))
        if isinstance(node, ast.List | ast.Tuple):
            return [self._value(item, scope) for item in node.elts]
        if isinstance(node, ast.UnaryOp):
            value = self._value(node.operand, scope)
            if isinstance(node.op, ast.USub) and isinstance(value, int | float):
                return -value
            if isinstance(node.op, ast.Not) and isinstance(value, bool):
                return not value
            return UNKNOWN
        if isinstance(node, ast.Subscript):
            value, index = self._value(node.value, scope), self._value(node.slice, scope)
            known = isinstance(value, list) and type(index) is int and -len(value) <= index < len(value)
            return value[index] if known else UNKNOWN
        if isinstance(node, ast.Attribute):
            return self._attribute(self._value(node.value, scope), node.attr)
        return self._call(node, scope) if isinstance(node, ast.Call) else UNKNOWN

    def _attribute(self, owner: Any, name: str) -> Any:
        if isinstance(owner, Inert):
            state = owner.state if isinstance(owner.state, dict) else {}
            return state[name] if name in state else _Method(owner, name)
        if isinstance(owner, _Named):
            return _Named(f"{owner.name}.{name}")
        return UNKNOWN

    def _call(self, node: ast.Call, scope: dict[str, Any]) -> Any:
        function = self._value(node.func, scope)
        args = [self._value(item, scope) for item in node.args]
        named = {item.arg: self._value(item.value, scope) for item in node.keywords if item.arg}
        if isinstance(function, _Method):
            return self.method(function.owner, function.name, args, named)
        if not isinstance(function, _Named):
            return UNKNOWN
        name = function.name
        if name.startswith("__torch__."):
            return self._function(name, args, named)
        if name == "getattr" and len(args) == 2 and isinstance(args[1], str):
            return self._attribute(args[0], args[1])
        if name in ("annotate", "unchecked_cast", "torch.jit.annotate"):
            return args[-1] if args else UNKNOWN
        if name in ("torch.__is__", "torch.__isnot__") and len(args) == 2 and None in args:
            other = args[0] if args[1] is None else args[1]
            is_none = other is None
            known = is_none or isinstance(other, StoredTensor | ScriptNode | Inert | int | float)
            return UNKNOWN if not known else is_none is (name == "torch.__is__")
        if name in ("float", "int", "bool") and len(args) == 1 and isinstance(args[0], int | float | bool):
            return {"float": float, "int": int, "bool": bool}[name](args[0])
        prefix = next((prefix for prefix in _TORCH if name.startswith(prefix)), None)
        return UNKNOWN if prefix is None else ScriptNode(name.removeprefix(prefix), (*args, *named.values()))


def _assign(target: ast.expr, value: Any, scope: dict[str, Any]) -> None:
    if isinstance(target, ast.Name):
        scope[target.id] = value
    elif isinstance(target, ast.List | ast.Tuple):
        parts = value if isinstance(value, list) and len(value) == len(target.elts) else [UNKNOWN] * len(target.elts)
        for part, item in zip(target.elts, parts, strict=True):
            _assign(part, item, scope)


def _parse(module: str, text: str) -> dict[str, ast.AST]:
    depth = 0
    for letter in text:  # the parser of Python is not made for nesting without end
        depth += (letter in "([{") - (letter in ")]}")
        if depth > MAX_BRACKETS:
            raise Refusal(f"code of {show(module)} is nested without end")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Refusal(f"code of {show(module)} is not TorchScript's ({type(error).__name__})") from None
    found: dict[str, ast.AST] = {}
    for item in tree.body:
        if isinstance(item, ast.FunctionDef):
            found[item.name] = item
        elif isinstance(item, ast.ClassDef):
            found |= {f"{item.name}.{part.name}": part for part in item.body if isinstance(part, ast.FunctionDef)}
    return found
