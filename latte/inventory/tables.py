"""Tables of what lies under a root for a person, JSON of it for a program."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from latte import inventory, storage
from latte.errors import UserError
from latte.inventory import Item, gc
from latte.inventory.gc import Removed, Survey
from latte.inventory.verify import Found
from latte.storage import manifest, registry
from latte.terminal import shown

_WIDTH = 160
Others = Sequence[tuple[str, str]]


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

    from latte.units import size

    table = Table()
    for heading in ("what", "name", "place", "size", "date", "what made it"):
        table.add_column(heading, justify="right" if heading == "size" else "left", overflow="fold")
    for item in items:
        named = (shown(text) for text in (item.kind, item.name, item.place))
        table.add_row(*named, size(item.bytes), _date(item.modified_s), shown(item.made_by))
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
    from latte.units import size

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
        print(f"{len(shards):>6} .{ending}  {total}  {shown(shards[0].uri)}" + (" …" if len(shards) > 1 else ""))


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
        facts = (entry.number, entry.promoted_at, entry.step, entry.metric, value, entry.checkpoint)
        table.add_row(*map(shown, facts))
    _print(table)


def show_damages(found: Found, root: str, as_json: bool = False) -> None:
    """Print what `latte.inventory.verify` has found, URIs as seen from the root."""
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return
    from rich.table import Table

    from latte.units import size

    if found.damages:
        repaired = any(damage.done for damage in found.damages)
        table = Table()
        for heading in ("damaged", "what is wrong", "what makes it again", *(["repaired"] if repaired else [])):
            table.add_column(heading, overflow="fold")
        start = storage.root_uri(root).rstrip("/") + "/"
        for damage in found.damages:
            row = [damage.uri.removeprefix(start), damage.what, damage.remedy]
            table.add_row(*row, *([damage.done or "no: to be mended by hand"] if repaired else []))
        _print(table)
    print(
        f"{root}: {found.documents} documents read, {found.objects} objects ({size(found.bytes)}) compared with their "
        f"SHA-256, {found.unrecorded} without one: "
        + (f"{len(found.damages)} damaged, {found.left} of them still" if found.damages else "nothing is damaged")
    )


def show_going(found: Survey, root: str) -> None:
    """Print what `latte.inventory.gc` has found."""
    from rich.table import Table

    from latte.units import size

    if found.going:
        table = Table()
        for heading in ("what", "place", "size", "age", "why it may go"):
            table.add_column(heading, justify="right" if heading in ("size", "age") else "left", overflow="fold")
        for each in found.going:
            table.add_row(each.kind, shown(each.place), size(each.bytes), _age(each.age_s), shown(each.why))
        _print(table)
    total = size(sum(each.bytes for each in found.going))
    may = f"{len(found.going)} places may go, {total}" if found.going else "nothing may go"
    print(f"{root}: {may}; {len(found.kept)} places stay, {size(found.kept_bytes)}")


def show_removed(removed: Removed, root: str) -> None:
    """Print what was removed and what was not."""
    from latte.units import size

    print(f"{root}: {len(removed.gone)} places removed, {size(sum(each.bytes for each in removed.gone))}")
    for each in removed.spared:
        print(f"{shown(each.place)}: came into use meanwhile, and stays")


def show_housekeeping(root: str, words: Sequence[str], yes: bool, as_json: bool, others: Others | None = None) -> None:
    """Print what may go from a root, and remove it where that is wanted.

    Args:
        root: s3://bucket/prefix, file:///dir or the path of a folder.
        words: what is to stay (`latte.inventory.gc.keep`).
        yes: remove it.
        as_json: print one JSON object.
        others: places that schedules and running runs need, and who does; None where no cluster was asked.

    Raises:
        UserError: it is no root, one of another version, or a word cannot be meant.
        StorageError: the store does not answer, or a manifest is damaged.
    """
    wanted = replace(gc.keep(words), others=tuple(others or ()), knows_runs=others is not None)
    found = gc.survey(root, wanted)
    if not as_json:
        show_going(found, root)
    removed = gc.remove(root, wanted, found.going) if yes else None
    if as_json:
        print(json.dumps({**asdict(found), **({} if removed is None else asdict(removed))}, indent=2))
    elif removed is not None:
        show_removed(removed, root)
    elif found.going:
        print("--yes removes them")


def _age(seconds: float) -> str:
    return f"{seconds / 86_400:.0f} d" if seconds >= 2 * 86_400 else f"{seconds / 3600:.0f} h"


def _facts(rows: Sequence[tuple[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows:
        table.add_row(shown(key), shown(value))
    return table


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(table)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""  # a store that does not tell
