"""Weights of a published folder, and what lies beside them: settings of the network, and of the diffusion."""

from typing import Any

from latte import storage
from latte.checkpoints.reader import check_small
from latte.checkpoints.stored import Refusal
from latte.errors import UserError
from latte.kinds import KINDS, scheduler
from latte.kinds.scheduler import PublishedScheduler
from latte.storage import manifest

# As diffusers and transformers name weights; of a sharded file the index is what is opened.
_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
_ENDINGS = (".safetensors.index.json", ".safetensors", ".bin.index.json", ".bin")


def located(source: str, kind: str) -> str:
    """The file of weights that a source names: itself, or the one of a published folder or of its part for the kind.

    Raises:
        UserError: a folder without such a file.
    """
    path = storage.path(storage.from_path(source))
    part = KINDS[kind].folder
    if path is None or not path.is_dir() or not part:
        return source
    folder = path / part if (path / part).is_dir() else path
    names = [f"{name}{ending}" for name in _NAMES for ending in _ENDINGS]
    for name in names:
        if (folder / name).is_file():
            return str(folder / name)
    if any((folder / name).is_dir() for name in ("transformer", "text_encoder", "vae", "unet")):
        raise UserError(f"{source}: a published folder without {part}/, which weights of kind {kind} lie in")
    raise UserError(f"{folder}: no weights in this folder; expected {names[0]}, {names[1]} or {names[4]}")


def settings(source: str, kind: str) -> dict[str, Any]:
    """The network's settings in `config.json` beside the source, as diffusers and transformers write it.

    Raises:
        UserError: it cannot be read, or asks for a network that is not supported.
    """
    settings_of = KINDS[kind].settings_beside
    uri = f"{_folder(source)}/config.json"
    if settings_of is None or not storage.exists(uri):
        return {}
    return settings_of(_read(uri))


def diffusion(source: str, kind: str) -> PublishedScheduler | None:
    """The scheduler's settings that are published in a folder of their own beside the source's; None without.

    Raises:
        UserError: they cannot be read, or ask for a diffusion that is not supported.
    """
    if not KINDS[kind].generates or not KINDS[kind].folder:
        return None
    uri = f"{_folder(source).rpartition('/')[0]}/{scheduler.FILE}"
    return PublishedScheduler.from_published(_read(uri), uri) if storage.exists(uri) else None


def _folder(source: str) -> str:
    return storage.from_path(source).rpartition("/")[0]


def _read(uri: str) -> dict[str, Any]:
    try:
        check_small(uri)
    except Refusal as error:
        raise UserError(f"{uri}: {error}") from None
    values = storage.read_json(uri)
    if not isinstance(values, dict):
        raise UserError(f"{uri}: expected a JSON object with the settings of the network")
    try:
        manifest.fingerprint(values)
    except RecursionError:
        raise UserError(f"{uri}: nested too deeply to be the settings of a network") from None
    return values
