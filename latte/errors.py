"""Errors that a person has to do something about; everything else is a bug and keeps its traceback."""


class LatteError(Exception):
    """A failure explained in one line; a command prints the line and leaves with `exit_code`."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """The notebook's view of it: IPython's own interface."""
        return [f"error: {self}"]


class StoppedByUserError(LatteError):
    """Ctrl-C, after what was to be saved is saved."""

    exit_code = 130


class UserError(LatteError):
    """The user's to mend: a config key, a missing file, a wrong shape, a wrong secret. Raised before work begins."""

    exit_code = 2


class StorageError(LatteError):
    """The object store or the disk failed for longer than retries bridge: an outage, no space left."""

    exit_code = 1


class NotThereError(UserError):
    """No object under this URI."""


class UnreadableError(UserError):
    """A document that is not JSON, or not what it is taken for; where it can be made again it counts as not done."""


class DamagedError(StorageError):
    """Stored bytes are not those that were recorded.

    Attributes:
        what: which, without what to do about it.
    """

    REMEDY = "`latte verify ROOT --repair` tells what makes it again"

    def __init__(self, what: str, remedy: str = REMEDY) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what = what
