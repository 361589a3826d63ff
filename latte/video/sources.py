"""Videos as local files: where one lies, and whether it is still the one that was listed."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latte import owners, storage
from latte.errors import NotThereError, UserError
from latte.video.decoder_process import frame_names
from latte.video.digests import frames_digest, s3_digest
from latte.video.views import View


@dataclass(frozen=True)
class VideoSource:
    """A video to decode.

    Attributes:
        uri: a file or a folder of frames.
        digest: of its content, as the catalog has it, where it is to be checked.
        mirrored: left and right exchanged.
        by_etag: digests are those of `latte.data.catalog.s3_digest`, not SHA-256.
        view: the part of it that is wanted; None: all of it.
    """

    uri: str
    digest: str | None = None
    mirrored: bool = False
    by_etag: bool = False
    view: View | None = None


class PassingError(Exception):
    """The file is not there, not the one that the catalog listed, or cannot be read."""


@contextlib.contextmanager
def as_local(source: VideoSource) -> Iterator[Path]:
    """The video as a local file or folder of frames, checked."""
    path = storage.path(source.uri)
    if path is not None:
        if source.digest is not None:
            _check(source, _local_digest(path))
        yield path
        return
    with owners.Folder("video") as folder:
        try:
            local, digest = _download(source, Path(folder))
        except NotThereError as error:
            if source.digest is None:
                raise UserError(f"{source.uri}: no such video") from None
            raise PassingError("it vanished after it was listed") from error
        if source.digest is not None:
            _check(source, digest)
        yield local


def _check(source: VideoSource, digest: str) -> None:
    if source.digest != digest:
        raise PassingError("its content changed after it was listed")


def _local_digest(path: Path) -> str:
    try:
        if path.is_dir():
            return frames_digest([storage.sha256_file(path / name) for name in frame_names(os.listdir(path))])
        return storage.sha256_file(path)
    except FileNotFoundError:
        raise PassingError("it vanished after it was listed") from None
    except OSError as error:
        raise PassingError(f"cannot be read: {error.strerror}") from None


def _download(source: VideoSource, folder: Path) -> tuple[Path, str]:
    """The video and its digest; what is asked after the download tells of the content that was downloaded."""

    def fetch(uri: str, path: Path) -> str:
        storage.download(uri, path)
        if not source.by_etag:
            return storage.sha256_file(path) if source.digest is not None else ""
        info = storage.stat(uri)
        return "" if info is None else s3_digest(info.etag, info.bytes)

    if storage.exists(source.uri):
        return folder / "video", fetch(source.uri, folder / "video")
    below = [uri[len(source.uri) + 1 :] for uri in storage.list_uris(source.uri)]
    names = frame_names(name for name in below if "/" not in name)
    if not names:
        raise NotThereError(source.uri)
    frames = folder / "frames"
    return frames, frames_digest([fetch(f"{source.uri}/{name}", frames / name) for name in names])
