"""Places of what steps make: where it lies, what it is keyed by, and whether it is there already.

Under a root a place is <folder>/<name>/<fingerprint>; or features/<fingerprint>, texts/<fingerprint>,
registry/<model>, launched/<digest>, uploads/<digest>.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from latte import storage, uris
from latte.storage import manifest

# Folder under a root: how many names lead to one of its places.
DEPTHS = {
    "weights": 3, "datasets": 3, "runs": 3, "videos": 3, "scores": 3, "reports": 3, "features": 2, "texts": 2,
    "registry": 2, "launched": 2, "uploads": 2,
}  # fmt: skip


def name_of(root: str, uri: str) -> str | None:
    """The place that a URI below a root lies in or is, as seen from the root; None for what lies in none."""
    for spelled in uris.spellings(root):
        if uri.startswith(spelled + "/"):
            names = uri.removeprefix(spelled + "/").split("/")
            depth = DEPTHS.get(names[0], len(names) + 1)
            return "/".join(names[:depth]) if len(names) >= depth and all(names[:depth]) else None
    return None


@dataclass(frozen=True)
class Place:
    """The place of one step's output.

    Attributes:
        kind: of the manifest that it has when it is done.
        uri: folder under the root.
        fingerprint: SHA-256 over what makes it.
    """

    kind: manifest.Kind
    uri: str
    fingerprint: str

    @classmethod
    def under(cls, kind: manifest.Kind, fingerprint: str, root: str, *folder: str) -> "Place":
        """The place of this fingerprint in a folder of the root."""
        return cls(kind, storage.join(root, *folder, fingerprint[:16]), fingerprint)

    @cached_property
    def found(self) -> manifest.Manifest | None:
        """The manifest of the finished place, looked up once; None where it is not whole (`manifest.find`)."""
        return manifest.find(self.uri, self.kind)

    def manifest(self, name: str, **fields: Any) -> manifest.Manifest:
        """The manifest of the place with these fields."""
        return manifest.Manifest(kind=self.kind, name=name, uri=self.uri, fingerprint=self.fingerprint, **fields)
