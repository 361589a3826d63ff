"""Known facts about the videos of a dataset before any of them is encoded."""

from dataclasses import dataclass

from latte.storage.manifest import Reject, fingerprint
from latte.video.views import View


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One video of a catalog.

    Attributes:
        id: path below the dataset's folder; of one of several shots in it, that and the shot's frames.
        uri: the file, or the folder of its frames.
        digest: of the content (SHA-256 of a local file, a hash of etag and size in S3), and of the view behind it.
        label: index into the catalog's classes, or None.
        caption: text that describes it, or None.
        bytes: size of the file or of all frames.
        view: the part of it that is meant; None: all of it.
    """

    id: str
    uri: str
    digest: str
    label: int | None
    caption: str | None
    bytes: int
    view: View | None = None

    @property
    def content(self) -> str:
        """Digest of the content of the whole video."""
        return self.digest if self.view is None else self.digest.removesuffix(self.view.mark)


@dataclass(frozen=True)
class Catalog:
    """A dataset's videos by path, its classes, the files that cannot be used, and how many `limit` left out."""

    entries: list[CatalogEntry]
    classes: list[str]
    rejects: list[Reject]
    left_out: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 over contents, names, labels and captions; where the dataset lies does not matter."""
        facts = [[e.id, e.digest, e.label, e.caption] for e in self.entries]
        return fingerprint("catalog", facts, self.classes, [[r.item, r.reason] for r in self.rejects])
