"""Files of this machine that a key of the settings needs in the bucket: what it names, and what goes with that."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latte import config, networks, storage
from latte.checkpoints import open_checkpoint
from latte.data import catalog
from latte.errors import UserError
from latte.facts import RunMetrics
from latte.kinds import KINDS
from latte.storage import manifest
from pipelines.places import Named
from pipelines.settings import AnyConfig

FOLDER = "uploads"
# Kinds of weights whose reader takes the config.json beside them.
_WITH_SETTINGS = tuple(name for name, kind in KINDS.items() if kind.settings_beside is not None)
_ROLES = ("ema", "model")


@dataclass(frozen=True)
class Bundle:
    """Files that one key of the settings needs, in one folder of the bucket.

    Attributes:
        named: the key.
        files: path of each by its name below that folder.
        main: the name that the settings name then; "" for the folder itself.
        folder: name of a folder around them; "" for none.
        document: a manifest that goes with them and names them by their places here.
        recorded: SHA-256 that files must have, by name.
    """

    named: Named
    files: Mapping[str, Path]
    main: str = ""
    folder: str = ""
    document: manifest.Manifest | None = None
    recorded: Mapping[str, str] = field(default_factory=dict)

    def place(self, root: str, read: Mapping[Path, storage.Ref]) -> str:
        """URI of the folder that holds them."""
        own = [(name, read[path].sha256) for name, path in sorted(self.files.items())]
        if self.document is not None:
            elsewhere = [(each.uri, each.sha256) for each in self.document.shards if storage.is_shared(each.uri)]
            whole = manifest.fingerprint(FOLDER, own, elsewhere, self.document.kind, self.document.fingerprint)
        else:
            whole = own[0][1] if len(own) == 1 and not self.folder else manifest.fingerprint(FOLDER, own)
        return storage.join(root, FOLDER, whole[:16], *([self.folder] if self.folder else []))


def of(named: Named, checked: AnyConfig) -> Bundle:
    """The files of one key.

    Args:
        named: names something on this machine that is to be read.
        checked: the settings.

    Raises:
        UserError: it is not there, cannot be read, or cannot be of use elsewhere.
    """
    _check_here(named)
    return _BUNDLES.get(named.kind, _file)(named, checked)


def _check_here(named: Named) -> None:
    path = named.path()
    if not os.path.exists(path):
        raise UserError(
            f"{named.value}: neither on this machine nor in a bucket; name a file or folder that is here, or "
            "s3://bucket/key"
        )
    if not path.is_dir():
        _check_file(path)


def _check_file(path: Path) -> None:
    if not path.is_file():
        there = "a folder, expected a file" if path.is_dir() else "not a regular file"
        raise UserError(f"{path}: {there if os.path.exists(path) else 'no such file'}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: cannot be read: Permission denied")
    if not path.name.isprintable():
        raise UserError(f"{str(path)!r}: its name has control characters or is not UTF-8; rename it")


def _file(named: Named, _: AnyConfig) -> Bundle:
    path = named.path()
    _check_file(path)
    return Bundle(named, {path.name: path}, path.name)


def _weights(named: Named, checked: AnyConfig) -> Bundle:
    path = named.path()
    _check_file(path)
    paths = [path]
    if path.suffix == ".json":
        paths += [storage.local_path(uri) for uri in open_checkpoint(str(path)).uris]
    beside = path.with_name("config.json")
    if getattr(checked, str(named.keys[0]))["kind"] in _WITH_SETTINGS and beside.is_file():
        paths.append(beside)
    return Bundle(named, {each.name: each for each in paths}, path.name)


def _tokenizer(named: Named, _: AnyConfig) -> Bundle:
    paths = [Path(name) for name in networks.tokenizer_files(str(named.path()))]
    for path in paths:
        _check_file(path)
    return Bundle(named, {path.name: path for path in paths}, paths[0].name)


def _videos(named: Named, checked: AnyConfig) -> Bundle:
    dataset = config.build(catalog.DatasetConfig, checked.encode["dataset"])
    files = {}
    for name, path, problem in catalog.local_files(dataset):
        if problem is not None and path.exists() and path.is_file() and path.stat().st_size == 0:
            problem = None  # it is rejected by its name there, as here
        if problem is not None:
            raise UserError(f"{name!r}: {problem}")
        _check_file(path)
        files[name] = path
    return Bundle(named, files, folder=Path(os.path.abspath(named.path())).name or "videos")


def _manifest(named: Named, checked: AnyConfig) -> Bundle:
    """A manifest of this machine with what its readers take of its objects; or weights without a manifest."""
    place = manifest.located(named.value)
    if not place.endswith(".json"):
        return _file(named, checked)
    found = manifest.read(place)
    shards = found.shards
    if found.kind == "checkpoint":
        step = f"step-{RunMetrics.of(found).step:08d}/"
        shards = [each for each in shards if each.uri.endswith(tuple(f"{step}{role}.safetensors" for role in _ROLES))]
    here = [each for each in shards if not storage.is_shared(each.uri)]
    if here and found.kind not in ("weights", "checkpoint"):
        raise UserError(
            f"{named.value}: its {found.kind} lie on this machine; copy the root that they lie in to the bucket and "
            "name them there"
        )
    files, recorded = {}, {}
    for shard in here:
        name = "/".join(shard.uri.split("/")[-2:]) if found.kind == "checkpoint" else shard.uri.rpartition("/")[2]
        files[name] = storage.local_path(shard.uri)
        recorded[name] = shard.sha256
        if not files[name].is_file():
            raise UserError(f"{named.value}: it names {files[name]}, which is not there")
    document = found.model_copy(update={"shards": shards})
    # The folder is called as those that steps make, which is how a manifest is found by what it is of.
    return Bundle(named, files, manifest.NAME, found.fingerprint[:16], document, recorded)


_BUNDLES = {
    "weights": _weights,
    "manifest": _manifest,
    "tokenizer": _tokenizer,
    "videos": _videos,
}


def moved(document: manifest.Manifest, place: str, files: Mapping[str, Path]) -> manifest.Manifest:
    """A manifest of files of this machine, with their places in the bucket."""
    new = {path: storage.join(place, name) for name, path in files.items()}
    shards = [
        shard if storage.is_shared(shard.uri) else shard.model_copy(update={"uri": new[storage.local_path(shard.uri)]})
        for shard in document.shards
    ]
    return document.model_copy(update={"shards": shards, "uri": place if files else document.uri})
