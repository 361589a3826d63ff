"""Text embeddings of captions, made when a dataset is encoded: each distinct caption once, in shards like the latents.

They lie under the place of the latents, by what makes them:

    text/<fingerprint of text encoder, tokenizer and stored type>/<fingerprint of its captions>.safetensors (+ record)

The embedding of the empty caption is always among them: Latte's published code drops a condition by putting the empty
text in its place (Vchitect/Latte, models/clip.py, TextEmbedder.token_drop), and guidance uses the same.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latte import finite, owners, storage
from latte.checkpoints.store import safetensors_header
from latte.data.entries import Catalog
from latte.data.latents import digests_of
from latte.errors import LatteError, UserError
from latte.models.configs import TEXT_SHAPE
from latte.networks import TextSource, embedder
from latte.progress import progress
from latte.storage import manifest

EMPTY = ""
_BATCH = 16
# 242 MB in float16.
_PER_SHARD = 2048
_TENSOR = "embeddings"


@dataclass(frozen=True)
class CaptionShard:
    """Captions whose embeddings one shard is to hold, and its name."""

    name: str
    captions: list[str]


@dataclass(frozen=True)
class Embedded:
    """The shards of a place by name; where each caption's embedding lies, by the caption's digest.

    A place is shard, offset in bytes and digest of the embedding; versions before kept no such digest, so it is None.
    """

    shards: dict[str, manifest.Shard]
    known: dict[str, tuple[str, int, str | None]]

    def lacks(self, captions: Iterable[str]) -> list[str]:
        """Those of the captions that are not embedded yet."""
        return [caption for caption in captions if _digest(caption) not in self.known]

    def find(self, caption: str) -> tuple[str, int, str | None]:
        """Shard, offset and digest of a caption's embedding.

        Raises:
            LatteError: it is not embedded yet.
        """
        found = self.known.get(_digest(caption))
        if found is None:
            raise LatteError(f"encode: the caption {caption[:40]!r} is not embedded yet; run again")
        return found


def text_place(place: str, text: TextSource, dtype: str) -> str:
    """URI of the embeddings that this text encoder makes for the latents of `place`."""
    return storage.join(place, "text", manifest.fingerprint("text", text.digest, dtype)[:16])


def distinct(catalog: Catalog) -> list[str]:
    """The empty caption, then every caption of a dataset once, in the order of the videos."""
    return list(dict.fromkeys([EMPTY, *(entry.caption for entry in catalog.entries if entry.caption is not None)]))


def published(place: str) -> Embedded:
    """Read the records of a place; a record whose object is gone or has another size does not count.

    Raises:
        StorageError: the store does not answer.
    """
    shards: dict[str, manifest.Shard] = {}
    known: dict[str, tuple[str, int, str | None]] = {}
    row_bytes = {dtype: int(np.prod(TEXT_SHAPE)) * np.dtype(dtype).itemsize for dtype in ("float16", "float32")}
    for shard, record in manifest.read_records(place):
        name = manifest.shard_name(shard.uri)
        shards[name] = shard
        step = row_bytes[record["dtype"]]
        rows = zip(record["captions"], record.get("digests") or itertools.repeat(None), strict=False)
        known |= {caption: (name, record["offset"] + row * step, own) for row, (caption, own) in enumerate(rows)}
    return Embedded(shards, known)


def plan(captions: Sequence[str], num_tasks: int) -> list[CaptionShard]:
    """Group captions into shards, smaller ones where there would be fewer of them than tasks."""
    size = max(_BATCH, min(_PER_SHARD, -(-len(captions) // num_tasks)))
    groups = [list(captions[start : start + size]) for start in range(0, len(captions), size)]
    return [CaptionShard(manifest.fingerprint("captions", group)[:16], group) for group in groups]


def shard_uri(place: str, shard: CaptionShard) -> str:
    """URI of a shard of embeddings."""
    return storage.join(place, shard.name + manifest.SHARD_ENDING)


def embed_all(shards: Sequence[CaptionShard], place: str, text: TextSource, dtype: str) -> None:
    """Embed and publish shards in order, in batches of one shape.

    Raises:
        UserError: the weights or the tokenizer are not what their files say, or an embedding is not finite in `dtype`.
        StorageError: the store stayed away for too long, or the disk is full.
    """
    from latte import device

    device.setup()
    embed = embedder(text)
    total = sum(len(shard.captions) for shard in shards)
    with progress(total=total, desc="embed captions", unit="caption") as bar:
        for shard in shards:
            _publish(shard, shard_uri(place, shard), embed, dtype, bar.update)


def _publish(
    shard: CaptionShard,
    uri: str,
    embed: Callable[[list[str]], np.ndarray],
    dtype: str,
    on_done: Callable[[int], object],
) -> None:
    header = safetensors_header({_TENSOR: ((len(shard.captions), *TEXT_SHAPE), np.dtype(dtype))}, uri)
    with owners.Folder("text") as folder:
        path = Path(folder, "shard.safetensors")
        rows_digests: list[str] = []
        with path.open("wb") as file:
            file.write(header)
            for start in itertools.count(0, _BATCH):
                batch = shard.captions[start : start + _BATCH]
                if not batch:
                    break
                rows = embed(batch + [EMPTY] * (_BATCH - len(batch)))[: len(batch)]  # (n, 77, 768)
                stored = finite.to_stored(rows, dtype)
                if bad := finite.bad_rows(stored):
                    cause = f"beyond the range of {dtype}; set dtype=float32"
                    raise UserError(
                        f"text_encoder: the embedding of the caption {batch[bad[0]][:40]!r} is "
                        + ("not finite: these weights cannot be used" if finite.blemish(rows) else cause)
                    )
                file.write(stored.tobytes())
                rows_digests += [digests_of(row.tobytes(), row.nbytes) for row in stored]
                on_done(len(batch))
        known = [_digest(caption) for caption in shard.captions]
        facts = {"captions": known, "digests": rows_digests, "offset": len(header), "dtype": dtype}
        manifest.publish_shard(path, uri, len(known), **facts)


def _digest(caption: str) -> str:
    return storage.sha256_bytes(caption.encode())
