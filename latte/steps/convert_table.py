"""The table that the convert step prints: what was taken of a file, and what was left out."""

from typing import Any

import numpy as np

from latte import manifest
from latte.checkpoints import architectures, store
from latte.checkpoints.stored import Checkpoint


def grouped(left_out: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """One line for all tensors of a part that were left out for one reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, why in left_out:
        groups.setdefault((name.partition(".")[0], why), []).append(name)
    return [
        (members[0] if len(members) == 1 else f"{part}.* ({len(members)})", why)
        for (part, why), members in groups.items()
    ]


def show(
    source: Checkpoint, tensors: dict[str, store.Tensor], facts: dict[str, Any], result: manifest.Manifest
) -> None:
    """Print it on standard output.

    Args:
        source: the published file.
        tensors: what was taken of it, by the network's names.
        facts: what the manifest keeps of it.
        result: the manifest.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.config['kind']} from {source.layout}" + (f", {source.part}" if source.part else ""))
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
        table.add_row(part, str(len(members)), f"{sizes:,}", types, "" if types == "float32" else "read as float32")
    table.add_section()
    table.add_row("all", f"{len(tensors)}", f"{result.counts['parameters']:,}", "float32", "")
    if facts["left_out"]:
        table.add_section()
    for name, why in facts["left_out"]:
        table.add_row(name, "", "", "", f"left out: {why}")
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    console.print(f"source sha256 {result.inputs['source']}")
    if result.config["kind"] == "i3d" and result.inputs["source"] not in architectures.PUBLISHED_I3D:
        console.print("not from the published file of I3D: a score by it is not called fvd")
    console.print(f"wrote {result.shards[0].uri}")
