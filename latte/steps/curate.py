"""A look at what curation would do to a dataset, before it is encoded; nothing but measured numbers is written."""

from collections.abc import Sequence
from pathlib import Path

from latte import config, storage
from latte.data.catalog import scan
from latte.data.config import EncodeConfig
from latte.data.curation import gate
from latte.errors import UserError
from latte.report import curation
from latte.video.decoders import Limits


def settings(path: Path | None, overrides: Sequence[str]) -> EncodeConfig:
    """Settings of encoding; those of the weights may be left out, as nothing is encoded.

    Raises:
        UserError: the file is missing, or a key is unknown, missing or has a bad value.
    """
    values = config.overridden({} if path is None else config.read_yaml(path), overrides)
    return config.build(EncodeConfig, {"vae": "not asked for", **values}, str(path or "command line"))


def show(encode: EncodeConfig, page: Path) -> str:
    """Write the page, and return the same in a few lines.

    Args:
        encode: settings with a section `curate`.
        page: file to write.

    Raises:
        UserError: there is nothing to do, or the dataset or the page's folder is unusable.
        StorageError: the store does not answer.
    """
    rules = encode.curate
    if rules is None:
        raise UserError("curate: the section is not there; name some rules, for example curate.black={}")
    if not page.absolute().parent.is_dir():
        raise UserError(f"--page {page}: no such folder")
    decisions = gate.decide(encode, rules, scan(encode.dataset))
    limits = Limits(encode.decode_limit_s, encode.decode_memory_gb)
    text = curation.page(decisions, rules, encode.name, encode.dataset.videos, limits)
    storage.write_bytes(page.absolute().as_uri(), text.encode())
    rows = [
        f"{row['name']:>14}  leaves out {row['count']:,}, of which no other rule would {row['alone']:,}"
        + (f"; {row['changes']}" if row["changes"] else "")
        for row in curation.counts(decisions, rules)
    ]
    return "\n".join([curation.headline(decisions), *rows, f"{'page':>14}  {page}"])
