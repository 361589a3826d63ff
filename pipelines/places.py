"""Files and folders that settings name: by which keys, and what a reader finds at each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latte import storage
from latte.config import Config, FileKey
from latte.errors import UserError
from latte.metrics import protocol as protocols
from latte.steps.convert import RANDOM


@dataclass(frozen=True)
class Named:
    """A file or a folder that a key of the settings names.

    Attributes:
        keys: the way to the key, section first; of one of a list its number comes last.
        kind: what lies there; see `latte.config.FileKey`.
        value: path or URI.
    """

    keys: tuple[str | int, ...]
    kind: str
    value: str

    @property
    def key(self) -> str:
        """The key as a person writes it, for example encode.dataset.videos."""
        return ".".join(map(str, self.keys))

    @property
    def in_bucket(self) -> bool:
        """Whether it lies in a bucket."""
        return storage.is_shared(self.value)

    def path(self) -> Path:
        """The path on this machine, which need not be there; relative ones begin in the working folder.

        Raises:
            UserError: it names something else.
        """
        try:
            return storage.local_path(self.value)
        except UserError as error:
            raise UserError(f"{self.key}: {error}") from None


def of(cls: type[Config], values: Mapping[str, Any], above: Sequence[str | int] = ()) -> Iterator[Named]:
    """Files that the given keys of a config name.

    Args:
        cls: the config's class.
        values: its keys.
        above: the way to the config.
    """
    for name, value in values.items():
        field = cls.model_fields.get(name)
        if field is None:
            continue
        keys = (*above, name)
        kind = next((mark.kind for mark in field.metadata if isinstance(mark, FileKey)), None)
        if kind == "protocol":
            preset = value.get("preset") if isinstance(value, dict) else value
            if isinstance(preset, str) and protocols.is_file(preset):
                yield Named(keys, kind, preset)
        elif kind is not None and isinstance(value, list):
            yield from (Named((*keys, number), kind, str(each)) for number, each in enumerate(value))
        elif kind is not None and isinstance(value, str) and value and (kind, value) != ("weights", RANDOM):
            yield Named(keys, kind, value)
        elif isinstance(value, dict) and isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from of(field.annotation, value, keys)


def check_here(named: Named, source: str) -> None:
    """Whether what is to be read on this machine is there: now, not ten minutes into a run.

    Raises:
        UserError: it is not.
    """
    if named.kind == "target" or named.in_bucket:
        return
    if not named.path().exists():
        raise UserError(f"{source}: {named.key}: {named.value}: no such file or folder")
