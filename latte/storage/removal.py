"""The mark of a place that `latte gc` is about to remove: there from before its last look until all is gone."""

from latte import storage
from latte.errors import StorageError

MARK = "removing.json"


class RemovedError(StorageError):
    """A place is being removed, or was while it was made."""


def check(place: str) -> None:
    """Return if nobody is removing a place.

    Raises:
        RemovedError: somebody is, or was and has been stopped.
        StorageError: the store does not answer.
    """
    if storage.exists(storage.join(place, MARK)):
        raise RemovedError(
            f"{place}: is being removed by `latte gc`; run again when that has ended (one that was stopped: call it "
            "again)"
        )
