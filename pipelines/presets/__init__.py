"""Settings files and what they are composed from: presets by name, other files by `include`.

    vae: {include: models/sd-vae-ft-ema}      # a preset of this package, pipelines/presets/models/sd-vae-ft-ema.yaml
    train: {include: base.yaml, steps: 1000}  # a file beside this one, with another number of steps

What stands beside `include` goes over what was included, section by section. A relative path in a settings file counts
from the folder of that file; where nothing lies there, from the working folder.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from latte.config import read_yaml
from latte.errors import UserError
from pipelines.places import Named

FOLDER = Path(__file__).parent
INCLUDE = "include"
# Where a name without a folder is looked for.
_PIPELINES = "pipelines"
_ENDING = ".yaml"


class _Text(str):
    """A text of a settings file that knows the file's folder."""

    folder: Path


def names() -> list[str]:
    """Names of the presets of whole pipelines."""
    return sorted(path.stem for path in (FOLDER / _PIPELINES).glob(f"*{_ENDING}"))


def found(name: str | Path, folder: Path | None = None) -> Path:
    """The file that a path or a preset's name means.

    Args:
        name: a path, or skytimelapse, or models/sd-vae-ft-ema.
        folder: that relative paths begin in; None for the working folder.

    Raises:
        UserError: there is neither.
    """
    path = (folder or Path()) / name
    if path.exists() or str(name).endswith((_ENDING, ".yml")) or Path(name).is_absolute():
        return path
    for candidate in (FOLDER / _PIPELINES / f"{name}{_ENDING}", FOLDER / f"{name}{_ENDING}"):
        if candidate.is_relative_to(FOLDER) and ".." not in candidate.parts and candidate.is_file():
            return candidate
    parts = (file.relative_to(FOLDER).with_suffix("").as_posix() for file in sorted(FOLDER.glob(f"*/*{_ENDING}")))
    known = names() if "/" not in str(name) else list(parts)
    near = difflib.get_close_matches(str(name), known, n=1) or known
    raise UserError(f"{name}: no such file, and no preset of this name; there is {', '.join(near)}")


def read(path: str | Path, filled_in: Mapping[str, Iterable[str]] | None = None) -> dict[str, Any]:
    """The values of a settings file with all that it includes.

    Args:
        path: the file, or a preset's name.
        filled_in: keys, by section, that an included file may have for a step alone and that a pipeline fills in.

    Raises:
        UserError: a file is missing or no YAML mapping, or includes itself.
    """
    file = found(path)
    return expand(_told(read_yaml(file), file.parent), file.parent, filled_in or {}, (file.resolve(),))


def expand(
    values: Mapping[str, Any],
    folder: Path,
    filled_in: Mapping[str, Iterable[str]],
    inside: tuple[Path, ...] = (),
    section: str | None = None,
) -> dict[str, Any]:
    """Values with those of the files that they include.

    Args:
        values: that may have the key `include`, at any depth.
        folder: that relative includes begin in.
        filled_in: see `read`.
        inside: files that these values come from, the outermost first.
        section: that the values are of; None for a whole file.

    Raises:
        UserError: a file is missing or no YAML mapping, or includes itself.
    """
    own = dict(values)
    wanted = own.pop(INCLUDE, [])
    made: dict[str, Any] = {}
    for name in [wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list) else [wanted]:
        if not isinstance(name, str):
            raise UserError(f"{INCLUDE}: expected a file or a preset's name, found {name!r}")
        file = found(name, name.folder if isinstance(name, _Text) else folder)
        if file.resolve() in inside:
            raise UserError(f"{file}: includes itself, by way of {', '.join(path.name for path in inside)}")
        told = expand(_told(read_yaml(file), file.parent), file.parent, filled_in, (*inside, file.resolve()), section)
        passed_over = set(filled_in.get(section, ())) if section is not None else set()
        made = _over(made, {key: value for key, value in told.items() if key not in passed_over})
    for key, value in own.items():
        if isinstance(value, dict):
            below = expand(value, folder, filled_in, inside, str(key) if section is None else f"{section}.{key}")
            own[key] = below
    return _over(made, own)


def resolved(values: dict[str, Any], named: Callable[[dict[str, Any]], Iterable[Named]]) -> dict[str, Any]:
    """Values whose relative paths lead from the working folder.

    Args:
        values: as `read` gives them.
        named: tells which of the values name files and folders.
    """
    for each in list(named(values)):
        text = each.value
        if isinstance(text, _Text) and "://" not in text and (path := text.folder / text).exists():
            section: Any = values
            for key in each.keys[:-1]:
                section = section[key]
            last = each.keys[-1]
            if isinstance(section[last], dict):  # a protocol by its fields
                section, last = section[last], "preset"
            section[last] = str(path)
    plain: dict[str, Any] = _plain(values)
    return plain


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `above` in the place of those of `below`, key by key."""
    made = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(made.get(key), dict)
        made[key] = _over(made[key], value) if both else value
    return made


def _told(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        text = _Text(value)
        text.folder = folder
        return text
    if isinstance(value, dict):
        return {key: _told(each, folder) for key, each in value.items()}
    return [_told(each, folder) for each in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value
