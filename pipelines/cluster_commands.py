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
            "-c", "--config", "path", required=True, type=click.Path(path_type=Path), help="YAML settings of the run."
        ),
        click.option(
            "--pipeline", type=click.Choice(PIPELINES), default=PIPELINES[0], show_default=True, help="Which pipeline."
        ),
    ):
        function = option(function)
    return function


def _parameters(pipeline: str, path: Path, root: str | None, overrides: tuple[str, ...]) -> dict[str, Any]:
    from pipelines import settings

    checked = settings.load_remote(path, overrides, pipeline)
    place = root or checked.root
    if place is None:
        raise UserError(f"{path}: no root; a cluster needs --root s3://bucket/prefix")
    return {**checked.model_dump(exclude_unset=True), "root": storage.root_uri(place)}


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
        run = Client(host, namespace).submit(pipeline, params, name)
        click.echo(f"{run.run_id}  {run.name}\n{run.url}")

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
    from pipelines.client import Client

    def go() -> None:
        params = _parameters(pipeline, path, root, overrides)
        made = Client(host, namespace).schedule(pipeline, params, cron, name)
        state = "scheduled" if made.changed else "scheduled already"
        click.echo(f"{made.recurring_run_id}  {made.name}: {state}, {made.cron} UTC, version {made.version}")

    guarded(go)


@click.command()
@_connection
@click.option("--root", help="s3://bucket/prefix that runs will write to; reached with this machine's AWS_… variables.")
def doctor(host: str | None, namespace: str | None, root: str | None) -> None:
    """Look at everything that a run on the cluster needs, and say what to do about what is missing."""
    from pipelines import doctor as doctors

    def go() -> None:
        place = storage.root_uri(root) if root is not None else None
        findings = doctors.examine(host, namespace, None, place)
        for finding in findings:
            mark = {True: "ok", False: "PROBLEM", None: "-"}[finding.fine]
            click.echo(f"{mark:>8}  {finding.what}: {finding.line}")
        if any(finding.fine is False for finding in findings):
            sys.exit(1)

    guarded(go)


COMMANDS = (submit, schedule, doctor)
