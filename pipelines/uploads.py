"""Files of this machine that settings name, in the bucket for the steps of a cluster: uploaded once, by their content.

    <root>/uploads/<digest of what is in it>/<name>                 what the settings that are sent name instead
    <root>/uploads/<digest of what is in it>/latte-contents.json    SHA-256 of the files of a folder, by name

A folder that has changed is another one: what an earlier one has of it is copied there by the store, and only the rest
is sent. All that cannot be there, or cannot be read, is refused before anything is sent. Names below a folder stay;
hidden files stay where they are, as the catalog passes over them.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latte import storage, units, uses
from latte.errors import DamagedError, NotThereError, UnreadableError, UserError
from latte.metrics import protocol as protocols
from latte.progress import progress
from latte.storage import manifest
from latte.terminal import say
from pipelines import bundles as bundle_files
from pipelines import settings
from pipelines.bundles import FOLDER, Bundle
from pipelines.places import Named
from pipelines.settings import AnyConfig

CONTENTS = "latte-contents.json"
_THREADS = 4
# Less is read before a bar would be seen.
_SHOWN_BYTES = 1 << 30


@dataclass(frozen=True)
class UploadPlan:
    """Uploads that the bucket needs before a run can start."""

    checked: AnyConfig
    bundles: tuple[Bundle, ...]


def plan(checked: AnyConfig, source: str) -> UploadPlan:
    """Look at every place that the settings name: on this machine, or in its bucket.

    A bucket is looked into where this machine has credentials; that it was not is said.

    Raises:
        UserError: something is in neither place, cannot be read, or cannot be of use to a cluster; the line names
            `source` and the key.
        StorageError: the store does not answer.
    """
    bundles, remote = [], []
    for named in settings.named(checked):
        try:
            if named.in_bucket:
                remote.append(named)
            elif named.kind == "target":
                raise UserError(f"{named.value}: a step of a cluster cannot write there; leave it out or name s3://…")
            elif named.kind == "protocol":
                checked = _with_fields(checked, named, source)
            else:
                bundles.append(bundle_files.of(named, checked))
        except UserError as error:
            # The catalog and the protocol say keys of their own.
            text = str(error).removeprefix(f"{source}: ").removeprefix("dataset.videos: ")
            text = text if text.startswith(named.key) else f"{named.key}: {text}"
            raise UserError(f"{source}: {text}") from None
    if remote and not bundles and not _has_credentials():
        say(f"not looked at, for want of S3 credentials: {', '.join(each.value for each in remote)}", err=True)
    else:
        for named in remote:
            _check_there(named, source)
    return UploadPlan(checked, tuple(bundles))


def send(planned: UploadPlan, root: str) -> AnyConfig:
    """Upload what is not in the bucket yet; return the settings that name it there.

    Tells first how much, then shows a bar, on standard error.

    Args:
        planned: from `plan`.
        root: s3://bucket/prefix of the run.

    Raises:
        UserError: a file changed meanwhile, or has not the SHA-256 that its manifest says.
        StorageError: the store stayed away for too long, or one of them is being removed.
    """
    read = _read(planned.bundles)
    values = planned.checked.model_dump(exclude_unset=True)
    todo: dict[str, Path] = {}
    known: set[str] = set()
    documents: dict[str, manifest.Manifest] = {}
    contents: dict[str, dict[str, str]] = {}
    # Before it is looked what is there: an old one may be about to be removed.
    uses.note(root, uses.found_in(root, [bundle.place(root, read) for bundle in planned.bundles]))
    for bundle in planned.bundles:
        place = bundle.place(root, read)
        there = storage.list_objects(place)
        uris = {storage.join(place, name): path for name, path in bundle.files.items()}
        known |= set(uris)
        todo |= {uri: path for uri, path in uris.items() if uri not in there or there[uri].bytes != read[path].bytes}
        if bundle.document is not None:
            documents[storage.join(place, bundle.main)] = bundle_files.moved(bundle.document, place, bundle.files)
        if bundle.folder and bundle.document is None:
            contents[storage.join(place.rpartition("/")[0], CONTENTS)] = {
                name: read[path].sha256 for name, path in bundle.files.items()
            }
        _put(values, bundle.named.keys, storage.join(place, bundle.main) if bundle.main else place)
    earlier = _earlier(root) if todo and contents else {}
    alike = {uri: earlier[read[path].sha256] for uri, path in todo.items() if read[path].sha256 in earlier}
    if known:
        size = units.size(sum(read[path].bytes for uri, path in todo.items() if uri not in alike))
        note = f"; {len(alike)} more from earlier uploads, as far as the store copies them" if alike else ""
        note = note if todo else "; all are there already"
        files = f"{len(todo) - len(alike)} of {len(known)} files"
        say(f"uploads to {storage.join(root, FOLDER)}: {files}, {size}{note}", err=True)
    _upload(todo, alike, read)
    for uri, names in contents.items():
        storage.write_json(uri, {"files": names}, root)
    for uri, document in documents.items():
        if not storage.exists(uri):
            manifest.write(document, uri, root)
    return settings.check(type(planned.checked), values, "uploads")


def _with_fields(checked: AnyConfig, named: Named, source: str) -> AnyConfig:
    """The settings with the fields of a protocol in the place of the file that has them."""
    values = checked.model_dump(exclude_unset=True)
    _put(values, named.keys, protocols.without_file(_get(values, named.keys), named.key))
    return settings.check(type(checked), values, source)


def _check_there(named: Named, source: str) -> None:
    """Whether what a key names in a bucket is there."""
    there = True
    try:
        if named.kind == "videos":
            there = storage.is_prefix(named.value)
        elif named.kind == "manifest":
            there = storage.exists(manifest.located(named.value))
        elif named.kind != "target":
            there = storage.exists(named.value)
    except NotThereError:
        there = False
    except UserError as error:
        raise UserError(f"{source}: {named.key}: {error}") from None
    if not there:
        raise UserError(f"{source}: {named.key}: {named.value}: nothing is there; upload it, or name a local path")


def _has_credentials() -> bool:
    from botocore.session import Session

    return Session().get_credentials() is not None


def _read(bundles: Sequence[Bundle]) -> dict[Path, storage.Ref]:
    """Size and SHA-256 of every file."""
    paths = list(dict.fromkeys(path for bundle in bundles for path in bundle.files.values()))
    found = {}
    with _reading(), ThreadPoolExecutor(_THREADS) as pool:
        sizes = {path: path.stat().st_size for path in paths}
        total = sum(sizes.values())
        with progress(
            total=total, desc="read what is to be sent", unit="B", scaled=True, disable=total < _SHOWN_BYTES
        ) as bar:
            for path, digest in zip(paths, pool.map(storage.sha256_file, paths), strict=True):
                found[path] = storage.Ref(path.as_uri() if path.is_absolute() else str(path), sizes[path], digest)
                bar.update(sizes[path])
    for bundle in bundles:
        for name, sha256 in bundle.recorded.items():
            if found[bundle.files[name]].sha256 != sha256:
                raise UserError(f"{bundle.named.key}: {bundle.files[name]}: damaged: not what its manifest says")
    return found


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Say in a line that a file has gone since it was looked at, or that the disk does not give it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; run the same command again") from None


def _earlier(root: str) -> dict[str, str]:
    """Files of folders that were uploaded before: a URI of each content, by its SHA-256."""
    there = storage.list_objects(storage.join(root, FOLDER))
    found: dict[str, str] = {}
    for uri in (each for each in there if each.endswith(f"/{CONTENTS}")):
        folder = uri.removesuffix(f"/{CONTENTS}")
        names = _names(uri)
        for each in there:
            if each.startswith(f"{folder}/") and (name := each.removeprefix(f"{folder}/").partition("/")[2]) in names:
                found[names[name]] = each
    return found


def _names(record: str) -> dict[str, str]:
    """SHA-256 by name, as an earlier upload has left it; none where that cannot be read, which is told."""
    try:
        value = storage.read_json(record)
    except (DamagedError, UnreadableError) as error:
        manifest.say_not_done(error)
        return {}
    files = value.get("files") if isinstance(value, dict) else None
    return files if isinstance(files, dict) else {}


def _upload(todo: Mapping[str, Path], alike: Mapping[str, str], read: Mapping[Path, storage.Ref]) -> None:
    lock = threading.Lock()

    def one(uri: str, path: Path) -> None:
        left = read[path].bytes

        def sent(count: int) -> None:
            nonlocal left
            with lock:
                # What is sent once more after a fault counts once.
                bar.update(min(count, left))
                left -= min(count, left)

        with _reading():
            stored = storage.upload(path, uri, sent, alike.get(uri))
        sent(left)
        if stored.sha256 != read[path].sha256:
            storage.delete(uri)
            raise UserError(f"{path}: it changed while it was uploaded; run the same command again")

    total = sum(read[path].bytes for path in todo.values())
    with (
        progress(total=total, desc="upload", unit="B", scaled=True, disable=not todo) as bar,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        for _ in pool.map(one, todo, todo.values()):
            pass


def _get(values: Any, keys: Sequence[str | int]) -> Any:
    for key in keys:
        values = values[key]
    return values


def _put(values: dict[str, Any], keys: Sequence[str | int], value: Any) -> None:
    _get(values, keys[:-1])[keys[-1]] = value
