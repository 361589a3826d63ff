"""Have a step's work done by a Volcano Job and wait for it: create or adopt, follow, explain, cancel.

The Job's name follows from the run, the task and the Job's spec, so that a step that is tried again finds the Job that
it left and goes on waiting for it. SIGTERM deletes the Job; where there is no time for that, its pods end with the
lease that only a waiting step renews (`components.volcano.lease`).
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.placement import Launch
from components.volcano import job as jobs
from components.volcano import lease as leases
from components.volcano.api import Api, MissingError, TakenError
from components.volcano.logs import Logs
from components.volcano.worker import result_uri
from components.work import Work
from latte import signals, storage, tracking
from latte.errors import LatteError, UserError
from latte.storage import manifest

DONE, FAILED = jobs.DONE, jobs.FAILED
# Beyond the pods' own deadline: for the queue's and the controller's reaction.
_SLACK_S = 120.0
_GONE_WITHIN_S = 300.0
_POLL_S = 1.0
_MLFLOW = "MLFLOW_"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class _StopError(BaseException):
    """SIGTERM or Ctrl-C came."""


def run(work: Work, launch: Launch) -> manifest.Manifest:
    """Create the Job, or adopt the one that an earlier try of this step left, and return what it made.

    Raises:
        UserError: no rights to launch, no Volcano, a name that is taken, or a mistake that the work found.
        LatteError: the Job failed, took too long or was deleted, or this step was asked to stop.
    """
    work.config()  # a mistake in the settings is told before anything is launched
    api = Api(_namespace())
    pod = _own_pod(api)
    owner = _workflow(pod)
    workers = int(work.arguments["num_tasks"]) if work.shared else launch.volcano.nodes
    folder = storage.join(str(work.wired["root"]), "launched", manifest.fingerprint(owner["uid"], work.task)[:16])
    portable = work.portable(folder)
    work_uri = storage.join(folder, manifest.fingerprint(asdict(portable))[:16], "work.json")
    portable.write(work_uri)
    job = jobs.build(launch, work_uri, workers, not work.shared, work.task, owner, _mlflow(pod))
    name = job["metadata"]["name"]
    with _stopped_by_signals():
        try:
            # Before anything else is asked of the cluster: the pods of an earlier try may be about to give up.
            with leases.renewed(leases.uri_of(work_uri), launch.volcano.lease_s):
                _have_done(api, job, launch, workers, work.task)
        except _StopError:
            api.delete(name)
            raise LatteError(
                f"asked to stop: Volcano Job {name} is being deleted; run the step again to go on"
            ) from None
    results = [
        manifest.read(result_uri(work_uri.rsplit("/", 1)[0], index)) for index in range(workers if work.shared else 1)
    ]
    return _together(results) if work.shared else results[0]


def _have_done(api: Api, wanted: dict[str, Any], launch: Launch, workers: int, task: str) -> None:
    """Create or adopt the Job and wait until it is done; one whose pods gave up before it was adopted is made anew."""
    name = wanted["metadata"]["name"]
    while True:
        job, is_adopted = _create(api, wanted)
        with Logs(api, name, workers) as logs:
            phase = _wait(api, job, launch)
        if phase == DONE:
            return
        pods = {pod["metadata"]["name"]: pod for pod in api.pods(name)}
        codes = {pod: _exit_code(found) for pod, found in pods.items()}
        if not (is_adopted and leases.EXIT_CODE in codes.values()):
            raise _failure(task, name, phase, codes, {pod: _cause(found) for pod, found in pods.items()}, logs)


def _create(api: Api, job: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The Job on the cluster, a new one also in place of one that has failed; whether it is that of an earlier try."""
    name, wanted = job["metadata"]["name"], job["metadata"]["annotations"][jobs.HASH]
    deadline = time.monotonic() + _GONE_WITHIN_S
    while True:
        try:
            made = api.create(job)
            _say(f"Volcano Job {name}: created, {job['spec']['tasks'][0]['replicas']} pod(s)")
            return made, False
        except TakenError:
            try:
                found = api.get(name)
            except MissingError:
                continue
        if found["metadata"].get("annotations", {}).get(jobs.HASH) != wanted:
            raise UserError(
                f"Volcano Job {name}: the name is taken by a Job with another spec; kubectl delete vcjob {name}"
            )
        going = not found["metadata"].get("deletionTimestamp")
        if going and _phase(found) not in FAILED:
            _say(f"Volcano Job {name}: adopted from an earlier try of this step, {_phase(found)}")
            return found, True
        if going:
            _say(f"Volcano Job {name}: {_phase(found)} in an earlier try of this step; it is made anew")
            api.delete(name)
        if time.monotonic() > deadline:
            raise LatteError(f"Volcano Job {name}: not gone {_GONE_WITHIN_S:.0f} s after it was deleted; look at it")
        time.sleep(_POLL_S)


def _wait(api: Api, job: dict[str, Any], launch: Launch) -> str:
    """Follow the Job to its last phase; a watch that ends or is cut is taken up again."""
    name, uid, shown = job["metadata"]["name"], job["metadata"]["uid"], ""
    created = datetime.fromisoformat(job["metadata"]["creationTimestamp"])
    limit_s = launch.deadline_s + _SLACK_S
    for found in _states(api, job, lambda: limit_s - (datetime.now(UTC) - created).total_seconds()):
        if found["metadata"]["uid"] != uid or found["metadata"].get("deletionTimestamp"):
            raise LatteError(f"Volcano Job {name}: somebody deleted it")
        phase = _phase(found)
        if phase != shown:
            _say(f"Volcano Job {name}: {phase}{_why(found)}")
            shown = phase
        if phase == DONE or phase in FAILED:
            return phase
    api.delete(name)
    raise LatteError(
        f"Volcano Job {name}: {shown}, not done {launch.deadline_s} s after its creation, and deleted; raise the step's"
        " deadline_s in the settings' section cluster if it only needs longer"
    )


def _states(api: Api, job: dict[str, Any], left_s: Any) -> Iterator[dict[str, Any]]:
    """The Job's states, as long as there is time left."""
    while (remaining := left_s()) > 0:
        try:
            found = api.get(job["metadata"]["name"])
        except MissingError as error:
            raise LatteError(
                f"{error}: somebody deleted it, or it was kept for too short a time (volcano.keep_s)"
            ) from None
        yield found
        yield from api.changes(found, remaining)
        time.sleep(min(_POLL_S, max(0.0, left_s())))


def _failure(
    task: str, name: str, phase: str, codes: dict[str, int | None], causes: dict[str, str], logs: Logs
) -> LatteError:
    """The pods' last words as an error; the user's to mend where one of them says so.

    Args:
        task: the step's.
        name: of the Job.
        phase: its last.
        codes: exit codes by the names of the pods.
        causes: what Kubernetes says of their ends, where that is more than the code.
        logs: their last lines.
    """
    failed = [pod for pod, code in codes.items() if code] or list(logs.tails)
    kind = UserError if UserError.exit_code in codes.values() else LatteError
    tellers = (UserError.exit_code, leases.EXIT_CODE)  # the others leave with them
    for pod in sorted(failed, key=lambda pod: codes.get(pod) not in tellers):
        for line in reversed(list(logs.tails.get(pod, ()))):
            if line.startswith("error: "):
                said = line.removeprefix("error: ").removeprefix(f"{task}: ")
                return kind(f"{said} (pod {pod} of Volcano Job {name}, {phase})")
    tails = [f"{pod}: {line}" for pod in sorted(failed) for line in list(logs.tails.get(pod, ()))]
    ended = ", ".join(
        f"{pod} with code {code}" + (f", {causes[pod]}" if causes[pod] else "")
        for pod, code in sorted(codes.items())
        if code
    )
    ends = "; the ends of the logs:\n" + "\n".join(tails) if tails else "; its pods left no logs"
    return kind(f"Volcano Job {name}: {phase}{f' ({ended})' if ended else ''}{ends}")


def _exit_code(pod: dict[str, Any]) -> int | None:
    for status in pod.get("status", {}).get("containerStatuses", []):
        if ended := status.get("state", {}).get("terminated"):
            return int(ended["exitCode"])
    return None


def _cause(pod: dict[str, Any]) -> str:
    """Kubernetes' word for why a pod ended, for example OOMKilled, Evicted or DeadlineExceeded; "" of any other end."""
    status = pod.get("status", {})
    words = [status.get("reason")]
    words += [each.get("state", {}).get("terminated", {}).get("reason") for each in status.get("containerStatuses", [])]
    return next((str(word) for word in words if word and word not in ("Error", "Completed")), "")


def _together(parts: list[manifest.Manifest]) -> manifest.Manifest:
    """The parts of all workers as one."""
    counts: dict[str, int] = {}
    for part in parts:
        for key, count in part.counts.items():
            counts[key] = counts.get(key, 0) + count
    return parts[0].model_copy(
        update={
            "shards": [shard for part in parts for shard in part.shards],
            "counts": counts,
            "rejects": [reject for part in parts for reject in part.rejects],
            "seconds": sum(part.seconds for part in parts),
        }
    )


def _namespace() -> str:
    """Of this pod."""
    given = os.environ.get("NAMESPACE")
    if not given and not _NAMESPACE_FILE.exists():
        raise UserError("NAMESPACE is not set, and this is no pod with a service account: run this step on the cluster")
    return given or _NAMESPACE_FILE.read_text().strip()


def _own_pod(api: Api) -> dict[str, Any]:
    """This pod."""
    name = os.environ.get("KFP_POD_NAME")
    if not name:
        raise UserError("KFP_POD_NAME is not set: run this step on the cluster")
    return api.pod(name)


def _mlflow(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Variables with which Kubeflow Pipelines' plugin lets a pod log to MLflow; of secrets the references alone.

    None where Kubernetes is to say who asks: the Job's pods have no token of a service account. The waiting step tells
    MLflow of the result itself; without these variables there is only no curve before that.
    """
    found = [each for container in pod.get("spec", {}).get("containers", []) for each in container.get("env") or []]
    found = [each for each in found if each["name"].startswith(_MLFLOW)]
    if any(each["name"] == tracking.AUTH_ENV for each in found):
        return []
    named = {
        each["name"]: {key: each[key] for key in ("name", "value", "valueFrom") if each.get(key)} for each in found
    }
    return list(named.values())


def _workflow(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of this pod's ownerReferences that names its Workflow, without a claim to control what it is put on."""
    for owner in pod["metadata"].get("ownerReferences", []):
        if owner["kind"] == "Workflow":
            return {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
    name = os.environ.get("KFP_POD_NAME")
    raise LatteError(
        f"pod {name}: owned by no Workflow; a Volcano Job that nothing deletes with its run is not launched"
    )


def _phase(job: dict[str, Any]) -> str:
    return str(job.get("status", {}).get("state", {}).get("phase") or "Pending")


def _why(job: dict[str, Any]) -> str:
    state = job.get("status", {}).get("state", {})
    said = ": ".join(str(state[key]) for key in ("reason", "message") if state.get(key))
    return f" ({said})" if said else ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """While it lasts, SIGTERM and SIGINT raise `_StopError`; a second one changes nothing."""

    def stop(*_: object) -> None:
        signals.ignore()
        raise _StopError

    with signals.handled_by(stop):
        yield
