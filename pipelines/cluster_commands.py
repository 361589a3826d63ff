"""`latte-pipeline submit | schedule | doctor`: the pipelines on a cluster, from the command line."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from latte import storage
from latte.cli import guarded
from latte.errors import UserError
from latte.terminal import say
from pipelines import presets
from pipelines.compiled import PIPELINES

IMAGE = click.option(
    "--image", help="Container image of the steps [default: LATTE_IMAGE, or latte-pipelines:<version>]."
)


def use(image: str | None) -> None:
    """Make components of this image; to be called before they are imported."""
    if image:
        os.environ["LATTE_IMAGE"] = image


def _connection(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--host", help="URL of the API server [default: KF_PIPELINES_ENDPOINT]."),
        click.option("--namespace", help="Your namespace, on a multi-user installation [default: KFP_NAMESPACE]."),
    ):
        function = option(function)
    return function


def _settings(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]..."),
        IMAGE,
        click.option("--name", help="Name in the UI [default: the pipeline's and the settings' name]."),
        click.option("--root", help="s3://bucket/prefix for all data [default: root of the settings]."),
        click.option(
            "-c",
            "--config",
            "path",
            required=True,
            type=click.Path(path_type=Path),
            help="YAML settings of the run, or a preset's name.",
        ),
        click.option(
            "--pipeline", type=click.Choice(PIPELINES), default=PIPELINES[0], show_default=True, help="Which pipeline."
        ),
    ):
        function = option(function)
    return function


def _parameters(pipeline: str, path: Path, root: str | None, overrides: tuple[str, ...]) -> dict[str, Any]:
    from pipelines import settings

    checked = settings.load(path, overrides, pipeline)
    place = root or checked.root
    if place is None:
        raise UserError(f"{path}: no root; a cluster needs --root s3://bucket/prefix")
    return {**checked.model_dump(exclude_unset=True), "root": storage.root_uri(place)}


def _tell_where(client: Any) -> None:
    """Say on standard error where runs will work, if that is not where the user means."""
    from pipelines import installation

    if remark := installation.remark(client):
        say(remark, err=True)


@click.command()
@_connection
@_settings
def submit(
    host: str | None,
    namespace: str | None,
    pipeline: str,
    path: Path,
    root: str | None,
    name: str | None,
    image: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Start a run on Kubeflow Pipelines; the token is read from KFP_TOKEN."""
    use(image)
    from pipelines.client import Client

    def go() -> None:
        params = _parameters(pipeline, path, root, overrides)
        client = Client(host, namespace)
        _tell_where(client)
        run = client.submit(pipeline, params, name)
        say(f"{run.run_id}  {run.name}")
        say(run.url)

    guarded(go)


@click.command()
@_connection
@click.option("--cron", required=True, help='Six fields, seconds first, UTC: "0 0 2 * * *" is every night at two.')
@_settings
def schedule(
    host: str | None,
    namespace: str | None,
    cron: str,
    pipeline: str,
    path: Path,
    root: str | None,
    name: str | None,
    image: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Run a pipeline again and again, one run at a time; the same name again changes the schedule."""
    use(image)
    from pipelines import cron as crons
    from pipelines.client import Client

    def go() -> None:
        params = _parameters(pipeline, path, root, overrides)
        client = Client(host, namespace)
        _tell_where(client)
        nightly = client.schedule(pipeline, params, cron, name)
        state = "scheduled" if nightly.changed else "scheduled already"
        say(f"{nightly.recurring_run_id}  {nightly.name}: {state}, {nightly.cron} UTC, version {nightly.version}")
        say(crons.next_words(nightly.cron))

    guarded(go)


@click.command()
@_connection
@click.option(
    "--root",
    help="s3://bucket/prefix that runs write to, reached with this machine's AWS_… variables [default: root of -c].",
)
@click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    help="YAML settings whose section cluster says what runs ask for [default: nothing special].",
)
@click.option("--run", "tries", is_flag=True, help="If all is well, start one tiny run and see it end.")
@click.option("--here", is_flag=True, help="Look at this machine and the settings, not at a cluster.")
@click.option(
    "--pipeline", type=click.Choice(PIPELINES), default=PIPELINES[0], show_default=True, help="With --here: which."
)
@IMAGE
def doctor(
    host: str | None,
    namespace: str | None,
    root: str | None,
    path: Path | None,
    tries: bool,
    here: bool,
    pipeline: str,
    image: str | None,
) -> None:
    """Look at everything that a run on the cluster needs, and say what to do about what is missing.

    With --here, at everything that a run on this machine needs: memory, MindSpore and its device, room on the disks,
    the image of `--runner docker`, the settings of -c with their files and dataset, and the store.

    The namespace is the one that runs will really work in: yours where each user has one, Kubeflow Pipelines' own on a
    standalone installation. Its account, rights, secrets, quota, Pod Security and Volcano's queues are looked at as far
    as this machine's kubeconfig may see them.

    With --run a tiny run writes, lists, reads and deletes an object in the bucket, and is deleted when it went well.
    """
    use(image)
    from pipelines import cluster as clusters
    from pipelines import doctor as doctors

    def tell(finding: doctors.Finding) -> None:
        mark = {True: "ok", False: "PROBLEM", None: "-"}[finding.fine]
        say(f"{mark:>8}  {finding.what}: {finding.line}")

    def go() -> None:
        if here:
            from pipelines import machine

            bad = 0
            for finding in machine.examine(path, pipeline, storage.root_uri(root) if root else None):
                tell(finding)
                bad += finding.fine is False
            sys.exit(1 if bad else 0)
        placed = clusters.load(path)
        named = root or (presets.read(path).get("root") if path is not None else None)
        place = storage.root_uri(str(named)) if named else None
        findings = doctors.examine(host, namespace, None, place, placed)
        for finding in findings:
            tell(finding)
        fine = all(finding.fine is not False for finding in findings)
        if tries:
            last = doctors.Finding("run", None, "not started, as there are problems")
            if fine:
                last = doctors.try_out(host, namespace, None, place, placed, lambda line: say(f"{'':>8}  {line}"))
            tell(last)
            fine = last.fine is True
        if not fine:
            sys.exit(1)

    guarded(go)


COMMANDS = (submit, schedule, doctor)
