"""`latte-pipeline runs | status | logs | stop | retry | schedules | pause | resume | delete`, on a cluster."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from latte.cli import guarded
from latte.errors import LatteError
from latte.terminal import say, shown
from pipelines.status import HEADS, SUCCEEDED, Status, duration

POLL_S = 10.0
FOLLOW_S = 3.0
# Wide enough for the longest reason: a line that goes to a file or a program is not folded.
_FILE_WIDTH = 1000

# After \b click keeps the lines as they are.
_RUNS_EXAMPLES = """\b
Examples:
  latte-pipeline runs
  latte-pipeline runs --json | jq -r '.[] | select(.state == "FAILED") | .run_id'
"""
_STATUS_EXAMPLES = """\b
Examples:
  latte-pipeline status
  latte-pipeline status --wait 1641883b-2132-4d22-aae7-29272b762f27
"""
_LOGS_EXAMPLES = """\b
Examples:
  latte-pipeline logs --task train --follow
  latte-pipeline logs --task encode 1641883b-2132-4d22-aae7-29272b762f27
  latte-pipeline logs --all --task convert     # why a pod did not get as far as the step
"""


def _connection(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="JSON on standard output, for programs."),
        click.option("--experiment", default="latte", show_default=True, help="Experiment of the runs and schedules."),
        click.option("--namespace", help="Your namespace, on a multi-user installation [default: KFP_NAMESPACE]."),
        click.option("--host", help="URL of the API server [default: KF_PIPELINES_ENDPOINT]."),
    ):
        function = option(function)
    return function


def _client(host: str | None, namespace: str | None, experiment: str) -> Any:
    from pipelines.client import Client

    return Client(host, namespace, experiment=experiment)


@click.command(epilog=_RUNS_EXAMPLES)
@_connection
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many.")
def runs(host: str | None, namespace: str | None, experiment: str, as_json: bool, limit: int) -> None:
    """List the newest runs: id, state, when they began, how long they took, and name."""
    from pipelines.runs import newest_first

    def go() -> None:
        found = newest_first(_client(host, namespace, experiment), limit)
        if as_json:
            return _print_json(found)
        rows = []
        for run in found:
            created = f"{run.created:%Y-%m-%d %H:%M} UTC" if run.created else ""
            rows.append((run.run_id, run.state, created, duration(run.seconds), run.name))
        return _table(("run", "state", "created", "time", "name"), rows) if rows else say("no runs yet")

    guarded(go)


@click.command(epilog=_STATUS_EXAMPLES)
@_connection
@click.option("--wait", is_flag=True, help="Tell what changes until the end; leave with 1 if the run did not succeed.")
@click.argument("run_id", required=False)
def status(
    host: str | None, namespace: str | None, experiment: str, as_json: bool, wait: bool, run_id: str | None
) -> None:
    """Tell how a run is getting on, task by task; without RUN_ID the newest.

    One line a task, in the order of the pipeline: state, time, done/total of a loop, tries, and why it failed, what it
    waits for, or the last line that it wrote. States beside KFP's own: WAITING for the tasks before it, CACHED (KFP had
    its result), CANCELED (under way when the run was stopped), UNKNOWN (nobody tells).
    """
    from pipelines import run_status
    from pipelines.runs import newest

    def go() -> None:
        client = _client(host, namespace, experiment)
        chosen = run_id or newest(client)
        found = _waited(client, chosen) if wait else run_status.status(client, chosen)
        if as_json:
            _print_json(found)
        else:
            say(found.headline())
            if found.tasks:
                _table(HEADS, [task.row() for task in found.tasks])
        if wait and found.state != SUCCEEDED:
            where = f" in {found.failed.name}" if found.failed else ""
            raise LatteError(f"run {chosen}: {found.state}{where}; latte-pipeline logs {chosen} tells more")

    guarded(go)


@click.command(epilog=_LOGS_EXAMPLES)
@_connection
@click.option("--task", help="Only the task of this name, or those whose name contains it.")
@click.option("--all", "everything", is_flag=True, help="Also what KFP's launcher and drivers and its libraries wrote.")
@click.option("--follow", is_flag=True, help="Go on with what is written until these tasks have ended.")
@click.argument("run_id", required=False)
def logs(
    host: str | None,
    namespace: str | None,
    experiment: str,
    as_json: bool,
    task: str | None,
    everything: bool,
    follow: bool,
    run_id: str | None,
) -> None:
    """Print what the tasks of a run wrote; without RUN_ID of the newest.

    Each line begins with its task, the item of its loop and its try. When the pods are gone the lines come from beside
    the outputs in the bucket, if this machine can read it (AWS_… variables).
    """
    import json

    from pipelines import run_logs, run_status
    from pipelines.runs import newest

    def go() -> None:
        client = _client(host, namespace, experiment)
        chosen = run_id or newest(client)
        if follow:
            look = partial(run_status.steadily, lambda: run_status.brief(client, chosen), FOLLOW_S, _complain)
            lines = run_logs.follow(client, look, task, everything, FOLLOW_S)
        else:
            found = run_status.brief(client, chosen)
            lines = run_logs.lines(client, found, run_logs.choose(found, task), everything)
        written = False
        for line in lines:
            written = True
            click.echo(json.dumps(vars(line)) if as_json else shown(f"[{line.source}] {line.text}".expandtabs()))
        if not written:
            say("nothing written by the steps; --all shows KFP's own lines", err=True)

    guarded(go)


@click.command()
@_connection
@click.argument("run_id")
def stop(host: str | None, namespace: str | None, experiment: str, as_json: bool, run_id: str) -> None:
    """Stop a run; `retry` goes on with it later.

    Its Volcano Jobs are deleted at once where KUBECONFIG, or the account of the pod that this runs in, may do that;
    elsewhere they end by themselves soon after (volcano.lease_s in the section cluster of the settings).
    Calling it again for a run that has ended deletes Jobs that it left behind.
    """
    from pipelines import operate

    def go() -> None:
        done = operate.stop(_client(host, namespace, experiment), run_id)
        if as_json:
            return _print_json(done)
        say(f"{done.run_id}  {done.state}")
        for job in done.volcano_jobs:
            say(f"Volcano Job {job}: being deleted")
        return say(done.note) if done.note else None

    guarded(go)


@click.command()
@_connection
@click.argument("run_id")
def retry(host: str | None, namespace: str | None, experiment: str, as_json: bool, run_id: str) -> None:
    """Go on with a run that failed or was stopped, at what failed; what succeeded is not done again.

    It keeps its id, its settings and its version of the pipeline: for other settings submit a new run, which finds what
    this one has made.
    """
    from pipelines import operate

    def go() -> None:
        run = operate.retry(_client(host, namespace, experiment), run_id)
        _print_json(run) if as_json else say(f"{run.run_id}  {run.name}: goes on, {run.state}")

    guarded(go)


@click.command()
@_connection
def schedules(host: str | None, namespace: str | None, experiment: str, as_json: bool) -> None:
    """List the schedules: id, state, cron (seconds first) and name."""
    from pipelines import operate

    def go() -> None:
        found = operate.schedules(_client(host, namespace, experiment))
        if as_json:
            return _print_json(found)
        rows = [(each.recurring_run_id, each.state, each.cron, each.name) for each in found]
        return _table(("schedule", "state", "cron (UTC)", "name"), rows) if rows else say("no schedules yet")

    guarded(go)


def _on_schedule(verb: str, done: str, help_: str) -> click.Command:
    @click.command(verb, help=help_)
    @_connection
    @click.argument("schedule")
    def command(host: str | None, namespace: str | None, experiment: str, as_json: bool, schedule: str) -> None:
        from pipelines import operate

        def go() -> None:
            found = getattr(operate, verb)(_client(host, namespace, experiment), schedule)
            _print_json(found) if as_json else say(f"{found.recurring_run_id}  {found.name}: {done}")

        guarded(go)

    return command


pause = _on_schedule(
    "pause", "paused", "Let a schedule (id or name) start nothing until it is resumed; a run that is going on is left."
)
resume = _on_schedule(
    "resume", "resumed", "Let a schedule (id or name) start runs again; what was missed is not caught up."
)


@click.command()
@_connection
@click.argument("which", metavar="SCHEDULE|RUN_ID")
def delete(host: str | None, namespace: str | None, experiment: str, as_json: bool, which: str) -> None:
    """Delete a schedule (id or name), or a run that has ended (id), from KFP.

    What runs have made stays in the bucket. A run that is going on has to be stopped first.
    """
    from pipelines import operate

    def go() -> None:
        gone = operate.delete(_client(host, namespace, experiment), which)
        _print_json(gone) if as_json else say(f"{which}  {gone.name}: deleted")

    guarded(go)


def _waited(client: Any, run_id: str) -> Status:
    """The last status; what changes until then goes to standard error."""
    from pipelines import run_status

    before: Status | None = None
    for found in run_status.watch(client, run_id, POLL_S, _complain):
        for line in run_status.changes(before, found):
            say(line, err=True)
        before = found
    if before is None:
        raise LatteError(f"run {run_id}: no status")
    return before


def _complain(line: str) -> None:
    say(line, err=True)


def _print_json(value: Any) -> None:
    from pipelines.operate import as_json

    click.echo(as_json(value))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns without lines; on a terminal the last one is folded, elsewhere nothing is."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(head, no_wrap=head != heads[-1], overflow="fold")
    for row in rows:
        table.add_row(*map(shown, row))
    terminal = sys.stdout.isatty()
    Console(file=sys.stdout, width=None if terminal else _FILE_WIDTH, markup=False, emoji=False, highlight=False).print(
        table
    )


COMMANDS = (runs, status, logs, stop, retry, schedules, pause, resume, delete)
