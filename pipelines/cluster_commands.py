"""`latte-pipeline submit | schedule | status | logs | doctor`: the pipelines on a cluster, from the command line."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from latte import storage
from latte.cli import guarded
from latte.errors import LatteError, UserError
from pipelines.compiled import PIPELINES

POLL_S = 10.0
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
@click.option("--wait", is_flag=True, help="Wait for the end; leave with 1 if the run did not succeed.")
@click.argument("run_id")
def status(host: str | None, namespace: str | None, wait: bool, run_id: str) -> None:
    """Tell how a run and its tasks are getting on."""
    from pipelines.client import Client

    def go() -> None:
        client = Client(host, namespace)
        found = client.status(run_id)
        while wait and not found.ended:
            time.sleep(POLL_S)
            found = client.status(run_id)
        click.echo(f"{found.state}  {found.name}" + (f": {found.error}" if found.error else ""))
        for task in found.tasks:
            seconds = f"{task.seconds:8.0f} s" if task.seconds is not None else " " * 10
            click.echo(f"{task.state:>10} {seconds}  {task.name}" + (f": {task.error}" if task.error else ""))
        if wait and found.state != "SUCCEEDED":
            raise LatteError(f"run {run_id}: {found.state}; latte-pipeline logs {run_id} tells more")

    guarded(go)


@click.command()
@_connection
@click.option("--task", help="Only tasks whose name contains this.")
@click.argument("run_id")
def logs(host: str | None, namespace: str | None, task: str | None, run_id: str) -> None:
    """Print what the tasks of a run wrote."""
    from pipelines.client import Client

    def go() -> None:
        for name, text in Client(host, namespace).logs(run_id, task):
            for line in text.splitlines():
                click.echo(f"[{name}] {line}")

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


COMMANDS = (submit, schedule, status, logs, doctor)
