"""YAML as people write it in settings: small, every key once, nothing that unfolds without end."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

# Values that a text may stand for, with every alias counted as often as it is used. Settings have hundreds.
_MOST_VALUES = 100_000
_DEEPEST = 50


def parse(text: str) -> Any:
    """The value of a YAML text, by the safe loader.

    Raises:
        yaml.YAMLError: it is not YAML, a key stands twice in a mapping, a number is an octal or a time, or it unfolds
            to more than 100,000 values or 50 levels.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (OverflowError, ValueError) as error:  # a number or a date that Python cannot hold
        raise yaml.YAMLError(str(error)) from None


class _Loader(yaml.SafeLoader):
    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _size(node, {}, 0)
            _check_keys(node)
        return node


# Of integers: YAML 1.1 reads 010 as 8 and 1:30 as 90, which nobody means.
_ODD_NUMBER = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _read(node: Any) -> Any:
    return yaml.safe_load(node.value)


def _refused(words: str, node: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, words, node.start_mark)


def _size(node: Any, known: dict[int, int], depth: int) -> int:
    """Values that a node stands for; what an alias stands for is the same node."""
    if depth > _DEEPEST:  # also where an alias stands inside of what it is of
        raise _refused(f"nested more than {_DEEPEST} levels deep", node)
    if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBER_TAGS and _ODD_NUMBER.fullmatch(node.value):
        raise _refused(
            f"{node.value} would be read as {_read(node)}; write the number plainly, or a text in quotes", node
        )
    if id(node) not in known:
        known[id(node)] = 1 + sum(_size(child, known, depth + 1) for child in _children(node))
    if known[id(node)] > _MOST_VALUES:
        raise _refused(f"its aliases unfold to more than {_MOST_VALUES} values", node)
    return known[id(node)]


def _check_keys(root: Any) -> None:
    seen, todo = {id(root)}, [root]
    while todo:
        node = todo.pop()
        if isinstance(node, yaml.MappingNode):
            _check_own_keys(node)
        for child in _children(node):
            if id(child) not in seen:
                seen.add(id(child))
                todo.append(child)


def _check_own_keys(node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            name = (key.tag, key.value)
            if name in lines:
                raise _refused(f"the key {key.value} stands in line {lines[name]} already", key)
            lines[name] = key.start_mark.line + 1
