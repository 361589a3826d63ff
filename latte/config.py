"""Typed configs: a YAML file, then `key=value` overrides; an unknown key or a bad value is an error that names it."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import pydantic
import yaml

from latte import uris, yaml_text
from latte.errors import UserError

C = TypeVar("C", bound="Config")


def _checked_root(root: str) -> str:
    try:
        return uris.root_uri(root)
    except UserError as error:
        raise ValueError(str(error).partition(": ")[2]) from None


class ToldError(ValueError):
    """A validator's error in full, keys with `prefix_of` and values included: nothing is put around it."""


def prefix_of(info: pydantic.ValidationInfo) -> str:
    """Prefix that `build` was told to put before keys, for a validator that names some."""
    return str((info.context or {}).get("prefix", ""))


def _check_name(name: str) -> None:
    """Refuse what is no name of one folder, in every store and in a URI.

    Raises:
        ValueError: what a name may not be.
    """
    if not name.isprintable():
        raise ValueError("a name is one line of text, without control characters")
    if not name.strip() or name in (".", "..") or "/" in name or re.search("%[0-9A-Fa-f]{2}", name):
        raise ValueError("a name becomes a folder's: it is not empty, not . or .., and has no / and no %20 in it")
    if len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"a name becomes a folder's, which takes up to {_LONGEST_NAME} bytes; this has more")


def _takes_switches(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_switches, get_args(annotation)))


# File systems take 255, and a temporary file beside it has a longer name.
_LONGEST_NAME = 200
# A preset's name may stand for all fields of such a key; an override of one field leaves the others as they are.
_NAMED_FIELDS = ("protocol",)
# Where everything is kept: a URI, or the path of a folder, which becomes one.
Root = Annotated[str, pydantic.AfterValidator(_checked_root)]


@dataclass(frozen=True)
class FileKey:
    """Mark of a key whose value names a file or a folder, or a list of some: `Annotated[str, FileKey("file")]`.

    Attributes:
        kind: what lies there. "weights": a file and what its reader takes from beside it; "manifest": one, or what it
            is of; "tokenizer": tokenizer.json, or vocab.json with merges.txt; "videos": the folder of a dataset;
            "protocol": a preset's name, or a YAML file of fields, or fields that name one; "target": what is written.
    """

    kind: Literal["file", "weights", "manifest", "tokenizer", "videos", "protocol", "target"]


class Config(pydantic.BaseModel):
    """Base of every config: frozen; a key it does not know is refused.

    So is a number that is not finite, true or false for a key that takes a number, where Python reads 1 and 0, and a
    name that cannot be a folder's, or has control characters, which would stand on terminals.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=False, allow_inf_nan=False
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number_and_no_odd_name(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        if isinstance(value, bool) and not _takes_switches(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("YAML reads it as true or false; give a number, or put a text in quotes")
        if info.field_name == "name" and isinstance(value, str):
            _check_name(value)
        return value

    @classmethod
    def paths(cls) -> Iterator[str]:
        """Every key of the config, those of sections with the way to them: dataset.videos."""
        for name, field in cls.model_fields.items():
            yield name
            section = section_of(field)
            if section is not None:
                yield from (f"{name}.{path}" for path in section.paths())


def section_of(field: Any) -> type[Config] | None:
    """The config that a key's value is, where it is one."""
    for each in (field.annotation, *get_args(field.annotation)):
        if isinstance(each, type) and issubclass(each, Config):
            return each
    return None


def meant(key: str, known: Iterable[str], paths: Iterable[str] = ()) -> str:
    """The end of an error about a key that is not there: the key that was probably meant, or those that there are.

    Args:
        key: that is not there.
        known: keys beside it.
        paths: keys elsewhere, with the way to them.
    """
    known = sorted(known)
    last = key.rpartition(".")[2]
    elsewhere = [path for path in paths if path.rpartition(".")[2] == last and path != key]
    near = elsewhere[:2] if elsewhere and last not in known else difflib.get_close_matches(key, known, n=1, cutoff=0.65)
    if near:
        return f" (did you mean {' or '.join(near)}?)"
    return f" (known: {', '.join(known)})" if known else ""


def load(cls: type[C], path: str | Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Read `cls` from a YAML file, then apply `key=value` overrides (`a.b=1` reaches into sections; values are YAML).

    `protocol.num_clips=36` reaches into the protocol that is named by its preset, too.

    Raises:
        UserError: the file is missing or not YAML, or a key is unknown, missing or has a bad value.
    """
    values: dict[str, Any] = {}
    source = "command line"
    if path is not None:
        source = str(path)
        values = read_yaml(path)
    return build(cls, overridden(values, overrides), source)


def overridden(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The values with `key=value` overrides put into them.

    Raises:
        UserError: one is not of that form, or reaches into what is no section.
    """
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise UserError(f"override {override!r}: write it as key=value")
        _put(values, key.split("."), _parse(text, f"override {key}"), key)
    return values


def build(cls: type[C], values: Mapping[str, Any], source: str = "", prefix: str = "") -> C:
    """Validate `values` as a `cls`.

    Args:
        cls: the config's class.
        values: its keys.
        source: a file or a pipeline parameter, named in front of the error.
        prefix: of every key that the error names, `train.model.` for example.

    Raises:
        UserError: a key is unknown, missing or has a bad value; every such key is named, in one line.
    """
    try:
        return cls.model_validate(dict(values), context={"prefix": prefix})
    except pydantic.ValidationError as error:
        lines = "; ".join(_explain(cls, e, prefix) for e in error.errors())
        raise UserError(f"{source}: {lines}" if source else lines) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Safe-load a YAML mapping.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{path}: {reason}") from None
    values = _parse(text, str(path)) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found a {type(values).__name__}")
    return values


def _parse(text: str, what: str) -> Any:
    try:
        return yaml_text.parse(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{what}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


def _put(values: dict[str, Any], keys: list[str], value: Any, name: str) -> None:
    for key in keys[:-1]:
        section = values.setdefault(key, {})
        if isinstance(section, str) and key in _NAMED_FIELDS:
            section = values[key] = {"preset": section}
        if not isinstance(section, dict):
            raise UserError(f"override {name}: {key} is a value, not a section")
        values = section
    values[keys[-1]] = value


def _explain(cls: type[Config], error: Any, prefix: str) -> str:
    if isinstance(error.get("ctx", {}).get("error"), ToldError):
        return str(error["ctx"]["error"])
    section = f"{prefix.removesuffix('.')}: " if prefix else ""
    key = ".".join(str(part) for part in error["loc"]) or "config"
    if error["type"] == "extra_forbidden":
        return f"{section}unknown key {key}{_meant(cls, [str(part) for part in error['loc']])}"
    if error["type"] == "missing":
        return f"{section}missing key {key}"
    message = error["msg"].removeprefix("Value error, ")
    # A rule between keys names them itself; its input is the whole config.
    return f"{prefix}{key}: {message} (got {error['input']!r})" if error["loc"] else f"{section}{message}"


def _meant(cls: type[Config], way: list[str]) -> str:
    """Key that was probably meant by one that is not there."""
    owner: type[Config] | None = cls
    for name in way[:-1]:
        owner = section_of(owner.model_fields[name]) if owner is not None and name in owner.model_fields else None
    above = "".join(f"{name}." for name in way[:-1])
    known = [] if owner is None else [above + name for name in owner.model_fields]
    return meant(above + way[-1], known, cls.paths())
