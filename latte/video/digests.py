"""Digests that tell the contents of videos apart."""

from collections.abc import Sequence

from latte.storage.manifest import fingerprint


def s3_digest(etag: str, size: int) -> str:
    """Digest of an object's content in S3 without reading it."""
    return fingerprint("s3", etag.strip('"'), size)


def frames_digest(digests: Sequence[str]) -> str:
    """The digest of a folder of frames, by those of its pictures in their order."""
    return fingerprint("frames", digests)
