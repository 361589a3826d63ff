"""Lists of a dataset's videos, one a line: which video a line names, and what becomes of lines that name none."""

import re
from collections.abc import Sequence

from latte import storage
from latte.errors import UserError
from latte.manifest import Reject

# UCF-101's lists have the number of the class behind the path, others a comma between the two.
_CLASS_NUMBER = re.compile(r"[ \t,]+[0-9]+$")


def choose(uri: str, names: Sequence[str], endings: tuple[str, ...], rejects: list[Reject]) -> list[str]:
    """Those of a dataset's videos that a list names, in the order of `names`.

    A line is a video's path below the dataset's folder, whole or without its ending. Where it is none, a number behind
    a whole path is that of a class (`A/v_1.avi 1`), and an ending that no such video has may stand for the one that it
    has, as after a conversion. Empty lines, and lines that begin with # and name no video, are passed over; every other
    line that names none goes to `rejects`.

    Args:
        uri: the list, a text file.
        names: ids of the dataset's videos.
        endings: of videos, in small letters, which a line may leave out or exchange.
        rejects: gets the lines that name no video.

    Raises:
        UserError: there is no such file, it is no text, a line could mean several videos, or no line names one.
    """
    known = set(names)
    stems: dict[str, list[str]] = {}
    for name in names:
        if (stem := _stem(name, endings)) != name:
            stems.setdefault(stem, []).append(name)

    def named(line: str) -> list[str]:
        if line in known:
            return [line]
        path = _CLASS_NUMBER.sub("", line)
        return (
            stems.get(line)
            or ([path] if path in known else None)
            or stems.get(_stem(line, endings))
            or (stems.get(_stem(path, endings)) if _stem(path, endings) != path else None)
            or []
        )

    chosen = set()
    for number, text in enumerate(re.split(r"\r\n|\r|\n", read_text("split", uri)), start=1):
        line = text.strip()
        if not line:
            continue
        meant = named(text) or named(line)
        if len(meant) > 1:
            several = " and ".join(map(repr, meant))
            raise UserError(f"dataset.split: {uri}, line {number}: {line!r} could be {several}; write the whole name")
        if meant:
            chosen.add(meant[0])
        elif not line.startswith("#"):
            reason = f"listed in {uri.rpartition('/')[2]}, line {number}, but there is no such video"
            rejects.append(Reject(item=line, reason=reason))
    if not chosen:
        raise UserError(f"dataset.split: {uri}: names none of the dataset's {len(names)} videos")
    return [name for name in names if name in chosen]


def _stem(name: str, endings: tuple[str, ...]) -> str:
    """Without the ending of a video; other dots belong to the name."""
    return name.rpartition(".")[0] if name.lower().endswith(endings) else name


def read_text(key: str, uri: str) -> str:
    """The text of a file that the setting `dataset.<key>` names.

    Raises:
        UserError: there is no such file, or it is not UTF-8.
    """
    try:
        return storage.read_bytes(uri).decode("utf-8-sig")
    except storage.NotThereError:
        raise UserError(f"dataset.{key}: {uri}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"dataset.{key}: {uri}: not UTF-8 text") from None
