"""`latte-pipeline gc`: what may go from a root, beside what the cluster's schedules and running runs name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from latte import uses
from latte.cli import KEEP, guarded
from latte.inventory import tables
from latte.terminal import shown
from pipelines import results
from pipelines.status import ENDED

# Parameters of the pipelines that name what is under a root, and the folders that such a name is in.
_NAMES = {"name": ("datasets", "runs", "videos", "scores", "reports"), "dataset": ("datasets",)}


def needed_on(client: Any, root: str) -> list[tuple[str, str]]:
    """Places of a root that schedules and running runs of the experiment name, and who does.

    A name stands for the newest place of this name.

    Args:
        client: of the cluster (`pipelines.client.Client`).
        root: that places lie under.

    Raises:
        UserError: the server refuses to tell.
        LatteError: the server or the network fails.
    """
    from pipelines import runs

    found: list[tuple[str, str]] = []
    for each in client.schedules():
        found += _named(root, each.runtime_config, f"schedule {shown(each.display_name)}")
    for line in runs.newest_first(client, 200):
        if line.state not in ENDED:
            found += _named(root, runs.find(client, line.run_id).runtime_config, f"run {shown(line.name)}")
    return found


def _named(root: str, config: Any, who: str) -> list[tuple[str, str]]:
    given: Mapping[str, Any] = getattr(config, "parameters", None) or {}
    if str(given.get("root", "")).rstrip("/") != root.rstrip("/"):
        return []
    places = uses.found_in(root, dict(given))
    for key, folders in _NAMES.items():
        if name := given.get(key):
            places += [f"{folder}/{name}" for folder in folders]
    return [(place, f"needed by {who}") for place in places]


@click.command()
@results.ROOT
@KEEP
@click.option("--yes", is_flag=True, help="Remove what the table shows.")
@click.option("--host", envvar="KF_PIPELINES_ENDPOINT", help="Cluster whose schedules count [KF_PIPELINES_ENDPOINT].")
@click.option("--namespace", help="Your namespace, on a multi-user installation [default: KFP_NAMESPACE].")
@click.option("--experiment", default="latte", show_default=True, help="Experiment of the runs and schedules.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("run", type=click.Path(path_type=Path), required=False)
def gc(
    root: str | None,
    words: tuple[str, ...],
    yes: bool,
    host: str | None,
    namespace: str | None,
    experiment: str,
    as_json: bool,
    run: Path | None,
) -> None:
    """Show what of a run's store, or of --root, nothing needs any more; with --yes, remove it. See `latte gc`.

    With --host, what the schedules and running runs of the experiment name stays, too; only then uploads may go. RUN
    is the name of a run in runs/ or the folder of one [default: the newest in runs/].
    """

    def go() -> None:
        with results.opened(results.run_of(str(run)) if run is not None else None, root) as place:
            others: list[tuple[str, str]] | None = None
            if host:
                from pipelines.client import Client

                others = needed_on(Client(host, namespace, experiment=experiment), place.root)
            tables.show_housekeeping(place.root, words, yes, as_json, others)

    guarded(go)


COMMANDS = (gc,)
