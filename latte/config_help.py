"""Keys of a config for a person: nested ones too, each with what it may be and what it is where nobody says."""

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from latte.config import Config, section_of

_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def rows(
    cls: type[Config], inside: Mapping[str, type[Config]] | None = None, above: str = "", but: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    """Key and explanation, in the order of the class; keys of a section follow it, once where several have the same.

    Args:
        cls: the config's class.
        inside: what the keys of a field that takes a mapping are of, by the field's name.
        above: what stands before each key, for example "dataset.".
        but: keys that are left out.
    """
    listed: dict[type[Config], str] = {}
    for name, field in cls.model_fields.items():
        if name in but:
            continue
        section = section_of(field) or (inside or {}).get(name)
        same = listed.get(section) if section is not None else None
        told = f"keys as of {same}" if same is not None else _told(field, section)
        yield above + name, " ".join(filter(None, (field.description, f"[{told}]")))
        if section is not None and same is None:
            listed[section] = above + name
            yield from rows(section, above=f"{above}{name}.")


def _told(field: FieldInfo, section: type[Config] | None) -> str:
    """Values that a key may have, and its default."""
    parts = [] if section is not None else list(filter(None, (_choices(field.annotation), _bounds(field))))
    if field.is_required():
        return "; ".join((*parts, "required"))
    default = field.get_default(call_default_factory=True)
    if isinstance(default, Config):
        return "; ".join((*parts, "its keys have defaults"))
    return "; ".join((*parts, f"default {_yaml(default)}"))


def _choices(annotation: Any) -> str:
    """The values of a key that has few of them."""
    if annotation is bool:
        return "true or false"
    found: list[str] = []
    for each in (annotation, *get_args(annotation)):
        if get_origin(each) is Literal:
            found += [_yaml(value) for value in get_args(each)]
    return f"{', '.join(found[:-1])} or {found[-1]}" if len(found) > 1 else (found[0] if found else "")


def _bounds(field: FieldInfo) -> str:
    """The least and the most that a number may be."""
    marks = [*field.metadata, *(mark for each in get_args(field.annotation) for mark in getattr(each, "metadata", ()))]
    told = []
    for key, words in _BOUNDS.items():
        value = next((getattr(mark, key) for mark in marks if getattr(mark, key, None) is not None), None)
        if value is not None:
            told.append(f"{words} {value:g}" if isinstance(value, float) else f"{words} {value}")
    return ", ".join(told)


def _yaml(value: Any) -> str:
    """A value as it is written in a settings file."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return inspect.cleandoc(str(value)) if value != "" else '""'
