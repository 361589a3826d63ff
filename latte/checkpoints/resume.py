"""Checkpoints of a training run in object storage: written in the background, committed by a record, kept by rule.

A checkpoint is the folder `checkpoints/step-00001000/` with `model.safetensors`, `ema.safetensors` and
`optimizer.safetensors`; `checkpoint.json`, written last, commits it. What has no commit record does not exist.
"""

import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from latte import manifest, storage
from latte.errors import StorageError

COMMIT = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its step, its objects by role (model, ema, optimizer) and the loop's state."""

    step: int
    uri: str
    shards: dict[str, manifest.Shard]
    state: dict[str, Any]


def publish(
    run_uri: str, step: int, parts: Mapping[str, Mapping[str, np.ndarray]], state: dict[str, Any]
) -> Checkpoint:
    """Write the parts (role: tensors by name) and then the commit record; equal tensors make equal bytes."""
    uri = _place(run_uri, step)
    shards = {}
    with tempfile.TemporaryDirectory(prefix="latte-checkpoint-") as folder:
        for role, tensors in parts.items():
            path = Path(folder) / f"{role}.safetensors"
            save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
            ref = storage.upload(path, storage.join(uri, path.name))
            shards[role] = manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256, items=len(tensors))
            path.unlink()
    record = {"step": step, "shards": {role: shard.model_dump() for role, shard in shards.items()}, "state": state}
    storage.write_json(storage.join(uri, COMMIT), record, root=uri)
    return Checkpoint(step, uri, shards, state)


def committed(run_uri: str) -> list[Checkpoint]:
    """Every committed checkpoint of a run whose objects are there, oldest first."""
    records = [uri for uri in storage.list_uris(storage.join(run_uri, "checkpoints")) if uri.endswith("/" + COMMIT)]
    found = []
    for uri in records:
        record = storage.read_json(uri)
        shards = {role: manifest.Shard.model_validate(value) for role, value in record["shards"].items()}
        if all(manifest.is_whole(shard) for shard in shards.values()):
            found.append(Checkpoint(record["step"], uri.removesuffix("/" + COMMIT), shards, record["state"]))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def load_part(checkpoint: Checkpoint, role: str) -> dict[str, np.ndarray]:
    """The tensors of one part, checksum verified.

    Raises:
        StorageError: the object is not what the commit record says.
    """
    shard = checkpoint.shards[role]
    with storage.as_local_file(shard.uri, shard.sha256) as path:
        return load_file(path)


def prune(run_uri: str, keep_last: int, keep_every: int | None) -> None:
    """Delete all but step 0, the last `keep_last` and every `keep_every`-th checkpoint; the record goes first."""
    checkpoints = committed(run_uri)
    for checkpoint in checkpoints[:-keep_last]:
        if checkpoint.step == 0 or (keep_every and checkpoint.step % keep_every == 0):
            continue
        storage.delete(storage.join(checkpoint.uri, COMMIT))
        for shard in checkpoint.shards.values():
            storage.delete(shard.uri)


class BackgroundWriter:
    """Publishes one checkpoint at a time beside the training loop; the next one waits for the one before."""

    def __init__(self, run_uri: str, keep_last: int, keep_every: int | None) -> None:
        self._run_uri, self._keep_last, self._keep_every = run_uri, keep_last, keep_every
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, step: int, parts: Mapping[str, Mapping[str, np.ndarray]], state: dict[str, Any]) -> None:
        """Start publishing; `parts` must be copies that the loop no longer changes.

        Raises:
            StorageError: the checkpoint before could not be written.
        """
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(step, parts, state), name="write-checkpoint")
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
            StorageError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise StorageError(f"checkpoint not written: {error}") from error

    def _write(self, step: int, parts: Mapping[str, Mapping[str, np.ndarray]], state: dict[str, Any]) -> None:
        try:
            publish(self._run_uri, step, parts, state)
            prune(self._run_uri, self._keep_last, self._keep_every)
        except BaseException as error:  # raised again by wait(), in the loop's thread
            self._error = error


def _place(run_uri: str, step: int) -> str:
    return storage.join(run_uri, "checkpoints", f"step-{step:08d}")
