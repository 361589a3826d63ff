"""Secrets that travel in a header: what cannot be sent is refused before a library prints it to complain."""

from latte.errors import UserError


def for_header(name: str, secret: str | None) -> str | None:
    """The secret without the white space around it, as a file or a Kubernetes Secret may end in a line break.

    Args:
        name: what the user calls it, for the error.
        secret: the text; None and what is empty are None.

    Raises:
        UserError: there is a character in it that no header takes; the secret is not in the message.
    """
    stripped = (secret or "").strip()
    if not stripped.isascii() or not stripped.isprintable():
        raise UserError(f"{name}: there is a line break or another character in it that no header takes; set it anew")
    return stripped or None
