"""Who may write to a training run: the newest of those who have taken it, told by numbers that only grow.

    runs/<name>/<fingerprint>/lease/00000003.json     the third writer of the run, made by a write that fails where
                                                      there is one already

Whoever starts takes the run over at once, whatever became of the writer before: a retry after a kill waits for nobody,
and no clock is asked. A writer that is alive still, or wakes up after an hour, looks for a higher number before each
thing that it would put in the place of another, and leaves. In S3 such a write carries the condition that the object is
still the one that was seen before looking, so that nothing comes in between; in a folder the look is the last thing
before the file gets its name.
"""

import contextlib
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from latte import storage
from latte.errors import LatteError, NotThereError, StorageError

_FOLDER = "lease"
# How often a writer looks beside its work; it does not rely on that.
_WATCH_S = 20.0


class LeaseLostError(LatteError):
    """Somebody else writes to the run now."""


@dataclass(frozen=True)
class Lease:
    """One writer's right to a run.

    Attributes:
        name: of the run.
        run_uri: its place.
        number: grows with each writer.
    """

    name: str
    run_uri: str
    number: int

    def check(self) -> None:
        """Return if nobody has taken the run over.

        Raises:
            LeaseLostError: somebody has; the line names the run and who holds it.
            StorageError: the store does not answer.
        """
        while (newest := max(_numbers(self.run_uri), default=self.number)) > self.number:
            # Gone: the next one has taken over from that one meanwhile.
            with contextlib.suppress(NotThereError):
                holder = storage.read_json(_uri(self.run_uri, newest))["holder"]
                raise LeaseLostError(
                    f"run {self.name} ({self.run_uri}) is held by {holder}, which took it over as writer {newest}; "
                    f"this one, writer {self.number}, ends and writes nothing more"
                )

    def put(self, uri: str, data: bytes) -> storage.Ref:
        """Put an object, replacing what is there, only while the run is held; equal bytes are not written twice.

        Raises:
            LeaseLostError: somebody else holds the run; nothing was written.
            StorageError: the store failed.
        """
        ref = storage.Ref(uri, len(data), storage.sha256_bytes(data))
        before = storage.stat(uri)  # seen before looking who holds the run: what a successor writes is not this one
        if before is not None and before.bytes == len(data) and storage.read_bytes(uri) == data:
            self.check()
            return ref
        # In a folder a condition takes a lock, which a writer that was stopped would hold.
        if storage.path(uri) is not None:
            with storage.writing(uri) as temporary:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                self.check()
            return ref
        self.check()
        try:
            if storage.swap(uri, data, before.etag if before else None) or storage.read_bytes(uri) == data:
                return ref
        except storage.UnsupportedError:
            # Swift has no such condition.
            return storage.write_bytes(uri, data)
        self.check()
        raise StorageError(f"{uri}: somebody changed it who does not hold the run {self.name}; run again")

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[LeaseLostError]]:
        """While it lasts, somebody else's taking over is looked for now and then; yields a list that says it then."""
        lost: list[LeaseLostError] = []
        ended = threading.Event()

        def watch() -> None:
            while not lost and not ended.wait(_WATCH_S):
                try:
                    self.check()
                except LeaseLostError as error:
                    lost.append(error)
                except LatteError:
                    # The store is away: whoever has something to write will say so.
                    continue

        thread = threading.Thread(target=watch, name="watch-lease", daemon=True)
        thread.start()
        try:
            yield lost
        finally:
            ended.set()


def take(name: str, run_uri: str) -> Lease:
    """Take a run, from whoever holds it.

    Args:
        name: of the run, for messages.
        run_uri: its place.

    Raises:
        LeaseLostError: somebody else took it at the same time, and later.
        StorageError: the store does not answer.
    """
    earlier = _numbers(run_uri)
    number = max(earlier, default=0) + 1
    # No two are the same bytes: what is found there is this one or another's.
    holder = {"holder": f"process {os.getpid()} on {socket.gethostname()}", "nonce": uuid.uuid4().hex}
    while True:
        uri = _uri(run_uri, number)
        data = storage.json_bytes(uri, {**holder, "number": number})
        if storage.swap(uri, data, None):
            break
        with contextlib.suppress(NotThereError):
            if storage.read_bytes(uri) == data:
                break  # the first answer was lost
        number += 1
    lease = Lease(name, run_uri, number)
    lease.check()
    for old in earlier:
        storage.delete(_uri(run_uri, old))
    return lease


def _numbers(run_uri: str) -> list[int]:
    names = [uri.rpartition("/")[2] for uri in storage.list_uris(storage.join(run_uri, _FOLDER))]
    return [int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit()]


def _uri(run_uri: str, number: int) -> str:
    return storage.join(run_uri, _FOLDER, f"{number:08d}.json")
