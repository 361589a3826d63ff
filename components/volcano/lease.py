"""The lease of a launched Job: the step that waits for it renews an object, and its pods end when nobody does any more.

    launched/<run and task>/<work>/lease.json     another content with each renewal

No two clocks are compared: a pod sees the content change, and measures by its own monotonic clock for how long it has
not. A store that does not answer is no renewal. When the waiting step is killed, with no time to say so, the devices
are free within the lease; a step that is tried again renews it and goes on waiting for the same Job.
"""

import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from components.work import root_of
from latte import storage
from latte.errors import LatteError

# Of a pod that ends because nobody waits for it: EX_TEMPFAIL of sysexits.h, which no step and no signal leaves with.
EXIT_CODE = 75
# Within the time of a lease: how often it is renewed, and how often each pod looks.
_RENEWALS, _LOOKS = 6, 12


def uri_of(work_uri: str) -> str:
    """URI of the lease of the Job that does this work."""
    return storage.join(work_uri.rsplit("/", 1)[0], "lease.json")


@contextmanager
def renewed(uri: str, lease_s: float) -> Iterator[None]:
    """While it lasts, the lease is renewed: at once, and then by a thread, whatever the store answers.

    Args:
        uri: of the lease.
        lease_s: how long pods do without a renewal.

    Raises:
        StorageError: the store does not take the first renewal.
    """
    holder, ended = uuid.uuid4().hex, threading.Event()
    _renew(uri, holder, 0)

    def renew() -> None:
        number, last, is_told = 0, time.monotonic(), False
        while not ended.wait(lease_s / _RENEWALS):
            number += 1
            try:
                _renew(uri, holder, number)
            except LatteError as error:
                if not is_told:
                    limit = f"the pods of the Job end {lease_s:.0f} s after the last renewal"
                    _say(f"lease not renewed for {time.monotonic() - last:.0f} s, tried again; {limit}: {error}")
                is_told = True
                continue
            if is_told:
                _say(f"lease renewed again after {time.monotonic() - last:.0f} s")
            last, is_told = time.monotonic(), False

    threading.Thread(target=renew, name="renew-lease", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class Watch:
    """View that a pod has of its lease; to be asked again and again.

    Attributes:
        uri: of the lease.
        trouble: why the last look saw nothing; "" where it saw the lease.
    """

    def __init__(self, uri: str, lease_s: float) -> None:
        """Begin to look, in a thread: an answer of the store may be long in coming."""
        self.uri, self.trouble = uri, ""
        self._lease_s, self._every_s = lease_s, lease_s / _LOOKS
        self._seen: bytes | None = None
        self._silent_s, self._counted = 0.0, time.monotonic()
        self._lock, self._ended = threading.Lock(), threading.Event()
        threading.Thread(target=self._look, name="watch-lease", daemon=True).start()

    def silent_s(self) -> float:
        """Seconds without a renewal; of those in which nobody could ask, a quarter of the lease at most."""
        with self._lock:
            now = time.monotonic()
            self._silent_s += min(now - self._counted, self._lease_s / 4)
            self._counted = now
            return self._silent_s

    def is_over(self) -> bool:
        """Whether nobody waits for the Job any more; at the latest `lease_s` after the last renewal."""
        return self.silent_s() >= self._lease_s - self._every_s

    def is_doubtful(self) -> bool:
        """Whether a step that was there would have renewed it by now."""
        return self.silent_s() >= self._lease_s / 2

    def end(self) -> None:
        """Look no further."""
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.is_set():
            try:
                found = storage.read_bytes(self.uri)
            except LatteError as error:
                self.trouble = str(error)
            else:
                self.trouble = ""
                if found != self._seen:
                    with self._lock:
                        self._silent_s, self._counted = 0.0, time.monotonic()
                self._seen = found
            self._ended.wait(self._every_s)


def _renew(uri: str, holder: str, number: int) -> None:
    pod = os.environ.get("KFP_POD_NAME", "")
    storage.write_json(uri, {"holder": holder, "pod": pod, "renewal": number}, root_of(uri))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
