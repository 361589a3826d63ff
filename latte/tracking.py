"""Tell MLflow what a step has made, where the environment names a run of it; what fails there fails nothing here.

The variables are MLflow's own: MLFLOW_TRACKING_URI, MLFLOW_RUN_ID, MLFLOW_TRACKING_TOKEN or _USERNAME and _PASSWORD,
MLFLOW_TRACKING_AUTH, MLFLOW_WORKSPACE. On a cluster Kubeflow Pipelines sets them for every task; on one machine
`latte-pipeline run` names a parent run, and every task makes a run below it. The calls are those of MLflow's published
REST API (2.0), whose limits a batch keeps.
"""

import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from latte.credentials import for_header
from latte.errors import UserError
from latte.storage.s3_client import is_loopback
from latte.terminal import shown

URI_ENV, RUN_ENV, AUTH_ENV = "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_AUTH"
_EXPERIMENT_ENV = "MLFLOW_EXPERIMENT_ID"
_TOKEN_ENV, _USER_ENV, _PASSWORD_ENV = "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
# Set on one machine: the run of MLflow that stands for the whole pipeline.
PARENT_ENV = "LATTE_MLFLOW_PARENT"
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Limits of one log-batch, and of the texts in it.
_METRICS, _PARAMS, _TAGS = 1000, 100, 100
_KEY, _PARAM, _TAG = 250, 6000, 5000
_UNFIT = re.compile(r"[^\w\-. :/]", re.ASCII)
_CONNECT_S, _ANSWER_S = 5.0, 20.0
_TRIES = 2
_LONGEST = 400
# Prefix of the curve's metrics, as in TensorBoard: Kubeflow Pipelines logs the last loss under its bare name.
CURVE = "train/"


class _FailedError(Exception):
    """MLflow did not take something; the reason in a line, without any secret."""


class _MissingError(_FailedError):
    """MLflow knows no such thing."""


@dataclass
class Tracker:
    """One run of MLflow.

    What fails is one line on standard error, and nothing is sent after it.

    Attributes:
        uri: of the tracking server.
        run_id: of the run.
        experiment_id: of its experiment.
    """

    uri: str
    run_id: str = ""
    experiment_id: str = ""
    _failed: bool = False
    _sent_step: float | None = None
    _session: Any = field(default=None, repr=False)

    def batch(
        self,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Log parameters, numbers and tags."""
        now_ms = _now_ms()
        numbers = [_metric(key, value, 0, now_ms) for key, value in (metrics or {}).items()]
        texts = [{"key": _key(key), "value": _text(value)[:_PARAM]} for key, value in (params or {}).items()]
        marks = [{"key": _key(key), "value": _text(value)[:_TAG]} for key, value in (tags or {}).items()]
        self._log(numbers, texts, marks)

    def curve(self, lines: Sequence[str]) -> None:
        """Log what the run does not have yet of a training log: lines of JSON with the key "step" (`metrics.jsonl`)."""
        if self._failed:
            return
        rows = [json.loads(line) for line in lines]
        if self._sent_step is None:
            self._sent_step = self._last_step()
        new = [row for row in rows if row["step"] > self._sent_step]
        now_ms = _now_ms()
        points = [
            _metric(CURVE + key, value, row["step"], now_ms)
            for row in new
            for key, value in row.items()
            if key != "step" and _is_number(value)
        ]
        self._log(points)
        if new:
            self._sent_step = new[-1]["step"]

    def child(self, name: str) -> "Tracker":
        """A run below this one."""
        tags = [{"key": "mlflow.parentRunId", "value": self.run_id}, {"key": "mlflow.runName", "value": name}]
        made = self._ask("POST", "runs/create", _new_run(self.experiment_id, name, tags))
        run_id = made.get("run", {}).get("info", {}).get("run_id", "")
        return Tracker(self.uri, run_id, self.experiment_id, self._failed or not run_id, None, self._session)

    def end(self, status: str = FINISHED) -> None:
        """Say how the run has ended."""
        self._ask("POST", "runs/update", {"run_id": self.run_id, "status": status, "end_time": _now_ms()})

    @property
    def page(self) -> str:
        """Page of the run in MLflow's UI; "" where MLflow has failed."""
        return "" if self._failed else f"{self.uri}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def _last_step(self) -> float:
        known = self._ask("GET", "runs/get", {"run_id": self.run_id}).get("run", {}).get("data", {}).get("metrics", [])
        return max((float(each["step"]) for each in known if each["key"].startswith(CURVE)), default=-1.0)

    def _log(self, metrics: list[Any], params: Iterable[Any] = (), tags: Iterable[Any] = ()) -> None:
        parts = [("metrics", metrics, _METRICS), ("params", list(params), _PARAMS), ("tags", list(tags), _TAGS)]
        for name, values, limit in parts:
            for first in range(0, len(values), limit):
                self._ask("POST", "runs/log-batch", {"run_id": self.run_id, name: values[first : first + limit]})

    def _ask(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer; nothing, after a line, where MLflow fails."""
        if self._failed:
            return {}
        try:
            if self._session is None:
                self._session = _session(self.uri)
            return _request(self._session, self.uri, method, path, body)
        except _FailedError as error:
            self._failed = True
            print(f"MLflow: {error}; nothing more is tracked here", file=sys.stderr, flush=True)
            return {}


def of_environment() -> Tracker | None:
    """The run that the environment names; None where it names none."""
    uri, run_id = os.environ.get(URI_ENV, "").strip(), os.environ.get(RUN_ENV, "").strip()
    if not uri or not run_id:
        return None
    return Tracker(uri.rstrip("/"), run_id, os.environ.get(_EXPERIMENT_ENV, ""))


@contextlib.contextmanager
def of_task(task: str) -> Iterator[Tracker | None]:
    """The run of a task for a `with` block: the environment's, or a new one below the parent that it names.

    A new one is the environment's while the block lasts, and ends with it. None where there is no run.
    """
    parent = os.environ.get(PARENT_ENV)
    if not parent:
        yield of_environment()
        return
    run_id, _, experiment_id = parent.partition("/")
    made = Tracker(os.environ.get(URI_ENV, "").strip().rstrip("/"), run_id, experiment_id).child(task)
    if not made.run_id:
        yield None
        return
    os.environ[RUN_ENV] = made.run_id
    try:
        yield made
    except BaseException:
        made.end(FAILED)
        raise
    finally:
        del os.environ[RUN_ENV]
    made.end()


def begin(experiment: str, name: str, tags: Mapping[str, str]) -> Tracker | None:
    """A new run of an experiment, which is made where it is missing; None, after a line, where MLflow fails."""
    found = Tracker(os.environ[URI_ENV].strip().rstrip("/"))
    try:
        found._session = _session(found.uri)
        found.experiment_id = _experiment(found, experiment)
    except _FailedError as error:
        print(f"MLflow: {error}; this run is not tracked", file=sys.stderr, flush=True)
        return None
    marks = [{"key": key, "value": value} for key, value in {"mlflow.runName": name, **tags}.items()]
    made = found._ask("POST", "runs/create", _new_run(found.experiment_id, name, marks))
    found.run_id = made.get("run", {}).get("info", {}).get("run_id", "")
    return found if found.run_id else None


def flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Settings by dotted keys, those that are not set left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _experiment(tracker: Tracker, name: str) -> str:
    """Id of the experiment of this name.

    Raises:
        _FailedError: MLflow fails.
    """
    session, uri = tracker._session, tracker.uri
    try:
        found = _request(session, uri, "GET", "experiments/get-by-name", {"experiment_name": name})
        return str(found["experiment"]["experiment_id"])
    except _MissingError:
        return str(_request(session, uri, "POST", "experiments/create", {"name": name})["experiment_id"])


def _session(uri: str) -> Any:
    """A connection with the headers that the environment asks for.

    Raises:
        _FailedError: no URL, or a secret that no header takes.
    """
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _FailedError(f"{URI_ENV}: expected a URL, http://… or https://…")
    if parts.username or parts.password:
        raise _FailedError(
            f"{URI_ENV}: a user or password in the URL; they belong into {_USER_ENV} and {_PASSWORD_ENV}"
        )
    session = requests.Session()
    session.trust_env = not is_loopback(uri)  # no proxy leads to this machine
    retry = Retry(_TRIES, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), allowed_methods=None)
    session.mount(f"{parts.scheme}://", HTTPAdapter(max_retries=retry))
    if workspace := os.environ.get("MLFLOW_WORKSPACE"):
        session.headers["X-MLFLOW-WORKSPACE"] = workspace
    try:
        token = for_header(_TOKEN_ENV, os.environ.get(_TOKEN_ENV) or _account_token())
    except UserError as error:
        raise _FailedError(str(error)) from None
    user, password = os.environ.get(_USER_ENV), os.environ.get(_PASSWORD_ENV)
    if user and password:
        session.auth = (user, password)
    elif token:
        session.headers["Authorization"] = f"Bearer {token}"
    return session


def _account_token() -> str:
    """Token of the pod's service account, where Kubernetes is to say who asks."""
    if not os.environ.get(AUTH_ENV, "").startswith("kubernetes"):
        return ""
    try:
        return (_ACCOUNT / "token").read_text()
    except OSError:
        raise _FailedError(f"{AUTH_ENV}: this process has no token of a service account") from None


def _request(session: Any, uri: str, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    import requests

    place = f"{uri}/api/2.0/mlflow/{path}"
    given: dict[str, Any] = {"params": body} if method == "GET" else {"json": body}
    where = urlsplit(uri).hostname
    try:
        answer = session.request(method, place, timeout=(_CONNECT_S, _ANSWER_S), allow_redirects=False, **given)
    except requests.exceptions.RequestException as error:
        raise _FailedError(f"{where}: no answer ({type(error).__name__})") from None
    try:
        value = answer.json()
    except ValueError:
        value = None
    if answer.status_code == 200 and isinstance(value, dict):
        return value
    told = value if isinstance(value, dict) else {"message": "and no JSON"}
    said = f"{where}: {path} was answered {answer.status_code} {' '.join(str(told.get('message', '')).split())}"
    kind = _MissingError if told.get("error_code") == "RESOURCE_DOES_NOT_EXIST" else _FailedError
    raise kind(shown(said)[:_LONGEST])


def _new_run(experiment_id: str, name: str, tags: list[dict[str, str]]) -> dict[str, Any]:
    return {"experiment_id": experiment_id, "run_name": name, "start_time": _now_ms(), "tags": tags}


def _metric(key: str, value: float, step: int, now_ms: int) -> dict[str, Any]:
    # As protobuf says them in JSON.
    said: Any = value
    if not math.isfinite(value):
        said = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return {"key": _key(key), "value": said, "timestamp": now_ms, "step": step}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of the values that are numbers."""
    return {key: value for key, value in values.items() if _is_number(value)}


def _key(key: str) -> str:
    return _UNFIT.sub("_", key)[:_KEY]


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # numbers come from Kubeflow Pipelines as floats
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _now_ms() -> int:
    return round(time.time() * 1000)
