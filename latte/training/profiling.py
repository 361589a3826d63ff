"""MindSpore's trace of some steps of a training run, for Perfetto, chrome://tracing or MindStudio."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latte import device, owners, storage


class Trace:
    """Files that MindSpore's profiler writes of the steps `first` to `last`, published under `<run>/profile/`.

    Args:
        first: step that is traced first, 1-based; 0 for none.
        last: step that is traced last.
        run_uri: the run's place.
    """

    def __init__(self, first: int, last: int, run_uri: str) -> None:
        self._first, self._last, self._run_uri = first, last, run_uri
        self._profile: Any = None

    @contextmanager
    def of(self, step: int) -> Iterator[None]:
        """Around a step; what was traced is published after the last. A run that goes on among them traces the rest.

        Raises:
            StorageError: object storage stayed away for too long.
        """
        if self._profile is None and self._first and self._first <= step <= self._last:
            self._folder = owners.Folder("profile")
            self._profile = device.make_profiler(self._folder.name)
        yield
        if self._profile is not None and step == self._last:
            self._profile.stop()
            self._profile = None
            folder = Path(self._folder.name)
            for path in sorted(each for each in folder.rglob("*") if each.is_file()):
                storage.upload(path, storage.join(self._run_uri, "profile", path.relative_to(folder).as_posix()))
            self._folder.cleanup()
