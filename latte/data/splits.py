"""Lists of a dataset's videos, one a line: which video a line names; and the rows of CSV files."""

import csv
import functools
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from latte import storage
from latte.errors import NotThereError, UserError
from latte.storage.manifest import Reject

# UCF-101's lists have the number of the class behind the path, others a comma between the two.
_CLASS_NUMBER = re.compile(r"[ \t,]+[0-9]+$")


def from_windows(path: str) -> str:
    """A path with / for the signs that Windows puts between folders."""
    return path.replace("\\", "/")


class Alike:
    """Ends of reasons why there is no such video: one that is there and has nearly the same name."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = names

    def hint(self, path: str) -> str:
        """Such an end for a path, or ""."""
        name = self._plain.get(_plain(path), path)
        if name != path:
            return f"; {name!r} is there, with other capitals or another form of an accent"
        name = self._lying_deeper.get(path)
        return f"; paths begin below dataset.videos: {name!r}" if name else ""

    @functools.cached_property
    def _plain(self) -> dict[str, str]:
        return {_plain(name): name for name in self._names}

    @functools.cached_property
    def _lying_deeper(self) -> dict[str, str]:
        return {name.rpartition("/")[2]: name for name in self._names if "/" in name}


def _plain(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def choose(uri: str, names: Sequence[str], endings: tuple[str, ...], rejects: list[Reject]) -> list[str]:
    r"""Those of a dataset's videos that a list names, in the order of `names`.

    A line is a video's path below the dataset's folder, whole or without its ending, with / or Windows' \. Where it is
    none, a number behind a whole path is that of a class (`A/v_1.avi 1`). A path with another ending names another
    video. Empty lines, and lines that begin with # and name no video, are passed over; every other line that names none
    goes to `rejects`.

    Args:
        uri: the list, a text file.
        names: ids of the dataset's videos.
        endings: of videos, in small letters, which a line may leave out.
        rejects: gets the lines that name no video.

    Raises:
        UserError: there is no such file, it is no text, a line could mean several videos, or no line names one.
    """
    known = set(names)
    stems: dict[str, list[str]] = {}
    for name in names:
        if (stem := _stem(name, endings)) != name:
            stems.setdefault(stem, []).append(name)

    near = Alike([*names, *stems])

    def named_so(line: str) -> list[str]:
        if line in known:
            return [line]
        path = _CLASS_NUMBER.sub("", line)
        return stems.get(line) or ([path] if path in known else [])

    def named(line: str) -> list[str]:
        return named_so(line) or named_so(from_windows(line))

    def others_of(path: str) -> list[str]:
        return stems.get(_stem(path, endings), []) if _stem(path, endings) != path else []

    def hint(line: str) -> str:
        path = _CLASS_NUMBER.sub("", from_windows(line))
        if others := next((found for each in (line, path) if (found := others_of(each))), []):
            return f"; {others[0]!r} has another ending: where that is meant, leave the ending out"
        shorter = next((end for end in _ends(path) if end in known or end in stems), "")
        return f"; paths begin below dataset.videos: {shorter!r}" if shorter else near.hint(path)

    chosen = set()
    missing: list[Reject] = []
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
            reason = f"listed in {uri.rpartition('/')[2]}, line {number}, but there is no such video{hint(line)}"
            missing.append(Reject(item=line, reason=reason))
    if not chosen:
        first = f"; {missing[0].item!r} is {missing[0].reason}" if missing else ""
        raise UserError(f"dataset.split: {uri}: names none of the dataset's {len(names)} videos{first}")
    rejects += missing
    return [name for name in names if name in chosen]


def _stem(name: str, endings: tuple[str, ...]) -> str:
    """Without the ending of a video; other dots belong to the name."""
    return name.rpartition(".")[0] if name.lower().endswith(endings) else name


def _ends(path: str) -> Iterator[str]:
    """The path without its first folder, without its first two, and so on."""
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def csv_rows(uri: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not empty, each with the line on which it begins: quoted text may hold several.

    Raises:
        UserError: there is no such file, or it is no CSV.
    """
    reader = csv.reader(io.StringIO(read_text("csv", uri), newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"dataset.csv: {uri}, line {line}: {error}") from None
        if values:
            yield line, values


def read_text(key: str, uri: str) -> str:
    """The text of a file that the setting `dataset.<key>` names.

    Raises:
        UserError: there is no such file, it cannot be read, or it is not UTF-8.
    """
    try:
        return storage.read_bytes(uri).decode("utf-8-sig")
    except NotThereError:
        raise UserError(f"dataset.{key}: {uri}: no such file") from None
    except UserError as error:
        raise UserError(f"dataset.{key}: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"dataset.{key}: {uri}: not UTF-8 text") from None
