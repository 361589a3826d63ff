"""What a step raises when a person has to do something; everything else is a bug and keeps its traceback."""


class LatteError(Exception):
    """A failure explained in one line; a command prints the line and leaves with `exit_code`."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: IPython's own interface."""
        return [f"error: {self}"]


class UserError(LatteError):
    """The user's to mend: a config key, a missing file, a wrong shape, a wrong secret. Raised before work begins."""

    exit_code = 2


class StorageError(LatteError):
    """The object store or the disk failed for longer than retries bridge: an outage, no space left."""

    exit_code = 1


class NotThereError(UserError):
    """No object under this URI."""
