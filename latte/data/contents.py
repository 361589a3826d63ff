"""Whether a video is still the one that a catalog has listed."""

from collections.abc import Callable
from pathlib import Path

from latte import storage
from latte.errors import UserError
from latte.storage import s3
from latte.video.decoder_process import frame_names
from latte.video.digests import frames_digest, s3_digest

# Digest of one file by its URI.
_DigestOf = Callable[[str], str]


def check(uri: str, digest: str) -> None:
    """Compare a video with the digest of its content that a catalog has.

    The digest may have been taken where the video lay then: a file by its SHA-256, an object in S3 by its ETag. Copied
    from one to the other, an ETag is compared with the MD5 that most stores make it from.

    Args:
        uri: the file, or the folder of its frames.
        digest: `latte.data.catalog.CatalogEntry.digest`.

    Raises:
        UserError: there is no such video, or it has another content.
        StorageError: the store does not answer.
    """
    files = _files(uri)
    if not files:
        raise UserError(f"{uri}: no such video")
    ways: list[_DigestOf] = [_by_etag, _by_sha256] if storage.etags_tell_content(uri) else [_by_sha256, _by_md5]
    folder = files != [uri]
    for of_file in ways:
        digests = [of_file(file) for file in files]
        if digest == (frames_digest(digests) if folder else digests[0]):
            return
    raise UserError(
        f"{uri}: not the video that was encoded, its content is another; put that one back, or encode the dataset again"
    )


def is_there(uri: str) -> bool:
    """Whether there is a file, or a folder of frames."""
    return bool(_files(uri))


def _files(uri: str) -> list[str]:
    path = storage.path(uri)
    if path is not None:
        if not path.is_dir():
            return [uri] if path.is_file() else []
        return [(path / name).as_uri() for name in frame_names(child.name for child in path.iterdir())]
    if storage.exists(uri):
        return [uri]
    below = [each[len(uri) + 1 :] for each in storage.list_uris(uri)]
    return [f"{uri}/{name}" for name in frame_names(name for name in below if "/" not in name)]


def _by_etag(uri: str) -> str:
    info = storage.stat(uri)
    return "" if info is None else s3_digest(info.etag, info.bytes)


def _by_sha256(uri: str) -> str:
    with storage.as_local_file(uri) as path:
        return storage.sha256_file(path)


def _by_md5(uri: str) -> str:
    with Path(storage.local_path(uri)).open("rb") as file:
        known = s3.digests(file)
    return s3_digest(known.etag, known.bytes)
