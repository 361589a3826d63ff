"""JSON documents as they are stored: equal values are equal bytes, URIs that move with the root, a digest of itself.

The digest is the key `own_sha256` of a document that is a mapping: SHA-256 over the canonical JSON of all its other
keys, as they are stored, but for `seconds`: the same work done twice has the same digest. So a flipped bit in a score
or a setting is noticed wherever the document is read. Documents of versions before have no such key and are read as
they are. What is written `compact` has none either: it is large, and the manifest that names it records the SHA-256 of
its bytes.
"""

import hashlib
import json
from typing import Any

from latte import uris
from latte.errors import DamagedError, UnreadableError

SEAL = "own_sha256"
_NOT_SEALED = "seconds"


def encode(uri: str, value: Any, root: str | None = None, compact: bool = False) -> bytes:
    """A JSON document as it is stored: sorted keys, so that equal values are equal bytes.

    Args:
        uri: where it will lie.
        value: JSON values.
        root: URIs of what lies under it are said so that they stay right when it is moved (`latte.uris`).
        compact: without layout and digest: laying out a million entries takes six times longer than encoding them.
    """

    def encoded(value: Any) -> str:
        layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 2}
        return json.dumps(value, sort_keys=True, ensure_ascii=False, **layout) + ("" if compact else "\n")

    text = encoded(value)
    known = [uris.SCHEME, *(uris.spellings(root) if root is not None else [])]
    if any(json.dumps(each, ensure_ascii=False)[1:-1] in text for each in known):
        text = encoded(uris.relative(value, uris.from_path(uri), root))
    if isinstance(value, dict) and not compact:
        stored = json.loads(text)  # keys that are no strings become some, and sort as such
        text = encoded({**stored, SEAL: _digest(stored)})
    return text.encode()


def decode(data: bytes, uri: str) -> Any:
    """The JSON values of a document that has been read from `uri`, every URI in it absolute, without its digest.

    Raises:
        UnreadableError: not JSON.
        DamagedError: it does not have the digest that it carries.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{uri}: not JSON: {error}") from None
    if isinstance(value, dict) and SEAL in value:
        seal = value.pop(SEAL)
        if seal != _digest(value):
            raise DamagedError(
                f"{uri}: damaged: its content does not have the SHA-256 that it carries",
                f"{DamagedError.REMEDY}; if you have changed it yourself, take its key {SEAL} out",
            )
    # A walk through a plan of a million videos takes seconds.
    return uris.resolve(value, uris.from_path(uri)) if uris.SCHEME.encode() in data else value


def is_sealed(data: bytes) -> bool:
    """Whether a document carries a digest of itself."""
    return f'"{SEAL}"'.encode() in data


def _digest(value: dict[str, Any]) -> str:
    sealed = {key: each for key, each in value.items() if key != _NOT_SEALED}
    text = json.dumps(sealed, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
