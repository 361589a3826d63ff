"""The promoted checkpoint: looked up once at the start of a run, so that every step of the run means the same one."""

from pydantic import Field

from latte import storage, uris
from latte.config import Config, Root
from latte.errors import UserError
from latte.facts import PromotedMetrics
from latte.sampling.sources import read_checkpoint
from latte.storage import manifest, registry


class PromotedConfig(Config):
    """Settings of the look: whose promoted checkpoint is meant."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the model in the registry")
    checkpoint: str = Field(
        default="", description="manifest of a checkpoint or of converted Latte weights; empty: the promoted one"
    )


def look_up(config: PromotedConfig) -> manifest.Manifest:
    """Start of further training: metrics "checkpoint" (a manifest's URI, "" before the first promotion), "number".

    Raises:
        UserError: the pointer's content is not an entry of the registry.
    """
    current, _ = registry.read_current(config.root, config.name)
    uri = registry.place(config.root, config.name)
    pointer = uris.relative(current.model_dump() if current is not None else None, uri, config.root)
    return manifest.Manifest(
        kind="promoted",
        name=config.name,
        uri=uri,
        fingerprint=manifest.fingerprint("promoted", pointer),
        metrics=PromotedMetrics(
            number=current.number if current is not None else 0,
            checkpoint=current.checkpoint if current is not None else "",
        ).said(),
    )


def fetch(config: PromotedConfig) -> manifest.Manifest:
    """The manifest of the checkpoint that is meant.

    Raises:
        UserError: there is no such manifest, or nothing is promoted under this name.
    """
    uri = config.checkpoint or PromotedMetrics.of(look_up(config)).checkpoint
    if not uri:
        pointer = storage.join(registry.place(config.root, config.name), "current.json")
        raise UserError(f"{pointer}: nothing is promoted under {config.name} yet; promote first, or name a checkpoint")
    return read_checkpoint(uri)
