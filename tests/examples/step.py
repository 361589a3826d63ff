"""A step: counts the characters of a text."""

from pydantic import Field

from latte import storage
from latte.config import Config, Root
from latte.storage import manifest


class CountConfig(Config):
    """The text."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the count")
    text: str = Field(default="latte", description="the characters to count")


def run(config: CountConfig) -> manifest.Manifest:
    """Count, and return the manifest of the count."""
    fingerprint = manifest.fingerprint("count", config.text)
    uri = storage.join(config.root, "reports", config.name, fingerprint[:16])
    counts = {"characters": len(config.text)}
    return manifest.finish(
        manifest.Manifest(kind="report", name=config.name, uri=uri, fingerprint=fingerprint, counts=counts), config.root
    )
