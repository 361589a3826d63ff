"""Videos of a dataset: files in a folder, folders of frames, or the rows of a CSV file; local or in S3.

A catalog lists every video with a digest of its content, so that renamed or copied files are not encoded again, and
names every file that cannot be used.
"""

import itertools
import os
import stat as modes
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field

from latte import storage
from latte.config import Config, FileKey
from latte.data import splits
from latte.data.entries import Catalog, CatalogEntry
from latte.errors import UserError
from latte.progress import progress
from latte.storage.manifest import Reject
from latte.video.decoder_process import FRAME_SUFFIXES, natural_key
from latte.video.digests import frames_digest, s3_digest

VIDEO_SUFFIXES = (".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
_HASH_THREADS = 4  # hashing leaves the interpreter's lock, and reading waits for the disk
_CLOSED = "the folder cannot be read"
# They may lead to what was never meant to be shown.
_FILE_OUTSIDE = "a link to a file outside of dataset.videos; put the file itself there"
_FOLDER_OUTSIDE = "a link to a folder outside of dataset.videos; put the folder itself there"
_OF_FOLDERS = (_CLOSED, _FOLDER_OUTSIDE)
# Says nothing against the video, so it does not count as a rejected one.
SECOND_ROW = "the path is listed twice; the first row counts"


class DatasetConfig(Config):
    """Place of the videos, and where labels, captions and splits come from."""

    videos: Annotated[str, FileKey("videos")] = Field(
        min_length=1, description="folder of the videos, or s3://bucket/prefix"
    )
    layout: Literal["videos", "frames"] = Field(
        default="videos", description="videos: one file is a video; frames: one folder of pictures is a video"
    )
    csv: Annotated[str | None, FileKey("file")] = Field(
        default=None, description="CSV file with a column path and a column label or caption"
    )
    labels: Literal["folder", "none"] | None = Field(
        default=None, description="folder: the first folder's name; unset: folder if every video lies in one"
    )
    split: Annotated[str | None, FileKey("file")] = Field(
        default=None, description="text file that lists the videos to use, one path a line"
    )
    limit: int | None = Field(default=None, gt=0, description="at most so many videos, from the classes in turn")
    s3_digest: Literal["etag", "sha256"] = Field(
        default="etag", description="what tells contents in S3 apart; sha256 reads every object"
    )


@dataclass(frozen=True, slots=True)
class _File:
    """A file found below the dataset's folder; `problem` says why it cannot be read."""

    uri: str
    bytes: int
    etag: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """Row of the CSV file about a video."""

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
            CatalogEntry(
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


def local_files(config: DatasetConfig) -> list[tuple[str, Path, str | None]]:
    """The files of a dataset on this machine: name below its folder, path, and why it cannot be read, or None.

    They are all that `scan` could take, whatever the CSV file and the split choose of them.

    Raises:
        UserError: the folder is missing or holds no video.
    """
    found = []
    for name, files in _list_videos(config).items():
        for file in files:
            path = storage.local_path(file.uri)
            is_frame = config.layout == "frames" and file.problem not in _OF_FOLDERS
            found.append((f"{name}/{path.name}" if is_frame else name, path, file.problem))
    if not found:
        raise UserError(f"dataset.videos: {config.videos}: no {_expected(config)} there{_other_layout(config)}")
    return found


def _expected(config: DatasetConfig) -> str:
    if config.csv is not None:
        return f"video that {config.csv} names"
    if config.layout == "frames":
        return f"folder of frames ({', '.join(FRAME_SUFFIXES)})"
    return f"video ({', '.join(VIDEO_SUFFIXES)})"


def _other_layout(config: DatasetConfig) -> str:
    if config.layout == "frames":
        loose = sum("/" not in name and name.lower().endswith(FRAME_SUFFIXES) for name, _ in _list_files(config))
        above = config.videos.rstrip("/").rpartition("/")[0]
        if (folder := storage.path(config.videos)) is not None:
            above = str(folder.absolute().parent)
        if loose:
            return f", but {loose} pictures: they are one video, and dataset.videos={above} is the folder to name"
    other = "videos" if config.layout == "frames" else "frames"
    there = {} if config.csv else _list_videos(config.model_copy(update={"layout": other}))
    return f"; dataset.layout={other} finds {len(there)}" if there else ""


def _list_videos(config: DatasetConfig) -> dict[str, list[_File]]:
    """Files of each video by its id: one, or the frames in their order."""
    files = _list_files(config)
    if config.layout == "videos":
        # A CSV file may name a video of any ending.
        return {
            name: [file]
            for name, file in files
            if config.csv or name.lower().endswith(VIDEO_SUFFIXES) or file.problem in _OF_FOLDERS
        }
    folders: dict[str, list[tuple[str, _File]]] = {}
    for name, file in files:
        folder, _, base = name.rpartition("/")
        if file.problem in _OF_FOLDERS:
            folders.setdefault(name, []).append((base, file))
        elif folder and base.lower().endswith(FRAME_SUFFIXES):
            folders.setdefault(folder, []).append((base, file))
    ordered = ((folder, sorted(frames, key=lambda f: natural_key(f[0]))) for folder, frames in folders.items())
    return {folder: [file for _, file in frames] for folder, frames in ordered}


def _list_files(config: DatasetConfig) -> Iterator[tuple[str, _File]]:
    folder = storage.path(config.videos)
    return _list_objects(config.videos) if folder is None else _list_folder(folder, config.videos)


def _list_objects(prefix: str) -> Iterator[tuple[str, _File]]:
    start = len(prefix.rstrip("/")) + 1
    for uri, info in storage.list_objects(prefix).items():
        name = uri[start:]
        parts = name.split("/")
        if any(part.startswith(".") for part in parts):
            continue
        problem = None if info.bytes else "the file is empty"
        yield name, _File(uri, info.bytes, info.etag, problem if all(parts) else "its key has an empty name in it")


def _list_folder(root: Path, videos: str) -> Iterator[tuple[str, _File]]:
    """Files below a folder; one that several links lead to counts once, where it really lies. No link leads out."""
    root = root.absolute()
    try:
        if not root.is_dir():
            problem = "not a folder" if root.exists() else "no such folder"
            raise UserError(f"dataset.videos: {videos}: {problem}")
        os.scandir(root).close()
    except OSError as error:
        raise UserError(f"dataset.videos: {videos}: {error.strerror}") from None
    inside = root.resolve()
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
            is_folder = modes.S_ISDIR(seen.st_mode)
            if child.is_symlink() and not path.resolve().is_relative_to(inside):
                yield name, _File(path.as_uri(), 0, "", _FOLDER_OUTSIDE if is_folder else _FILE_OUTSIDE)
            elif is_folder:
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
    """Rows by video; those that cannot be used go to `rejects`."""
    rows: dict[str, _Row] = {}
    near = splits.Alike(found)
    table = splits.csv_rows(uri)
    columns = [column.strip() for column in next(table, (1, []))[1]]
    if len(set(columns)) < len(columns):
        raise UserError(f"dataset.csv: {uri}: two columns have the same name")
    if "path" not in columns or not {"label", "caption"} & set(columns):
        listed = ", ".join(sorted(columns)) or "none"
        hint = "; commas separate columns" if {";", "\t"} & set(listed) else ""
        raise UserError(f"dataset.csv: {uri}: needs a column path and a column label or caption, has {listed}{hint}")
    for line, values in table:
        row = dict(itertools.zip_longest(columns, values[: len(columns)]))
        given = row["path"] or ""
        name = str(PurePosixPath(given if given in found else given.strip()))
        other = str(PurePosixPath(splits.from_windows(name)))
        name = other if name not in found and other in found else name
        too_many = len(values) > len(columns)
        reason = "more values than columns" if too_many else _row_problem(row, name, found, rows, near)
        if reason is None:
            text = {key: value.strip() for key in ("label", "caption") if (value := row.get(key)) is not None}
            rows[name] = _Row(text.get("label"), text.get("caption"))
        else:
            rejects.append(Reject(item=name, reason=f"CSV line {line}: {reason}"))
    return rows


def _row_problem(
    row: dict[str, str | None], name: str, found: dict[str, list[_File]], rows: dict[str, _Row], near: splits.Alike
) -> str | None:
    if missing := [key for key in ("path", "label", "caption") if key in row and not (row[key] or "").strip()]:
        return f"{missing[0]} is empty"
    if name in rows:
        return SECOND_ROW
    if name in found:
        return None
    for folder in map(str, PurePosixPath(name).parents):
        if folder in found and found[folder][0].problem in _OF_FOLDERS:
            return found[folder][0].problem
    climbs = name.startswith("/") or ".." in name.split("/")
    return "not a path below dataset.videos" if climbs else f"no such file{near.hint(name)}"


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


def _digests(config: DatasetConfig, videos: Iterable[list[_File]]) -> list[str | None]:
    """Digest of each video, in order; None where it can no longer be read."""
    videos = list(videos)
    whole = storage.etags_tell_content(config.videos) and config.s3_digest == "etag"
    unknown = next((file.uri for files in videos for file in files if whole and not file.etag), None)
    if unknown is not None:
        raise UserError(f"{unknown}: the store tells no ETag of it; set dataset.s3_digest=sha256")

    def of_file(file: _File) -> str:
        if whole:
            return s3_digest(file.etag, file.bytes)
        if (path := storage.path(file.uri)) is not None:
            return storage.sha256_file(path)
        with storage.as_local_file(file.uri) as path:
            return storage.sha256_file(path)

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
