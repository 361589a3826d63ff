"""Checkpoints of a training run in object storage: written in the background, committed by a record, kept by rule.

A checkpoint is the folder `checkpoints/step-00001000/` with `model.safetensors`, `ema.safetensors`,
`optimizer.safetensors` and `log.jsonl`, the loss log up to its step; `checkpoint.json`, written last, commits it. What
has no commit record does not exist. Parts are never overwritten: where one has other bytes, as a killed run with
another number of workers may leave it, the new one goes to `checkpoints/<digest>/step-00001000/`. Only who holds the
run commits and prunes (`latte.training.lease`).
"""

import contextlib
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from safetensors.numpy import load_file, save_file

from latte import owners, storage
from latte.errors import DamagedError, NotThereError, StorageError, UnreadableError, UserError
from latte.storage import manifest, publishing
from latte.training.lease import Lease, LeaseLostError

COMMIT = "checkpoint.json"
LOG, LOG_NAME = "log", "log.jsonl"
# The published log, which the newest checkpoint's is the beginning of.
METRICS = "metrics.jsonl"
PART_NAMES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", LOG_NAME)
_STEP = re.compile(r"step-\d{8}")


@dataclass(frozen=True)
class RunCheckpoint:
    """A committed checkpoint: its step, its objects by role (model, ema, optimizer) and the loop's state."""

    step: int
    uri: str
    shards: dict[str, manifest.Shard]
    state: dict[str, Any]


def publish(
    lease: Lease, step: int, parts: Mapping[str, Mapping[str, np.ndarray]], log: bytes, state: dict[str, Any]
) -> RunCheckpoint:
    """Write the parts (role: tensors by name), the log and then the commit record; equal tensors make equal bytes.

    Raises:
        LeaseLostError: somebody else holds the run; nothing was committed.
        StorageError: the store failed.
    """
    uri = _place(lease.run_uri, step)
    shards = {}
    with owners.Folder("checkpoint") as folder:
        for role, tensors in parts.items():
            path = Path(folder) / f"{role}.safetensors"
            save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
            shards[role] = _publish_part(lease, path, uri, len(tensors))
        path = Path(folder) / LOG_NAME
        path.write_bytes(log)
        shards[LOG] = _publish_part(lease, path, uri, log.count(b"\n"))
    record = {"step": step, "shards": {role: shard.model_dump() for role, shard in shards.items()}, "state": state}
    storage.write_json(storage.join(uri, COMMIT), record, root=uri, put=lease.put)
    return RunCheckpoint(step, uri, shards, state)


def _publish_part(lease: Lease, path: Path, uri: str, items: int) -> manifest.Shard:
    lease.check()
    folder, _, step = uri.rpartition("/")

    def names() -> Iterator[str]:
        yield storage.join(uri, path.name)
        yield storage.join(folder, storage.sha256_file(path)[:16], step, path.name)

    ref = publishing.publish(path, names(), _recorded(uri, path.name))
    path.unlink()
    return manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256, items=items)


def _recorded(uri: str, name: str) -> str:
    """SHA-256 that a part has by the commit record of a checkpoint, or "": damaged, it may be made again there."""
    with contextlib.suppress(UserError, DamagedError):  # no record, or none that can be read
        shards = storage.read_json(storage.join(uri, COMMIT))["shards"].values()
        return next((str(each["sha256"]) for each in shards if each["uri"] == storage.join(uri, name)), "")
    return ""


def committed(run_uri: str) -> list[RunCheckpoint]:
    """Every committed checkpoint of a run whose objects are there, oldest first.

    A commit record that cannot be read counts as not there, and is told.
    """
    records = [uri for uri in storage.list_uris(storage.join(run_uri, "checkpoints")) if uri.endswith("/" + COMMIT)]
    found = []
    for uri in records:
        try:
            record = storage.read_json(uri)
            shards = {role: manifest.Shard.model_validate(value) for role, value in record["shards"].items()}
            checkpoint = RunCheckpoint(record["step"], uri.removesuffix("/" + COMMIT), shards, record["state"])
        except (DamagedError, UnreadableError) as error:
            manifest.say_not_done(error)
            continue
        except (AttributeError, KeyError, TypeError, pydantic.ValidationError):
            manifest.say_not_done(UnreadableError(f"{uri}: does not commit a checkpoint"))
            continue
        if all(manifest.is_whole(shard) for shard in shards.values()):
            found.append(checkpoint)
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def load_part(checkpoint: RunCheckpoint, role: str) -> dict[str, np.ndarray]:
    """The tensors of one part, checksum verified.

    Raises:
        StorageError: the object is not what the commit record says.
    """
    shard = checkpoint.shards[role]
    with storage.as_local_file(shard.uri, shard.sha256) as path:
        return load_file(path)


def is_sound(checkpoint: RunCheckpoint) -> bool:
    """Whether every object of a checkpoint has its recorded SHA-256; one that has not is told. Reads all of it."""
    try:
        for shard in checkpoint.shards.values():
            with storage.as_local_file(shard.uri, shard.sha256):
                pass
    except (DamagedError, NotThereError) as error:
        what = error.what if isinstance(error, DamagedError) else str(error)
        print(f"{what}; the checkpoint of step {checkpoint.step} is passed over", file=sys.stderr)
        return False
    return True


def read_log(checkpoint: RunCheckpoint) -> bytes | None:
    """The loss log up to a checkpoint's step, checksum verified; None where an earlier version kept it elsewhere.

    Raises:
        StorageError: the object is not what the commit record says.
    """
    if LOG not in checkpoint.shards:
        return None
    shard = checkpoint.shards[LOG]
    data = storage.read_bytes(shard.uri)
    if storage.sha256_bytes(data) != shard.sha256 or shard.items != checkpoint.state["log_lines"]:
        raise StorageError(f"{shard.uri}: damaged: its content is not what {COMMIT} says")
    return data


def read_back(run_uri: str, step: int) -> None:
    """Look whether a checkpoint is committed and every byte of it is in the store.

    Raises:
        StorageError: it is not, or the store does not answer.
    """
    found = next((checkpoint for checkpoint in committed(run_uri) if checkpoint.step == step), None)
    if found is None:
        raise StorageError(f"{_place(run_uri, step)}: written, but not there any more; run the command again")
    for shard in found.shards.values():
        if publishing.sha256_of(shard.uri) != shard.sha256:
            raise StorageError(f"{shard.uri}: the store does not give back what was written; run the command again")


def prune(lease: Lease, keep_last: int, keep_every: int | None) -> None:
    """Delete all but step 0, the last `keep_last` and every `keep_every`-th checkpoint; the record goes first.

    Parts that no record names go as well: no writer of before may commit them any more.

    Raises:
        LeaseLostError: somebody else holds the run; nothing was deleted.
        StorageError: the store failed.
    """
    checkpoints = committed(lease.run_uri)
    listed = storage.list_uris(storage.join(lease.run_uri, "checkpoints"))
    steps = {uri.split("/")[-2] for uri in listed if uri.endswith("/" + COMMIT)}
    named = {_name(each.step): {shard.uri for shard in each.shards.values()} for each in checkpoints}
    lease.check()
    for checkpoint in checkpoints[:-keep_last]:
        if checkpoint.step == 0 or (keep_every and checkpoint.step % keep_every == 0):
            continue
        storage.delete(storage.join(checkpoint.uri, COMMIT))
        for shard in checkpoint.shards.values():
            storage.delete(shard.uri)
    for uri in listed:
        *_, step, name = uri.split("/")
        # A record whose parts are not all there may be mended by hand.
        left = step not in steps or (step in named and uri not in named[step])
        if left and name in PART_NAMES and _STEP.fullmatch(step):
            storage.delete(uri)


class BackgroundWriter:
    """Publishes one checkpoint at a time beside the training loop; the next one waits for the one before."""

    def __init__(self, lease: Lease, keep_last: int, keep_every: int | None) -> None:
        self._lease, self._keep_last, self._keep_every = lease, keep_last, keep_every
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(
        self, step: int, parts: Mapping[str, Mapping[str, np.ndarray]], log: bytes, state: dict[str, Any]
    ) -> None:
        """Start publishing; `parts` must be copies that the loop no longer changes.

        Raises:
            StorageError: the checkpoint before could not be written.
        """
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(step, parts, log, state), name="write-checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Return at once; a failure is not kept until the next checkpoint, which may be hours away.

        Raises:
            StorageError: the last checkpoint could not be written.
        """
        if self._error is not None:
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is committed.

        Raises:
            LeaseLostError: somebody else holds the run.
            StorageError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, LeaseLostError):
                raise error
            raise StorageError(f"checkpoint not written: {error}") from error

    def _write(
        self, step: int, parts: Mapping[str, Mapping[str, np.ndarray]], log: bytes, state: dict[str, Any]
    ) -> None:
        try:
            publish(self._lease, step, parts, log, state)
            prune(self._lease, self._keep_last, self._keep_every)
        except BaseException as error:  # raised again by wait(), in the loop's thread
            self._error = error


def _place(run_uri: str, step: int) -> str:
    return storage.join(run_uri, "checkpoints", _name(step))


def _name(step: int) -> str:
    return f"step-{step:08d}"
