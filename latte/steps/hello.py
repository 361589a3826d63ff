"""The hello step: a pod with the image, the account and the secret of all others reaches the bucket and goes again."""

import time
import uuid

from pydantic import Field

from latte import storage
from latte.config import Config, Root
from latte.errors import StorageError
from latte.storage import manifest


class HelloConfig(Config):
    """Settings of the step: the root to say hello in."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")


def run(config: HelloConfig) -> manifest.Manifest:
    """Write, list, read and delete one small object under the root, which is left as it was.

    Raises:
        UserError: wrong credentials, no such bucket, or no right to one of these.
        StorageError: the store does not answer, or does not give back what was written.
    """
    started = time.monotonic()
    folder = storage.join(config.root, "hello", uuid.uuid4().hex[:16])
    greeting = f"hello from {folder}".encode()
    ref = storage.write_bytes(storage.join(folder, "hello.txt"), greeting)
    try:
        if storage.list_uris(folder) != [ref.uri]:
            raise StorageError(f"{folder}: the store does not list what was written there")
        storage.read_recorded(ref.uri, ref.sha256)
    finally:
        storage.delete(ref.uri)
    return manifest.Manifest(
        kind="hello",
        name="hello",
        uri=config.root,
        fingerprint=manifest.fingerprint("hello", config.root),
        counts={"bytes_written": ref.bytes},
        metrics={"seconds": round(time.monotonic() - started, 3)},
    )
