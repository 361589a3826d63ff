"""Which checkpoint of a model is the promoted one: one small object, moved by compare-and-swap, with all its history.

    registry/<model>/current.json                the pointer: the promoted checkpoint with its score
    registry/<model>/history/00000001.json       what the pointer said before, entry by entry
    registry/<model>/versions/<fingerprint>/     a copy of the promoted weights, which no training run ever prunes

The entry that is about to be replaced goes into the history before the pointer moves. So at every moment, whoever is
killed, the pointer is whole and history and pointer together are all entries from 1 on without a gap.
"""

import uuid
from datetime import UTC, datetime

import pydantic

from latte import manifest, s3, storage
from latte.config import Config
from latte.errors import UserError

_NO_CONDITIONS = (
    "this object store does not keep the conditions of a write (If-None-Match, If-Match), so two promotions could "
    "overwrite each other; keep the registry in a store that does, for example SeaweedFS, MinIO or AWS S3"
)


class Entry(Config):
    """One promotion.

    Attributes:
        number: 1 for a model's first promotion, then one more each time.
        model: name in the registry.
        checkpoint: manifest of the registry's copy of the weights; `latte sample checkpoint=…` takes it.
        weights_sha256: of the promoted EMA weights.
        step: training step of these weights.
        score: manifest of the score that passed the gate.
        videos: manifest of the video set that was scored.
        metric: name of the score's value, for example "fvd".
        value: the score; lower is better.
        protocol_digest: of the scoring protocol.
        detector_sha256: of the detector's weights.
        real: digest of the real side of the score (`latte.score_sides.real_digest`).
        replaces: number of the entry that a rollback of this one goes back to; None for the first.
        rolled_back: number of the entry that a rollback took away to make this one.
        promoted_at: time in UTC, ISO 8601.
    """

    model_config = pydantic.ConfigDict(allow_inf_nan=True)  # a measured score; the gate refuses such a one

    number: int
    model: str
    checkpoint: str
    weights_sha256: str
    step: int
    score: str
    videos: str
    metric: str
    value: float
    protocol_digest: str
    detector_sha256: str
    real: str
    replaces: int | None = None
    rolled_back: int | None = None
    promoted_at: str = ""


def place(root: str, model: str) -> str:
    """The model's folder in the registry."""
    return storage.join(root, "registry", model)


def read_current(root: str, model: str) -> tuple[Entry | None, str | None]:
    """The promoted entry and the etag that `replace` needs; (None, None) before the first promotion.

    Raises:
        UserError: the pointer's content is not an entry.
    """
    uri = storage.join(place(root, model), "current.json")
    # The etag first: when the pointer moves in between, `replace` is refused instead of taking away what it never saw.
    info = storage.stat(uri)
    if info is None:
        return None, None
    return _read(uri), info.etag


def history(root: str, model: str) -> list[Entry]:
    """Every entry that the pointer has left, oldest first."""
    found = [_read(uri) for uri in storage.list_uris(storage.join(place(root, model), "history"))]
    # A promotion that was killed or came second has written down an entry that is the current one still.
    current, _ = read_current(root, model)
    return [entry for entry in found if current is not None and entry.number < current.number]


def withdrawn(root: str, model: str) -> dict[str, int]:
    """SHA-256 of the weights that a rollback has taken away, and the number of their entry."""
    current, _ = read_current(root, model)
    entries = {entry.number: entry for entry in history(root, model)}
    taken = [entry.rolled_back for entry in [*entries.values(), current] if entry is not None and entry.rolled_back]
    return {entries[number].weights_sha256: number for number in taken if number in entries}


def replace(root: str, entry: Entry, current: Entry | None, etag: str | None) -> Entry | None:
    """Move the pointer from `current` to `entry`.

    Returns:
        The entry with its number and time, or None where somebody else has moved the pointer since `current` was read.
    """
    folder = place(root, entry.model)
    number = 1
    if current is not None:
        number = current.number + 1
        # Whoever writes this writes the same bytes: the current entry as it was read.
        uri = storage.join(folder, "history", f"{current.number:08d}.json")
        storage.write_json(uri, current.model_dump(), root)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    stamped = entry.model_copy(update={"number": number, "promoted_at": now})
    uri = storage.join(folder, "current.json")
    return stamped if storage.swap(uri, storage.json_bytes(uri, stamped.model_dump(), root), etag) else None


def check_conditional_writes(root: str, model: str) -> None:
    """Try conditional writes on a small object of our own: stores that lack them mostly ignore the condition.

    Raises:
        UserError: a write went through, or was refused, against its condition.
    """
    uri = storage.join(place(root, model), f"probe-{uuid.uuid4().hex}")
    try:
        storage.write_bytes(uri, b"first")
        info = storage.stat(uri)
        kept = (
            info is not None
            and not storage.swap(uri, b"second", None)
            and storage.read_bytes(uri) == b"first"
            and storage.swap(uri, b"third", info.etag)
            and not storage.swap(uri, b"fourth", info.etag)
            and storage.read_bytes(uri) == b"third"
        )
    except s3.UnsupportedError:
        kept = False
    finally:
        storage.delete(uri)
    if not kept:
        raise UserError(f"{root}: {_NO_CONDITIONS}")


def keep_checkpoint(root: str, model: str, checkpoint: manifest.Manifest, weights: manifest.Shard) -> manifest.Manifest:
    """Copy the weights into the registry, where no pruning and no longer training run takes them away.

    Returns:
        The manifest of the copy: kind "checkpoint", with the EMA weights of one step.
    """
    fingerprint = manifest.fingerprint("version", checkpoint.fingerprint, weights.sha256)
    uri = storage.join(place(root, model), "versions", fingerprint[:16])
    done = manifest.find(uri, "checkpoint")
    if done is not None:
        return done
    step = step_of(weights)
    target = storage.join(uri, "checkpoints", f"step-{step:08d}", "ema.safetensors")
    shard = manifest.published(target)
    if shard is None:
        with storage.as_local_file(weights.uri, weights.sha256) as path:
            shard = manifest.publish_shard(path, target, items=weights.items)
    return manifest.finish(
        manifest.Manifest(
            kind="checkpoint",
            name=model,
            uri=uri,
            fingerprint=fingerprint,
            shards=[shard],
            counts={**checkpoint.counts, "steps": step},
            inputs={**checkpoint.inputs, "checkpoint": checkpoint.fingerprint},
            config=checkpoint.config,
            metrics={**checkpoint.metrics, "step": step},
        ),
        root,
    )


def step_of(weights: manifest.Shard) -> int:
    """The training step in the name of a checkpoint's object, …/step-00001000/ema.safetensors."""
    return int(weights.uri.rsplit("/", 2)[-2].removeprefix("step-"))


def _read(uri: str) -> Entry:
    value = storage.read_json(uri)
    try:
        return Entry.model_validate(value)
    except pydantic.ValidationError as error:
        raise UserError(f"{uri}: not an entry of the registry: {error.errors()[0]['msg']}") from None
