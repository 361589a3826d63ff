"""The table that the convert step prints: what was taken of a file, and what was left out."""

import numpy as np

from latte.checkpoints import store
from latte.checkpoints.stored import Checkpoint
from latte.facts import WeightsFacts
from latte.kinds import KINDS
from latte.storage import manifest
from latte.terminal import shown


def grouped(left_out: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """One line for all tensors of a part that were left out for one reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, why in left_out:
        groups.setdefault((name.partition(".")[0], why), []).append(name)
    return [
        (members[0] if len(members) == 1 else f"{part}.* ({len(members)})", why)
        for (part, why), members in groups.items()
    ]


def show(source: Checkpoint, tensors: dict[str, store.Tensor], result: manifest.Manifest) -> None:
    """Print it on standard output.

    Args:
        source: the published file.
        tensors: what was taken of it, by the network's names.
        result: the manifest.
    """
    from rich.console import Console
    from rich.table import Table

    facts = WeightsFacts.of(result)
    table = Table(title=f"{facts.kind} from {source.layout}" + (f", {source.part}" if source.part else ""))
    table.add_column("part")
    for heading in ("tensors", "parameters", "type"):
        table.add_column(heading, justify="right")
    table.add_column("note")
    parts: dict[str, list[store.Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(name.partition(".")[0], []).append(tensor)
    for part, members in parts.items():
        types = ", ".join(sorted({str(getattr(member, "dtype", "")) for member in members}))
        sizes = sum(int(np.prod(member.shape)) for member in members)
        note = "" if types == "float32" else "read as float32"
        table.add_row(shown(part), str(len(members)), f"{sizes:,}", types, note)
    table.add_section()
    table.add_row("all", f"{len(tensors)}", f"{result.counts['parameters']:,}", "float32", "")
    if facts.left_out:
        table.add_section()
    for name, why in facts.left_out:
        table.add_row(shown(name), "", "", "", f"left out: {shown(why)}")
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    console.print(f"source sha256 {result.inputs['source']}")
    if remark := KINDS[facts.kind].remark(result.inputs["source"]):
        console.print(remark)
    console.print(f"wrote {shown(result.shards[0].uri)}")
