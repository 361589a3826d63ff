"""Results of runs, found by name: `latte-pipeline ls | show | get`, over a run's own store or any other.

`pipelines.local` brings the components, whose image the other commands choose first: it is imported where it is needed.
"""

import contextlib
import difflib
import fnmatch
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from latte import inventory, storage
from latte.cli import guarded
from latte.errors import UserError
from latte.inventory import Item, copying, tables
from latte.terminal import say

RUNS = Path("runs")
RESULTS = "results"
# What a copy is said to hold.
_TOLD = {
    "*.html": "report",
    "*/contact-sheet.png": "contact sheet",
    "*.mp4": "clips (MP4)",
    "*.mkv": "clips (lossless)",
    "*/ema.safetensors": "checkpoints",
    "*tfevents*": "TensorBoard files",
}
# What a person opens of a run; weights and latents are fetched by their names.
_OF_A_RUN = ("run", "set", "score", "report")

# After \b click keeps the lines as they are.
_GET_EXAMPLES = """\b
Examples:
  latte-pipeline get demo
  latte-pipeline get trained ~/clips --only "*.mp4"
  latte-pipeline get videos/trained --root s3://bucket/prefix
"""
_RUN_DIR = click.option(
    "--run-dir", type=click.Path(path_type=Path), help="Folder of the run [default: the newest in runs/]."
)
ROOT = click.option("--root", help="Another store than a run's own: s3://bucket/prefix, file:///dir or a folder.")


@dataclass(frozen=True)
class Opened:
    """A root that can be read, and the folder of the run that it belongs to, if it is known."""

    root: str
    run_dir: Path | None


@contextlib.contextmanager
def opened(run_dir: Path | None, root: str | None) -> Iterator[Opened]:
    """The root that `--run-dir` and `--root` name; a run's own store is there while a `with` block lasts.

    Raises:
        UserError: both or neither of them lead anywhere.
    """
    if root is not None:
        if run_dir is not None:
            raise UserError("--run-dir and --root: give one of them")
        yield Opened(storage.root_uri(root), None)
        return
    from pipelines import local

    folder = run_dir or _newest_run()
    with local.reopened(folder) as place:
        yield Opened(place, folder)


@click.command()
@ROOT
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("run", type=click.Path(path_type=Path), required=False)
def ls(root: str | None, as_json: bool, run: Path | None) -> None:
    """List what a run has made: checkpoints, sets, scores, the report, weights, latents.

    RUN is the name of a run in runs/ or the folder of one [default: the newest in runs/]. The store that it keeps for
    itself is started for as long as this takes.
    """

    def go() -> None:
        with opened(run_of(str(run)) if run is not None else None, root) as place:
            tables.show_items(inventory.listing(place.root), as_json)

    guarded(go)


@click.command()
@_RUN_DIR
@ROOT
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("name")
def show(run_dir: Path | None, root: str | None, as_json: bool, name: str) -> None:
    """Show what a run, a set, a score or weights hold and what they were made from.

    NAME is as `latte-pipeline ls` prints it (trained, videos/trained), a URI that a step has printed, or a run.
    """

    def go() -> None:
        with _meant(name, run_dir, root) as (_, items):
            if len(items) > 1:
                tables.show_items(items, as_json)
            else:
                tables.show(items[0].uri, as_json)

    guarded(go)


@click.command(epilog=_GET_EXAMPLES)
@_RUN_DIR
@ROOT
@click.option("--only", metavar="PATTERN", help='Only files of this name, for example "*.mp4".')
@click.argument("name")
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), required=False)
def get(run_dir: Path | None, root: str | None, only: str | None, name: str, folder: Path | None) -> None:
    """Copy what a run has made into a folder where it can be opened.

    NAME is a run (its name in runs/ or its folder): the report, clips (MP4 and lossless), contact sheets, scores,
    checkpoints and TensorBoard files. Or it is one of what `latte-pipeline ls` lists (trained, videos/trained,
    weights/vae), or a URI that a step has printed.

    DIR is laid out as the root is, and can be used as one: `latte score videos=DIR/videos/trained/… …`. [default:
    results/ in the run's folder, or here]
    """

    def go() -> None:
        with _meant(name, run_dir, root) as (place, items):
            target = folder or (place.run_dir or Path()) / RESULTS
            done = copying.copy(place.root, [item.place for item in items], target.expanduser().absolute(), only)
            say(f"{len(done.files)} files, {done.fetched} of them new, {done.checked} checked against their SHA-256")
            for line in _where(target, items, done.files):
                say(line)

    guarded(go)


@click.command()
@ROOT
@click.option("--repair", is_flag=True, help="Remove what is damaged, so that the next run makes it again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("run", type=click.Path(path_type=Path), required=False)
def verify(root: str | None, repair: bool, as_json: bool, run: Path | None) -> None:
    """Compare all that a run has made with what was recorded of it; see `latte verify`.

    RUN is the name of a run in runs/ or the folder of one [default: the newest in runs/].
    """
    from latte.inventory.verify import verify

    def go() -> int:
        with opened(run_of(str(run)) if run is not None else None, root) as place:
            found = verify(place.root, repair)
        tables.show_damages(found, place.root, as_json)
        return found.left

    sys.exit(1 if guarded(go) else 0)


@contextlib.contextmanager
def _meant(name: str, run_dir: Path | None, root: str | None) -> Iterator[tuple[Opened, list[Item]]]:
    """The root and the places that a name means: a run, something in a run's root, or a URI.

    Raises:
        UserError: nothing is of this name.
    """
    whole = run_of(name, strict=False) if root is None and run_dir is None else None
    if whole is not None:
        with opened(whole, None) as place:
            items = inventory.listing(place.root)
            yield place, _newest_of_each([item for item in items if item.kind in _OF_A_RUN]) or items
        return
    if "://" in name and root is None and run_dir is None:
        run_dir, root = _holder(name)
    with opened(run_dir, root) as place:
        items = inventory.listing(place.root)
        asked = name.removeprefix(place.root.rstrip("/") + "/")
        if storage.from_path(name).rstrip("/") == place.root.rstrip("/"):
            yield place, items
        else:
            yield place, inventory.find(items, asked, place.root)


def _newest_of_each(items: Sequence[Item]) -> list[Item]:
    """Of several with one name, the one that was made last; unfinished ones only where there is no other."""
    newest: dict[tuple[str, str], Item] = {}
    for item in sorted(items, key=lambda item: (item.finished, item.modified_s)):
        newest[item.kind, item.name] = item
    return [item for item in items if item in newest.values()]


def run_of(name: str, strict: bool = True) -> Path | None:
    """The folder of a run by its path or its name in runs/."""
    from pipelines import local

    for folder in (Path(name), RUNS / name):
        if "://" not in name and local.is_run(folder):
            return folder
    if not strict:
        return None
    near = difflib.get_close_matches(name, _runs(), n=3) or _runs()
    known = f"runs/ has {', '.join(near)}" if near else "runs/ has none; name another store with --root"
    raise UserError(f"{name}: no run of this name and no folder of one; {known}")


def _runs() -> list[str]:
    from pipelines import local

    folders = [path for path in RUNS.iterdir() if local.is_run(path)] if RUNS.is_dir() else []
    return [path.name for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)]


def _newest_run() -> Path:
    found = _runs()
    if not found:
        raise UserError("no run in runs/; name its folder with --run-dir, or another store with --root")
    return RUNS / found[0]


def _holder(uri: str) -> tuple[Path | None, str | None]:
    """Holder of a URI that a step has printed: a run of ours that wrote to that root, or the store that it names."""
    from pipelines import local

    for name in _runs():
        recorded = RUNS / name / local.PLACE
        known = storage.read_json(str(recorded))["root"] if recorded.exists() else None
        if known is not None and (uri == known or uri.startswith(f"{known.rstrip('/')}/")):
            return RUNS / name, None
    names = uri.rstrip("/").removesuffix("/manifest.json").split("/")
    inner = [number for number, part in enumerate(names) if part in inventory.FOLDERS]
    return None, "/".join(names[: inner[-1]]) if inner and inner[-1] > 2 else uri


def told(root: str, run_dir: Path) -> str:
    """The line at the end of a run that says how its results are opened."""
    folder = storage.path(root)
    if folder is not None:
        return f"clips, checkpoints, TensorBoard files: {folder} (latte ls {root} lists them)"
    run = run_dir.name if run_dir == RUNS / run_dir.name else shlex.quote(str(run_dir))
    return f"clips, checkpoints, TensorBoard files: latte-pipeline get {run} copies them to {run_dir / RESULTS}"


def what_next(pipeline: str, again: Sequence[str], num_videos: int, root: str, run_dir: Path) -> list[str]:
    """Lines at the end of a run that say what a person may do next.

    Args:
        pipeline: that has run.
        again: arguments that would run it again.
        num_videos: of its sets.
        root: where everything is.
        run_dir: folder of the run.
    """
    there = storage.path(root) is not None
    run = run_dir.name if run_dir == RUNS / run_dir.name else str(run_dir)
    look = shlex.join(["latte", "ls", root] if there else ["latte-pipeline", "ls", run])
    same = shlex.join(again)
    more = (
        f"latte-pipeline run --pipeline {pipeline} {same} sample.num_videos={2 * num_videos}",
        "twice as many videos; only the new ones are made",
    )
    nightly = (f"latte-pipeline run --pipeline nightly_retrain {same}", "train on what is new, promote what is better")
    schedule = ("latte-pipeline schedule --help", "every night, on a cluster")
    steps = [(look, "what there is now"), schedule if pipeline == "nightly_retrain" else more]
    if pipeline == "train_and_evaluate":
        steps.append(nightly)
    return ["next:", *(f"  {what}: {command}" for command, what in steps)]


def _where(target: Path, items: Sequence[Item], files: Sequence[str]) -> list[str]:
    """Paths of the copies for a person, one line a place."""
    lines = []
    for item in items:
        own = [name for name in files if name.startswith(item.place + "/")]
        counts = [(what, len(fnmatch.filter(own, pattern))) for pattern, what in _TOLD.items()]
        summary = ", ".join(f"{count} {what}" for what, count in counts if count)
        summary = summary or ", ".join(Path(name).name for name in own)
        lines.append(f"{item.kind} {item.name}: {target / item.place} ({summary})")
    return lines


COMMANDS = (ls, show, get, verify)
