"""URIs: how they are spelled and joined, and how JSON under a root says them.

In a stored document a URI that lies under the document's root is written as a way from the document's own folder:

    s3://bucket/out/scores/a/1f3c/manifest.json says here://../../../videos/a/9b40 for s3://bucket/out/videos/a/9b40

So a root can be moved, copied to another kind of store or served under another name, and so can a place in it, without
a look into its documents: a reader needs the document and nothing else. In memory every URI is absolute.
"""

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from latte.errors import UserError

SCHEME = "here://"


def join(uri: str, *parts: str | int) -> str:
    """Put names under a URI.

    Raises:
        UserError: a name is empty, absolute or climbs out (`..`).
    """
    names = [uri.rstrip("/")]
    for part in parts:
        text = str(part).strip("/") if not str(part).startswith("/") else str(part)
        if text.startswith("/") or any(name in ("", ".", "..") for name in text.split("/")) or "\x00" in text:
            raise UserError(f"{uri}: {part!r} is not a name under it")
        names.append(text)
    return "/".join(names)


def from_path(path: str | Path) -> str:
    """The `file://` URI of a local path, which may climb with `..`; a URI is returned as it is."""
    text = str(path)
    return text if "://" in text else Path(os.path.abspath(text)).as_uri()


def local_path(uri: str) -> Path:
    """The path behind a `file://` URI (or a plain path, which may climb with `..`).

    Raises:
        UserError: it is another kind of URI, or names a host.
    """
    if "\0" in unquote(uri):
        raise UserError(f"{uri!r}: no path has a zero byte in it")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri)
    if scheme != "file" or not rest.startswith("/"):
        raise UserError(f"{uri}: expected s3://bucket/key, file:///path or a path")
    # Not urlsplit: a name may have a # or ? in it.
    return Path(unquote(rest))


def root_uri(root: str) -> str:
    """The URI of a root, which may be written as a local path: /data/out is file:///data/out.

    Raises:
        UserError: nothing can be kept there, as far as its spelling tells.
    """
    if root == "~" or root.startswith("~/"):
        raise UserError(f"root {root}: only a shell fills in ~; write {os.path.expanduser(root)}")
    # s3:/bucket and file:dir are slips, not folders of that name.
    if root and not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", root):
        root = from_path(root)
    if root.startswith(("s3://", "file:///")) and root.partition("://")[2].strip("/"):
        return root
    raise UserError(f"root {root}: expected s3://bucket/prefix, file:///dir or a folder's path")


def relative(value: Any, document: str, root: str | None) -> Any:
    """JSON values as they are stored: URIs below `root`, the root itself too, become ways from the document's folder.

    Only whole strings are URIs. A string that begins like such a way is marked, so that `resolve` gives it back.

    Args:
        value: mappings, lists, strings, numbers.
        document: URI that the value is written to, below `root`.
        root: None where the document lies under no root: nothing becomes relative.

    Raises:
        ValueError: the document does not lie under the root.
    """
    prefixes = spellings(root) if root is not None else []
    place = _below(document, prefixes)
    if root is not None and not place:
        raise ValueError(f"{document}: not below {root}")
    folder = (place or [""])[:-1]

    def written(text: str) -> str:
        names = _below(text, prefixes)
        if names is None:
            return f"{SCHEME}/{text}" if text.startswith(SCHEME) else text
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(folder, names, strict=False)))
        way = [".."] * (len(folder) - shared) + names[shared:]
        return SCHEME + ("/".join(way) if way else ".")  # [""] is the folder with a slash at its end

    return _mapped(value, written)


def resolve(value: Any, document: str) -> Any:
    """JSON values as they are used: the inverse of `relative`; absolute URIs, as older versions wrote them, stay.

    Raises:
        UserError: a way leads out of the store.
    """
    folder = document.split("/")[:-1]

    def absolute(text: str) -> str:
        if not text.startswith(SCHEME):
            return text
        way = text.removeprefix(SCHEME)
        if way.startswith("/"):
            return way[1:]
        names = [] if way == "." else way.split("/")
        up = next((count for count, name in enumerate(names) if name != ".."), len(names))
        # file:///… and s3://bucket keep their first three parts.
        if len(folder) - up < 3 or ".." in names[up:]:
            raise UserError(f"{document}: {text} leads out of its store")
        return "/".join([*folder[: len(folder) - up], *names[up:]])

    return _mapped(value, absolute)


def seen_from(root: str, value: Any) -> Any:
    """JSON values for a person: URIs below a root become names as seen from it, videos/a/9b40."""
    prefixes = spellings(root)
    return _mapped(value, lambda text: "/".join(_below(text, prefixes) or []) or text)


def spellings(root: str) -> list[str]:
    """Beginnings of URIs below a root: a file's URI may be written with or without percent signs."""
    plain = root.rstrip("/")
    if not plain.startswith("file:///"):
        return [plain]
    path = unquote(plain.removeprefix("file://"))
    return list(dict.fromkeys([plain, Path(path).as_uri(), f"file://{path}"]))


def _below(uri: str, prefixes: list[str]) -> list[str] | None:
    """The names that lead from a root to what is below it; None for what is not, or not in plain words."""
    for prefix in prefixes:
        if uri == prefix:
            return []
        if uri.startswith(prefix + "/"):
            names = uri.removeprefix(prefix + "/").split("/")
            plain = all(names[:-1]) and not {".", ".."} & set(names)
            return names if plain else None
    return None


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(each, change) for each in value]
    return value
