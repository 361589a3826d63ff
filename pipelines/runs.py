"""The runs of an experiment: which there are, and what the server knows of one."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote

from latte.errors import LatteError, UserError
from pipelines import dag, step_log, workflow
from pipelines.client import REQUEST_TIMEOUT_S, Client
from pipelines.dag import DagStep
from pipelines.status import CANCELED, CANCELING, ENDED, FAILED, PENDING, between, time_of

_PAGE = 50


@dataclass(frozen=True)
class RunLine:
    """A run in a list.

    Attributes:
        run_id: KFP's.
        name: as in the UI.
        state: as in `Status`.
        created: when.
        seconds: from its creation to its end, or until now.
        schedule: id of the schedule that started it; "" of none.
    """

    run_id: str
    name: str
    state: str
    created: datetime | None
    seconds: float | None
    schedule: str


def newest_first(client: Client, limit: int = 20) -> list[RunLine]:
    """The newest runs of the experiment, archived ones left out, newest first; none where it does not exist yet."""
    experiment = experiment_id(client)
    if experiment is None:
        return []
    found: list[RunLine] = []
    token = ""
    while len(found) < limit:
        page = client.ask("runs", partial(_page, experiment=experiment, token=token))
        found += [line_of(run) for run in page.runs or [] if str(run.storage_state) != "ARCHIVED"]
        token = page.next_page_token or ""
        if not token:
            break
    return found[:limit]


def _page(kfp: Any, experiment: str, token: str) -> Any:
    return kfp.list_runs(page_token=token, page_size=_PAGE, sort_by="created_at desc", experiment_id=experiment)


def newest(client: Client) -> str:
    """Id of the newest run.

    Raises:
        UserError: there is none.
    """
    found = newest_first(client, 1)
    if not found:
        raise UserError(f"{client.host}: no run in experiment {client.experiment} yet; start one with submit")
    return found[0].run_id


def find(client: Client, run_id: str) -> Any:
    """The run as KFP's v2beta1 has it.

    Raises:
        UserError: there is none, or it belongs to another experiment.
    """
    import kfp_server_api

    def get(kfp: Any) -> Any:
        try:
            return kfp.get_run(run_id)
        except kfp_server_api.ApiException as error:
            if error.status != 404:
                raise
        raise UserError(f"run {run_id}: not found at {client.host}; latte-pipeline runs lists those that are there")

    run = client.ask(f"run {run_id}", get)
    if run.experiment_id and run.experiment_id != experiment_id(client):
        other = client.ask("experiment", lambda kfp: kfp.get_experiment(experiment_id=run.experiment_id)).display_name
        raise UserError(
            f"run {run_id}: of experiment {other}, not of {client.experiment}; give --experiment {other} if it is meant"
        )
    return run


def experiment_id(client: Client) -> str | None:
    """Id of the experiment; None where nobody has made it yet."""

    def get(kfp: Any) -> Any:
        try:
            return kfp.get_experiment(experiment_name=client.experiment, namespace=client.namespace)
        except ValueError:
            return None

    found = client.ask(f"experiment {client.experiment}", get)
    return None if found is None else str(found.experiment_id)


def steps_of(client: Client, run: Any) -> tuple[DagStep, ...]:
    """Of the pipeline that the run is of; none where that version was deleted."""
    return dag.steps(spec_of(client, run))


def spec_of(client: Client, run: Any) -> Any:
    """The specification of the pipeline that the run is of; None where that version was deleted."""
    import kfp_server_api

    reference = run.pipeline_version_reference
    if run.pipeline_spec or reference is None:
        return run.pipeline_spec

    def get(kfp: Any) -> Any:
        try:
            return kfp.get_pipeline_version(reference.pipeline_id, reference.pipeline_version_id)
        except kfp_server_api.ApiException as error:
            if error.status != 404:
                raise
            return None

    version = client.ask("pipeline version", get)
    return None if version is None else version.pipeline_spec


def workflow_of(client: Client, run_id: str) -> workflow.Workflow | None:
    """From the v1beta1 answer; None where the server has no such route, or no workflow yet."""
    import kfp_server_api

    def get(api: Any) -> Any:
        try:
            answer = api.call_api(
                f"/apis/v1beta1/runs/{quote(run_id, safe='')}",
                "GET",
                auth_settings=["Bearer"],
                response_type="object",
                _return_http_data_only=True,
                _request_timeout=REQUEST_TIMEOUT_S,
            )
        except kfp_server_api.ApiException as error:
            if error.status not in (404, 405, 501):
                raise
            return None
        runtime = answer.get("pipeline_runtime") if isinstance(answer, dict) else None
        return runtime.get("workflow_manifest") if isinstance(runtime, dict) else None

    manifest = client.send(f"workflow of run {run_id}", get)
    if not manifest:
        return None
    try:
        return workflow.read(manifest)
    except LatteError as error:
        raise LatteError(f"{client.host}: run {run_id}: {error}") from None


def details_of(run: Any) -> list[dict[str, Any]]:
    """KFP's own task details, one for each node of the workflow as it once was."""
    listed = (run.run_details.task_details or []) if run.run_details else []
    keys = ("display_name", "state", "start_time", "end_time")
    return [{key: getattr(each, key) for key in keys} for each in listed]


def state_of(run: Any) -> str:
    """The run's; a run that was stopped ends as FAILED in KFP, with CANCELING before it."""
    state = str(run.state or PENDING)
    before = [str(each.state) for each in run.state_history or [] if str(each.state) != state]
    return CANCELED if state == FAILED and before and before[-1] == CANCELING else state


def line_of(run: Any) -> RunLine:
    """The run in a list."""
    created = time_of(run.created_at)
    state = state_of(run)
    finished = time_of(run.finished_at) if state in ENDED else None
    name = step_log.one_line(run.display_name or "")
    seconds = between(created, finished, datetime.now(UTC))
    return RunLine(str(run.run_id), name, state, created, seconds, str(run.recurring_run_id or ""))
