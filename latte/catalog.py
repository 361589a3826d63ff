"""Which videos a dataset has: files in a folder, folders of frames, or the rows of a CSV file; local or in S3.

A catalog lists every video with a digest of its content, so that renamed or copied files are not encoded again, and
names every file that cannot be used.
"""

import csv
import io
import itertools
import os
import stat as modes
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field

from latte import splits, storage
from latte.config import Config
from latte.decoding import FRAME_SUFFIXES, natural_key
from latte.errors import UserError
from latte.manifest import Reject, fingerprint
from latte.progress import progress
from latte.splits import read_text

VIDEO_SUFFIXES = (".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
_HASH_THREADS = 4  # hashing leaves the interpreter's lock, and reading waits for the disk
_CLOSED = "the folder cannot be read"
# Ends the reason of a reject for trouble that may have passed by the next run.
RUN_AGAIN = "; run again"
# Says nothing against the video, so it does not count as a rejected one.
SECOND_ROW = "the path is listed twice; the first row counts"


class DatasetConfig(Config):
    """Where the videos are and what is known of them."""

    videos: str = Field(min_length=1, description="folder of the videos, or s3://bucket/prefix")
    layout: Literal["videos", "frames"] = Field(
        default="videos", description="videos: one file is a video; frames: one folder of pictures is a video"
    )
    csv: str | None = Field(default=None, description="CSV file with a column path and a column label or caption")
    labels: Literal["folder", "none"] | None = Field(
        default=None, description="folder: the first folder's name; unset: folder if every video lies in one"
    )
    split: str | None = Field(default=None, description="text file that lists the videos to use, one path a line")
    limit: int | None = Field(default=None, gt=0, description="at most so many videos, from the classes in turn")
    s3_digest: Literal["etag", "sha256"] = Field(
        default="etag", description="what tells contents in S3 apart; sha256 reads every object"
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """One video of a catalog.

    Attributes:
        id: path below the dataset's folder.
        uri: the file, or the folder of its frames.
        digest: of the content: SHA-256 of a local file, a hash of etag and size in S3, of all its frames together.
        label: index into the catalog's classes, or None.
        caption: text that describes it, or None.
        bytes: size of the file or of all frames.
    """

    id: str
    uri: str
    digest: str
    label: int | None
    caption: str | None
    bytes: int


@dataclass(frozen=True)
class Catalog:
    """A dataset's videos by path, its classes, the files that cannot be used, and how many `limit` left out."""

    entries: list[Entry]
    classes: list[str]
    rejects: list[Reject]
    left_out: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 over contents, names, labels and captions; where the dataset lies does not matter."""
        facts = [[e.id, e.digest, e.label, e.caption] for e in self.entries]
        return fingerprint("catalog", facts, self.classes, [[r.item, r.reason] for r in self.rejects])


@dataclass(frozen=True, slots=True)
class _File:
    """A file found below the dataset's folder; `problem` says why it cannot be read."""

    uri: str
    bytes: int
    etag: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """What the CSV file says of a video."""

    label: str | None
    caption: str | None


def scan(config: DatasetConfig, read_contents: bool = True) -> Catalog:
    """List a dataset; entries come sorted bytewise by id, classes by name, both with numbers by value.

    With `read_contents` off no file is opened, and the entries' digests are empty.

    Raises:
        UserError: the folder, the CSV file or the split list is missing or unusable, or there is no video.
        StorageError: the store does not answer.
    """
    found = _list_videos(config)
    rejects: list[Reject] = []
    rows = None if config.csv is None else _read_csv(config.csv, found, rejects)
    chosen = sorted(found if rows is None else rows, key=os.fsencode)
    if config.split is not None:
        chosen = splits.choose(config.split, chosen, VIDEO_SUFFIXES if config.layout == "videos" else (), rejects)
    usable = []
    for name in chosen:
        problem = next((file.problem for file in found[name] if file.problem), None)
        if problem is None:
            usable.append(name)
        else:
            rejects.append(Reject(item=_printable(name), reason=problem))
    if not usable and not rejects:
        raise UserError(f"dataset.videos: {config.videos}: no {_expected(config)} there{_other_layout(config)}")
    labels = _labels(config, usable, rows)
    num_usable = len(usable)
    if config.limit is not None:
        usable = _take_in_turn(usable, labels, config.limit)
    classes = sorted({label for name in usable if (label := labels[name]) is not None}, key=natural_key)
    index = {label: number for number, label in enumerate(classes)}
    digests = _digests(config, [found[name] for name in usable]) if read_contents else [""] * len(usable)
    entries = []
    for name, digest in zip(usable, digests, strict=True):
        if digest is None:
            rejects.append(Reject(item=name, reason="cannot be read: it changed or vanished while it was listed"))
            continue
        label = labels[name]
        entries.append(
            Entry(
                id=name,
                uri=_video_uri(config, found[name]),
                digest=digest,
                label=None if label is None else index[label],
                caption=rows[name].caption if rows is not None else None,
                bytes=sum(file.bytes for file in found[name]),
            )
        )
    rejects.sort(key=lambda reject: (reject.item, reject.reason))
    return Catalog(entries, classes, rejects, num_usable - len(usable))


def _expected(config: DatasetConfig) -> str:
    if config.csv is not None:
        return f"video that {config.csv} names"
    if config.layout == "frames":
        return f"folder of frames ({', '.join(FRAME_SUFFIXES)})"
    return f"video ({', '.join(VIDEO_SUFFIXES)})"


def _other_layout(config: DatasetConfig) -> str:
    other = "videos" if config.layout == "frames" else "frames"
    there = {} if config.csv else _list_videos(config.model_copy(update={"layout": other}))
    return f"; dataset.layout={other} finds {len(there)}" if there else ""


def _list_videos(config: DatasetConfig) -> dict[str, list[_File]]:
    """Files of each video by its id: one, or the frames in their order."""
    files = _list_s3(config.videos) if storage.is_s3(config.videos) else _list_local(config.videos)
    if config.layout == "videos":
        # A CSV file may name a video of any ending.
        return {
            name: [file]
            for name, file in files
            if config.csv or name.lower().endswith(VIDEO_SUFFIXES) or file.problem == _CLOSED
        }
    folders: dict[str, list[tuple[str, _File]]] = {}
    for name, file in files:
        folder, _, base = name.rpartition("/")
        if file.problem == _CLOSED:
            folders.setdefault(name, []).append((base, file))
        elif folder and base.lower().endswith(FRAME_SUFFIXES):
            folders.setdefault(folder, []).append((base, file))
    ordered = ((folder, sorted(frames, key=lambda f: natural_key(f[0]))) for folder, frames in folders.items())
    return {folder: [file for _, file in frames] for folder, frames in ordered}


def _list_s3(prefix: str) -> Iterator[tuple[str, _File]]:
    start = len(prefix.rstrip("/")) + 1
    for uri, info in storage.list_objects(prefix).items():
        name = uri[start:]
        parts = name.split("/")
        if any(part.startswith(".") for part in parts):
            continue
        problem = None if info.bytes else "the file is empty"
        yield name, _File(uri, info.bytes, info.etag, problem if all(parts) else "its key has an empty name in it")


def _list_local(videos: str) -> Iterator[tuple[str, _File]]:
    """Files below a folder; a folder that several links lead to counts once, where it really lies if that is below."""
    root = storage.local_path(videos).absolute()
    try:
        if not root.is_dir():
            problem = "not a folder" if root.exists() else "no such folder"
            raise UserError(f"dataset.videos: {videos}: {problem}")
        os.scandir(root).close()
    except OSError as error:
        raise UserError(f"dataset.videos: {videos}: {error.strerror}") from None
    visited: set[tuple[int, int]] = set()
    folders, links = deque([(root, "")]), deque[tuple[Path, str]]()
    while folders or links:
        folder, prefix = folders.popleft() if folders else links.popleft()
        try:
            info = folder.stat()
            children = sorted(os.scandir(folder), key=lambda child: child.name)
        except OSError:
            yield prefix.rstrip("/"), _File(folder.as_uri(), 0, "", _CLOSED)
            continue
        if (info.st_dev, info.st_ino) in visited:
            continue
        visited.add((info.st_dev, info.st_ino))
        for child in children:
            if child.name.startswith("."):
                continue
            name, path = prefix + child.name, folder / child.name
            try:
                seen = child.stat()
            except OSError as error:
                yield name, _File(path.as_uri(), 0, "", f"cannot be read: {error.strerror}")
                continue
            if modes.S_ISDIR(seen.st_mode):
                (links if child.is_symlink() else folders).append((path, f"{name}/"))
            else:
                yield name, _File(path.as_uri(), seen.st_size, "", _problem(path, seen))


def _problem(path: Path, info: os.stat_result) -> str | None:
    if not modes.S_ISREG(info.st_mode):
        return "not a regular file"
    if info.st_size == 0:
        return "the file is empty"
    if not os.access(path, os.R_OK):
        return "cannot be read: Permission denied"
    # A name that is not UTF-8 cannot be written into JSON or a URI.
    return None if _printable(str(path)) == str(path) else "its name is not UTF-8"


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _read_csv(uri: str, found: dict[str, list[_File]], rejects: list[Reject]) -> dict[str, _Row]:
    """What the rows say, by video; rows that cannot be used go to `rejects`."""
    reader = csv.DictReader(io.StringIO(read_text("csv", uri), newline=""), strict=True)
    rows: dict[str, _Row] = {}
    try:
        columns = set(reader.fieldnames or ())
        if len(columns) < len(reader.fieldnames or ()):
            raise UserError(f"dataset.csv: {uri}: two columns have the same name")
        if "path" not in columns or not columns & {"label", "caption"}:
            listed = ", ".join(sorted(columns)) or "none"
            raise UserError(f"dataset.csv: {uri}: needs a column path and a column label or caption, has {listed}")
        for row in reader:
            given = row["path"] or ""
            name = str(PurePosixPath(given if given in found else given.strip()))
            reason = _row_problem(row, name, found, rows)
            if reason is None:
                text = {key: value.strip() for key in ("label", "caption") if (value := row.get(key)) is not None}
                rows[name] = _Row(text.get("label"), text.get("caption"))
            else:
                rejects.append(Reject(item=name, reason=f"CSV line {reader.line_num}: {reason}"))
    except csv.Error as error:
        raise UserError(f"dataset.csv: {uri}, line {reader.line_num}: {error}") from None
    return rows


def _row_problem(
    row: dict[str, str | None], name: str, found: dict[str, list[_File]], rows: dict[str, _Row]
) -> str | None:
    if None in row:
        return "more values than columns"
    missing = [key for key in ("path", "label", "caption") if key in row and not (row[key] or "").strip()]
    if missing:
        return f"{missing[0]} is empty"
    if name in rows:
        return SECOND_ROW
    if name in found:
        return None
    climbs = name.startswith("/") or ".." in name.split("/")
    return "not a path below dataset.videos" if climbs else "no such file"


def _labels(config: DatasetConfig, names: Sequence[str], rows: dict[str, _Row] | None) -> dict[str, str | None]:
    if rows is not None and config.labels != "folder":
        return {name: rows[name].label for name in names}
    if rows is not None and any(row.label is not None for row in rows.values()):
        raise UserError("dataset.labels: folder, but the CSV file has labels; leave one of the two out")
    from_folder = config.labels == "folder" or (config.labels is None and all("/" in name for name in names))
    if not from_folder:
        return dict.fromkeys(names)
    loose = [name for name in names if "/" not in name]
    if loose:
        raise UserError(f"dataset.labels: folder, but {loose[0]!r} ({len(loose)} in all) lies in no folder")
    return {name: name.split("/", 1)[0] for name in names}


def _take_in_turn(names: Sequence[str], labels: dict[str, str | None], limit: int) -> list[str]:
    classes: dict[str | None, list[str]] = {}
    for name in names:
        classes.setdefault(labels[name], []).append(name)
    rounds = itertools.zip_longest(*classes.values())
    taken = itertools.islice((name for turn in rounds for name in turn if name is not None), limit)
    return sorted(taken, key=os.fsencode)


def _video_uri(config: DatasetConfig, files: Sequence[_File]) -> str:
    return files[0].uri.rpartition("/")[0] if config.layout == "frames" else files[0].uri


def s3_digest(etag: str, size: int) -> str:
    """What tells contents in S3 apart without reading them."""
    return fingerprint("s3", etag.strip('"'), size)


def frames_digest(digests: Sequence[str]) -> str:
    """The digest of a folder of frames, by those of its pictures in their order."""
    return fingerprint("frames", digests)


def _digests(config: DatasetConfig, videos: Iterable[list[_File]]) -> list[str | None]:
    """Digest of each video, in order; None where it can no longer be read."""
    videos = list(videos)
    whole = storage.is_s3(config.videos) and config.s3_digest == "etag"

    def of_file(file: _File) -> str:
        if whole:
            return s3_digest(file.etag, file.bytes)
        if storage.is_s3(file.uri):
            with storage.as_local_file(file.uri) as path:
                return storage.sha256_file(path)
        return storage.sha256_file(storage.local_path(file.uri))

    def of_video(files: list[_File]) -> str | None:
        try:
            digests = [of_file(file) for file in files]
        except (OSError, UserError):
            return None
        return digests[0] if config.layout == "videos" else frames_digest(digests)

    if whole:
        return [of_video(files) for files in videos]
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        return list(progress(pool.map(of_video, videos), total=len(videos), desc="read the catalog", unit="video"))
