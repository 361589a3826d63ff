"""Typed configs: a YAML file, then `key=value` overrides; an unknown key or a bad value is an error that names it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import pydantic
import yaml

from latte import storage
from latte.errors import UserError

C = TypeVar("C", bound="Config")


def _checked_root(root: str) -> str:
    try:
        return storage.root_uri(root)
    except UserError as error:
        raise ValueError(str(error).partition(": ")[2]) from None


class ToldError(ValueError):
    """What a validator says in full, keys with `prefix_of` and values included: nothing is put around it."""


def prefix_of(info: pydantic.ValidationInfo) -> str:
    """What `build` was told to put before keys, for a validator that names some."""
    return str((info.context or {}).get("prefix", ""))


def _takes_switches(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_switches, get_args(annotation)))


# A preset's name may stand for all fields of such a key; an override of one field leaves the others as they are.
_NAMED_FIELDS = ("protocol",)
# Where everything is kept: a URI, or the path of a folder, which becomes one.
Root = Annotated[str, pydantic.AfterValidator(_checked_root)]


class Config(pydantic.BaseModel):
    """Base of every config: frozen; a key it does not know is refused.

    So is a number that is not finite, and true or false for a key that takes a number, where Python reads 1 and 0.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=False, allow_inf_nan=False
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        if isinstance(value, bool) and not _takes_switches(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("YAML reads it as true or false; give a number, or put a text in quotes")
        return value


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
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise UserError(f"override {override!r}: write it as key=value")
        _put(values, key.split("."), _parse(text, f"override {key}"), key)
    return build(cls, values, source)


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
        return yaml.safe_load(text)
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
        known = ", ".join(sorted(cls.model_fields)) if len(error["loc"]) == 1 else ""
        return f"{section}unknown key {key}" + (f" (known: {known})" if known else "")
    if error["type"] == "missing":
        return f"{section}missing key {key}"
    message = error["msg"].removeprefix("Value error, ")
    # A rule between keys names them itself; its input is the whole config.
    return f"{prefix}{key}: {message} (got {error['input']!r})" if error["loc"] else f"{section}{message}"
