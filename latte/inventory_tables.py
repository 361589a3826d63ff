"""How what lies under a root is shown: tables for a person, JSON for a program."""

import json
import time
from collections.abc import Sequence
from typing import Any

from latte import inventory, manifest, registry, storage
from latte.errors import UserError
from latte.inventory import Item

_WIDTH = 160


def show(root_or_uri: str, as_json: bool = False) -> None:
    """Print what lies under a root, or what one place of it is.

    Raises:
        UserError: it is neither.
    """
    uri = storage.from_path(root_or_uri).rstrip("/")
    if storage.exists(storage.join(uri, "current.json")):
        show_promotions(uri, as_json)
        return
    if uri.endswith(".json") or storage.exists(storage.join(uri, manifest.NAME)):
        show_place(uri, as_json)
        return
    show_items(inventory.listing(root_or_uri), as_json)


def show_items(items: Sequence[Item], as_json: bool = False) -> None:
    """Print a table of places, or a list of JSON objects."""
    if as_json:
        print(json.dumps([{**vars(item), "modified": _date(item.modified_s)} for item in items], indent=2, default=str))
        return
    from rich.table import Table

    from latte.steps.report_words import size

    table = Table()
    for heading in ("what", "name", "place", "size", "date", "what made it"):
        table.add_column(heading, justify="right" if heading == "size" else "left", overflow="fold")
    for item in items:
        table.add_row(item.kind, item.name, item.place, size(item.bytes), _date(item.modified_s), item.made_by)
    _print(table)


def show_place(uri: str, as_json: bool = False) -> None:
    """Print what a manifest says.

    Raises:
        UserError: there is none.
    """
    made, info = inventory.detail(uri)
    if as_json:
        print(json.dumps({**made.model_dump(), "modified": _date(info.modified_s)}, indent=2, sort_keys=True))
        return
    from latte.steps.report_words import size

    rows: list[tuple[str, Any]] = [("manifest", made.file), ("date", _date(info.modified_s))]
    rows += [(key, value) for key, value in made.summary().items() if key not in ("bytes", "fingerprint")]
    rows += [("fingerprint", made.fingerprint), ("size", size(sum(shard.bytes for shard in made.shards)))]
    rows += [("seconds", f"{made.seconds:.1f}"), ("code version", made.code_version)]
    rows += [(f"from {key}", value) for key, value in made.inputs.items()]
    rows += [(key, json.dumps(value, ensure_ascii=False)) for key, value in sorted(made.config.items())]
    _print(_facts(rows))
    for row in manifest.reject_rows(made.rejects):
        print(row)
    endings: dict[str, list[manifest.Shard]] = {}
    for shard in made.shards:
        endings.setdefault(shard.uri.rsplit("/", 1)[-1].rpartition(".")[2], []).append(shard)
    for ending, shards in sorted(endings.items()):
        total = size(sum(shard.bytes for shard in shards))
        print(f"{len(shards):>6} .{ending}  {total}  {shards[0].uri}" + (" …" if len(shards) > 1 else ""))


def show_promotions(uri: str, as_json: bool = False) -> None:
    """Print every promotion of a model, the one in force last.

    Args:
        uri: the model's folder, <root>/registry/<model>.
        as_json: print a list of JSON objects.

    Raises:
        UserError: it is no such folder.
    """
    folder, _, model = uri.rpartition("/")
    if not folder.endswith("/registry"):
        raise UserError(f"{uri}: not a model's folder in a registry")
    root = folder.removesuffix("/registry")
    current, _ = registry.read_current(root, model)
    entries = [*registry.history(root, model), *([current] if current is not None else [])]
    if as_json:
        print(json.dumps([entry.model_dump() for entry in entries], indent=2, sort_keys=True))
        return
    from rich.table import Table

    table = Table()
    for heading in ("entry", "promoted (UTC)", "step", "score", "value", "checkpoint"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        value = f"{entry.value:.4g}"
        table.add_row(str(entry.number), entry.promoted_at, str(entry.step), entry.metric, value, entry.checkpoint)
    _print(table)


def _facts(rows: Sequence[tuple[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows:
        table.add_row(key, str(value))
    return table


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(table)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
