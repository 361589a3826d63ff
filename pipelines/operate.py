"""Runs and schedules on a cluster: stop, retry, pause, resume, delete."""

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from latte.errors import LatteError, UserError
from pipelines import dag, runs, step_log
from pipelines.client import Client
from pipelines.runs import RunLine
from pipelines.status import CANCELED, CANCELING, ENDED, FAILED, Status


@dataclass(frozen=True)
class Recurring:
    """A schedule: KFP's recurring run.

    Attributes:
        recurring_run_id: KFP's.
        name: as in the UI.
        state: ENABLED, or DISABLED while it is paused.
        cron: six fields, UTC.
    """

    recurring_run_id: str
    name: str
    state: str
    cron: str


@dataclass(frozen=True)
class Stopped:
    """Result of stopping a run.

    Attributes:
        run_id: the run.
        state: CANCELING, or what it had ended with before.
        volcano_jobs: Jobs of the run that were asked to be deleted.
        note: what was not done, in a line; "" of nothing.
    """

    run_id: str
    state: str
    volcano_jobs: tuple[str, ...]
    note: str


def stop(client: Client, run_id: str) -> Stopped:
    """Terminate a run, and delete its Volcano Jobs at once where KUBECONFIG or the pod's account lets us.

    The steps' own processes get a second or two from Kubernetes to do that. A Job that nobody deletes ends itself when
    its lease is over (`components.volcano.lease`); then the note says when that is.
    A run that has ended already is left as it is, but for Jobs that it may have left behind.

    Raises:
        UserError: there is no such run in the experiment, or it may not be stopped by this token.
    """
    run = runs.find(client, run_id)
    state = runs.state_of(run)
    if state not in ENDED and state != CANCELING:
        client.ask(f"stop run {run_id}", lambda kfp: kfp.terminate_run(run_id))
        state = CANCELING
    jobs, note = _delete_jobs(client, run_id)
    lease_s = dag.lease_s(runs.spec_of(client, run)) if note else None
    if lease_s is not None:
        note += f"; those that are left end by themselves within {lease_s / 60:.3g} min and the time that saving takes"
    return Stopped(run_id, state, jobs, note)


def retry(client: Client, run_id: str) -> RunLine:
    """Go on with a run at what failed or was stopped; what succeeded is not done again.

    Raises:
        UserError: there is no such run in the experiment, or it did not fail.
    """
    import kfp_server_api

    run = runs.find(client, run_id)
    state = runs.state_of(run)
    if state not in (FAILED, CANCELED):
        raise UserError(f"run {run_id}: {state}; only a run that failed or was stopped can be retried")
    client.send(
        f"retry run {run_id}", lambda api: kfp_server_api.RunServiceApi(api).run_service_retry_run(run_id=run_id)
    )
    return runs.line_of(runs.find(client, run_id))


def schedules(client: Client) -> list[Recurring]:
    """Every schedule of the experiment, by name."""
    found = [_recurring(each) for each in client.schedules()]
    return sorted(found, key=lambda each: (each.name, each.recurring_run_id))


def pause(client: Client, which: str) -> Recurring:
    """Let a schedule start nothing until it is resumed; what is running goes on. `which`: its id or its name."""
    found = _schedule(client, which)
    client.ask(f"pause {found.name}", lambda kfp: kfp.disable_recurring_run(found.recurring_run_id))
    return replace(found, state="DISABLED")


def resume(client: Client, which: str) -> Recurring:
    """Let a schedule that was paused start runs again; what was missed is not caught up."""
    found = _schedule(client, which)
    client.ask(f"resume {found.name}", lambda kfp: kfp.enable_recurring_run(found.recurring_run_id))
    return replace(found, state="ENABLED")


def delete(client: Client, which: str) -> Recurring | RunLine:
    """Delete a schedule (by id or name) or a run that has ended (by id) from KFP; what it made stays in the bucket.

    Raises:
        UserError: there is neither, or the run is still going on.
    """
    same = [each for each in schedules(client) if which in (each.recurring_run_id, each.name)]
    if same:
        found = _schedule(client, which)
        client.ask(f"delete {found.name}", lambda kfp: kfp.delete_recurring_run(found.recurring_run_id))
        return found
    run = runs.line_of(runs.find(client, which))
    if run.state not in ENDED:
        raise UserError(f"run {which}: {run.state}; stop it first: latte-pipeline stop {which}")
    client.ask(f"delete run {which}", lambda kfp: kfp.delete_run(which))
    return run


def _recurring(each: Any) -> Recurring:
    timing = getattr(each.trigger, "cron_schedule", None)
    state = str(each.status or {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}.get(str(each.mode), "ENABLED"))
    cron = step_log.one_line((timing.cron if timing else "") or "")
    return Recurring(str(each.recurring_run_id), step_log.one_line(each.display_name or ""), state, cron)


def _schedule(client: Client, which: str) -> Recurring:
    known = schedules(client)
    found = [each for each in known if each.recurring_run_id == which] or [each for each in known if each.name == which]
    if not found:
        names = ", ".join(each.name for each in known) or "none"
        raise UserError(f"schedule {which}: not in experiment {client.experiment} (there: {names})")
    if len(found) > 1:
        ids = ", ".join(each.recurring_run_id for each in found)
        raise UserError(f"schedule {which}: {len(found)} of this name; name one by its id: {ids}")
    return found[0]


def _delete_jobs(client: Client, run_id: str) -> tuple[tuple[str, ...], str]:
    """Delete the Volcano Jobs that the run's Workflow owns; their names, and what was not done."""
    from components.volcano.api import Api, MissingError

    deleted: list[str] = []
    try:
        found = runs.workflow_of(client, run_id)
    except LatteError as error:
        return (), f"Volcano Jobs not looked at: {error}"
    if found is None or not found.uid:
        return (), "Volcano Jobs not looked at: the server does not tell the run's workflow"
    try:
        api = Api(found.namespace)
    except UserError:
        return (), "Volcano Jobs not looked at: KUBECONFIG is not set, and this is no pod of the cluster"
    try:
        for name in api.unfinished(found.uid):
            api.delete(name)
            deleted.append(name)
    except MissingError:
        return (), ""  # no Volcano there, so no Jobs
    except LatteError as error:
        return tuple(deleted), f"not all Volcano Jobs deleted: {step_log.one_line(str(error))}"
    return tuple(deleted), ""


def as_json(value: Any) -> str:
    """A Status, RunLine, Recurring or Stopped, or a list of them, as JSON; times in ISO 8601."""
    return json.dumps(_plain(value), indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, Status):
        return value.as_json()
    return {key: each.isoformat() if isinstance(each, datetime) else each for key, each in asdict(value).items()}
