"""The functions that every kind of store has, and what they give: local.py is a folder, bucket.py is S3.

Each of the two is a module with all of these functions; `latte.storage` takes the one that a URI says.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from latte.errors import StorageError


class UnsupportedError(StorageError):
    """The store answered that it does not know this kind of request (501)."""


@dataclass(frozen=True)
class Ref:
    """An object and what it must contain."""

    uri: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ObjectStat:
    """Facts about an object that need no reading of it; `etag` serves `swap` only.

    Attributes:
        bytes: size.
        etag: changes with the content; "" where a store tells none.
        modified_s: when it was written, in seconds since 1970 (S3 tells whole ones); 0 where a store does not tell.
    """

    bytes: int
    etag: str
    modified_s: float


# Is told how many more bytes are on their way.
Sent = Callable[[int], object]


class Backend(Protocol):
    """A kind of store: objects by URI, each there whole or not at all.

    What asks the store raises UserError for what the user can mend (a URI that cannot be, no permission), StorageError
    where the store does not answer, and NotThereError where an object is read that is not there.
    """

    # Whether equal contents have equal etags, so that an object need not be read to be told from another.
    ETAGS_TELL_CONTENT: bool
    # Whether other machines reach an object by the same URI.
    IS_SHARED: bool

    def path(self, uri: str) -> Path | None:
        """Path under which programs of this machine open the object; None where they need a copy."""

    def name_of(self, text: str) -> str:
        """Part of a URI as the name that the store has for it."""

    def stat(self, uri: str) -> ObjectStat | None:
        """Size and etag of an object, or None when there is none."""

    def listed(self, prefix: str) -> dict[str, ObjectStat]:
        """Size and etag of every object below `prefix`, which ends with a slash, by URI."""

    def is_prefix(self, prefix: str) -> bool:
        """Whether there is any object below `prefix`, which ends with a slash."""

    def read(self, uri: str, start: int, length: int | None) -> bytes:
        """At most `length` bytes from `start`; all that follow for None."""

    def fetch(self, uri: str, path: Path) -> None:
        """Copy an object to a local file."""

    def as_file(self, uri: str) -> AbstractContextManager[Path]:
        """The object as a local file: itself or a temporary copy."""

    def write(self, uri: str, data: bytes) -> Ref:
        """Put an object, replacing what is there."""

    def upload(self, path: Path, uri: str, sent: Sent | None = None, like: str | None = None) -> Ref:
        """Copy a local file to an object, replacing what is there; `latte.storage.upload` has the other arguments."""

    def upload_new(self, path: Path, uri: str) -> bool:
        """Copy a local file to an object only if there is none; whether it was."""

    def writing(self, uri: str) -> AbstractContextManager[Path]:
        """A local file to fill, which becomes the object when the block ends well."""

    def swap(self, uri: str, data: bytes, etag: str | None) -> bool:
        """Put an object only if there is one of this etag, or none for None; whether it was."""

    def delete(self, uri: str) -> None:
        """Remove an object; removing what is not there is no error."""

    def clear_unfinished(self, prefix: str, all_of_them: bool) -> None:
        """Give up uploads below `prefix` that nobody will finish: those of a day ago, or all of them."""

    def is_at_work(self, prefix: str) -> bool:
        """Whether something below `prefix` is being written: by a process that lives, or within the last day."""

    def forget(self, prefix: str) -> None:
        """Clear what is left below `prefix` when its objects are gone: empty folders, what nobody will finish."""
