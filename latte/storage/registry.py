"""The promoted checkpoint of a model: one small object, moved by compare-and-swap, with all its history.

    registry/<model>/current.json                the pointer: the promoted checkpoint with its score
    registry/<model>/history/00000001.json       what the pointer said before, entry by entry
    registry/<model>/versions/<fingerprint>/     a copy of the promoted weights, which no training run ever prunes

The entry that is about to be replaced goes into the history before the pointer moves. So at every moment, whoever is
killed, the pointer is whole and history and pointer together are all entries from 1 on without a gap.

Every entry carries a word of its own, so that whoever has moved the pointer finds out that it was they: an answer may
be lost, a request may arrive twice. What is in the history is never overwritten, and a pointer that is gone though
there is a history is for a person to put back.
"""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import pydantic

from latte import storage
from latte.config import Config
from latte.errors import DamagedError, NotThereError, StorageError, UserError
from latte.storage import manifest

_NO_CONDITIONS = (
    "this object store does not keep the conditions of a write (If-None-Match, If-Match), so two promotions could "
    "overwrite each other; keep the registry in a store that does, for example SeaweedFS, MinIO or AWS S3"
)


class HistoryEntry(Config):
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
        interval_low: lower end of the score's interval; None in entries of versions before.
        interval_high: upper end of it.
        protocol_digest: of the scoring protocol.
        detector_sha256: of the detector's weights.
        real: digest of the real side of the score (`latte.metrics.score_sides.real_digest`).
        replaces: number of the entry that a rollback of this one goes back to; None for the first.
        rolled_back: number of the entry that a rollback took away to make this one.
        promoted_at: time in UTC, ISO 8601.
        nonce: a word that no other entry has; empty in entries of versions before.
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
    interval_low: float | None = None
    interval_high: float | None = None
    protocol_digest: str
    detector_sha256: str
    real: str
    replaces: int | None = None
    rolled_back: int | None = None
    promoted_at: str = ""
    nonce: str = ""


def place(root: str, model: str) -> str:
    """The model's folder in the registry."""
    return storage.join(root, "registry", model)


def read_current(root: str, model: str) -> tuple[HistoryEntry | None, str | None]:
    """The promoted entry and the etag that `replace` needs; (None, None) before the first promotion.

    Raises:
        UserError: the pointer's content is not an entry, or it is gone although there is a history.
        DamagedError: the pointer does not have the digest that it carries.
    """
    uri = storage.join(place(root, model), "current.json")
    # The etag first: when the pointer moves in between, `replace` is refused instead of taking away what it never saw.
    info = storage.stat(uri)
    if info is None:
        left = _left(root, model)
        if left and not storage.exists(uri):  # a first and a second promotion may have come in between
            raise UserError(
                f"{uri}: gone, but there is a history: the promoted model is not known; put it back by "
                f"`latte verify {root} --repair`, or copy {left[-1]} to it, which is the entry before"
            )
        return (None, None) if not left else read_current(root, model)
    return _read(uri), info.etag


def history(root: str, model: str) -> list[HistoryEntry]:
    """Every entry that the pointer has left, oldest first."""
    found = [_read(uri) for uri in _left(root, model)]
    # A promotion that was killed or came second has written down an entry that is the current one still.
    current, _ = read_current(root, model)
    return [entry for entry in found if current is not None and entry.number < current.number]


def withdrawn(root: str, model: str) -> dict[str, int]:
    """SHA-256 of the weights that a rollback has taken away, and the number of their entry."""
    current, _ = read_current(root, model)
    entries = {entry.number: entry for entry in history(root, model)}
    taken = [entry.rolled_back for entry in [*entries.values(), current] if entry is not None and entry.rolled_back]
    return {entries[number].weights_sha256: number for number in taken if number in entries}


def replace(root: str, entry: HistoryEntry, current: HistoryEntry | None, etag: str | None) -> HistoryEntry | None:
    """Move the pointer from `current` to `entry`, and look whether it has moved.

    Returns:
        The entry with its number, time and nonce, or None where somebody else has moved the pointer since `current`
        was read.

    Raises:
        UserError: the history has another entry in the place of `current`.
        StorageError: the store stayed away for too long; whether the pointer has moved is not known.
    """
    folder = place(root, entry.model)
    number = 1
    if current is not None:
        number = current.number + 1
        _keep_in_history(root, current)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    stamped = entry.model_copy(update={"number": number, "promoted_at": now, "nonce": uuid.uuid4().hex})
    uri = storage.join(folder, "current.json")
    # What the swap says is not what counts: a refusal may answer the second of two requests, the first of which went
    # through unheard, and a store has said yes and kept nothing.
    try:
        storage.swap(uri, storage.json_bytes(uri, stamped.model_dump(), root), etag)
    except StorageError:
        if not _is_kept(root, stamped):  # the answer alone may be what did not come
            raise
    return stamped if _is_kept(root, stamped) else None


def _is_kept(root: str, entry: HistoryEntry) -> bool:
    """Whether an entry is the pointer's, or was before others moved it on."""
    now, _ = read_current(root, entry.model)
    if now is not None and now.number > entry.number:
        now = _read(_history_uri(root, entry.model, entry.number))
    return now is not None and now.nonce == entry.nonce


def _keep_in_history(root: str, current: HistoryEntry) -> None:
    """Write down the entry that the pointer is about to leave; whoever writes it writes the same."""
    uri = _history_uri(root, current.model, current.number)
    data = storage.json_bytes(uri, current.model_dump(), root)
    if not storage.exists(uri) and storage.swap(uri, data, None):
        return
    if _read(uri) != current:
        raise UserError(
            f"{uri}: another entry {current.number} than the pointer's; nothing is overwritten: move away the one of "
            "the two that was not promoted"
        )


def _left(root: str, model: str) -> list[str]:
    """URIs of the history, oldest first."""
    try:
        return storage.list_uris(storage.join(place(root, model), "history"))
    except NotThereError:  # there are stores that know no empty folder
        return []


def _history_uri(root: str, model: str, number: int) -> str:
    return storage.join(place(root, model), "history", f"{number:08d}.json")


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
    except storage.UnsupportedError:
        kept = False
    finally:
        storage.delete(uri)
    if not kept:
        raise UserError(f"{root}: {_NO_CONDITIONS}")


def keep_checkpoint(root: str, model: str, checkpoint: manifest.Manifest, weights: manifest.Shard) -> manifest.Manifest:
    """Copy the weights into the registry, where no pruning and no longer training run takes them away.

    A copy that is there already is read and, where it is damaged, made again.

    Returns:
        The manifest of the copy: kind "checkpoint", with the EMA weights of one step.

    Raises:
        StorageError: the weights are damaged, or the copy cannot be read back.
    """
    fingerprint = manifest.fingerprint("version", checkpoint.fingerprint, weights.sha256)
    uri = storage.join(place(root, model), "versions", fingerprint[:16])
    done = manifest.find(uri, "checkpoint")
    if done is not None and _is_sound(done.shards):
        return done
    step = step_of(weights)
    target = storage.join(uri, "checkpoints", f"step-{step:08d}", "ema.safetensors")
    shard = manifest.published(target)
    if shard is None or not _is_sound([shard]):
        with storage.as_local_file(weights.uri, weights.sha256) as path:
            shard = manifest.publish_shard(path, target, items=weights.items)
        check_version([shard])
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


def check_version(shards: Sequence[manifest.Shard]) -> None:
    """Read promoted weights and compare them with their SHA-256.

    Raises:
        DamagedError: they have another one.
        UserError: they are gone.
    """
    for shard in shards:
        with storage.as_local_file(shard.uri, shard.sha256):
            pass


def _is_sound(shards: Sequence[manifest.Shard]) -> bool:
    try:
        check_version(shards)
    except (DamagedError, NotThereError):
        return False
    return True


def step_of(weights: manifest.Shard) -> int:
    """The training step in the name of a checkpoint's object, …/step-00001000/ema.safetensors."""
    return int(weights.uri.rsplit("/", 2)[-2].removeprefix("step-"))


def _read(uri: str) -> HistoryEntry:
    value = storage.read_json(uri)
    try:
        return HistoryEntry.model_validate(value)
    except pydantic.ValidationError as error:
        raise UserError(f"{uri}: not an entry of the registry: {error.errors()[0]['msg']}") from None
