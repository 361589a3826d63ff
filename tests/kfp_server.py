"""An API server of Kubeflow Pipelines on loopback that keeps what it is told, over real HTTP.

Its routes, the shape of every request and the shape of every answer are those of `kfp_server_api`, the client that is
generated from KFP's published OpenAPI: they are read from that package, not written down here. What the real server
refuses (a name taken, an unknown version, a cron of five fields, an unknown field) is refused here too.
"""

import datetime
import email
import email.policy
import inspect
import json
import re
import ssl
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import kfp_server_api
import kfp_server_api.api as published
import yaml

# 64-bit integers are strings in answers; requests may use either.
_INT64 = {"max_concurrency", "interval_second", "total_size", "execution_id"}
# The recorded answer has more fields than the published client knows of.
_NEWER = {"V2beta1GetHealthzResponse"}
_WORKFLOW_ROUTE = re.compile(r"/apis/v1beta1/runs/(?P<run_id>[^/]+)")
# gRPC's codes, which the real server puts into its errors.
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 501: 12, 503: 14}
_LOG_ROUTE = re.compile(r"/apis/v1alpha1/runs/(?P<run_id>[^/]+)/nodes/(?P<node_id>[^/]+)/log")


class ApiError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Route:
    operation: str
    method: str
    pattern: re.Pattern[str]
    response: str | None
    body: str | None


def routes() -> list[Route]:
    """Every call of the published API."""
    found = []
    for _, module in inspect.getmembers(published, inspect.isclass):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if not name.endswith("_with_http_info"):
                continue
            source = inspect.getsource(function)
            path, method = re.search(r"call_api\(\s*'([^']+)', '([A-Z]+)'", source).groups()
            response = re.search(r"response_type='(\w+)'", source)
            argument = re.search(r"body_params = local_var_params\['(\w+)'\]", source)
            body = re.search(rf":type {argument[1]}: (\w+)", source) if argument else None
            pattern = re.escape(path).replace(r"\{", "{").replace(r"\}", "}")
            pattern = re.sub(r"\{([\w.\\]+)\}", lambda m: f"(?P<{m[1].split('.')[-1]}>[^/:]+)", pattern)
            found.append(
                Route(
                    name.removesuffix("_with_http_info"),
                    method,
                    re.compile(pattern),
                    response.group(1) if response else None,
                    body.group(1) if body else None,
                )
            )
    return found


def check(value: Any, kind: str, where: str) -> None:
    """Whether a JSON value has the shape of a published type; ApiError(400) where not."""
    if value is None:
        return
    plain = {"str": str, "bool": bool, "int": int, "float": (int, float)}
    if kind == "object":
        return
    if kind == "datetime":
        datetime.datetime.fromisoformat(value)
    elif kind in plain:
        if where.rsplit(".", 1)[-1] in _INT64 and str(value).isdigit():
            return
        if not isinstance(value, plain[kind]):
            raise ApiError(400, f"{where}: expected {kind}, got {value!r}")
    elif kind.startswith("list["):
        for index, item in enumerate(value):
            check(item, kind[5:-1], f"{where}[{index}]")
    elif kind.startswith("dict("):
        for key, item in value.items():
            check(item, kind[5:-1].split(",", 1)[1].strip(), f"{where}.{key}")
    else:
        model = getattr(kfp_server_api, kind)
        if allowed := getattr(model, "allowable_values", None):
            if value not in allowed:
                raise ApiError(400, f"{where}: {value!r} is not one of {allowed}")
            return
        types = {model.attribute_map[name]: each for name, each in model.openapi_types.items()}
        for key, item in value.items():
            if key not in types:
                raise ApiError(400, f'{where}: unknown field "{key}"')
            check(item, types[key], f"{where}.{key}")


@dataclass
class KfpServer:
    """What the server keeps, by id."""

    token: str | None = None
    multi_user: bool = False
    page_size_limit: int = 3
    url: str = ""
    calls: list[str] = field(default_factory=list)
    experiments: dict[str, dict] = field(default_factory=dict)
    pipelines: dict[str, dict] = field(default_factory=dict)
    versions: dict[str, dict] = field(default_factory=dict)
    runs: dict[str, dict] = field(default_factory=dict)
    recurring_runs: dict[str, dict] = field(default_factory=dict)
    logs: dict[tuple[str, str], str] = field(default_factory=dict)
    workflows: dict[str, dict] = field(default_factory=dict)
    workflows_served: bool = True
    broken: set[str] = field(default_factory=set)
    version: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    denied: dict[str, str] = field(default_factory=dict)
    ends_at_once: bool = False

    def healthz_service_get_healthz(self, **_: Any) -> dict:
        recorded = json.loads((Path(__file__).parent / "data/kfp/healthz.json").read_text())
        return {**recorded, "multi_user": self.multi_user}

    def experiment_service_list_experiments(self, query: dict, **_: Any) -> dict:
        return self._page("experiments", query, namespace=self._namespace(query))

    def experiment_service_create_experiment(self, body: dict, **_: Any) -> dict:
        self._namespace(body)
        self._free("experiments", body["display_name"])
        return self._keep("experiments", "experiment_id", body)

    def experiment_service_get_experiment(self, experiment_id: str, **_: Any) -> dict:
        return self._known("experiments", experiment_id)

    def pipeline_service_list_pipelines(self, query: dict, **_: Any) -> dict:
        # Without a namespace the shared ones, in it those of the namespace, as the real server does.
        return self._page("pipelines", query, namespace=query.get("namespace", ""))

    def pipeline_service_list_pipeline_versions(self, query: dict, pipeline_id: str, **_: Any) -> dict:
        self._known("pipelines", pipeline_id)
        return self._page("versions", query, "pipeline_versions", pipeline_id=pipeline_id)

    def pipeline_service_get_pipeline_version(self, pipeline_version_id: str, **_: Any) -> dict:
        return self._known("versions", pipeline_version_id)

    def upload_pipeline(self, query: dict, upload: str, **_: Any) -> dict:
        name = query.get("name") or yaml.safe_load(upload.split("\n---\n")[0])["pipelineInfo"]["name"]
        self._free("pipelines", name)
        body = {"display_name": name, "namespace": query.get("namespace", "")}
        made = self._keep("pipelines", "pipeline_id", body)
        self._version(made["pipeline_id"], name, upload)
        return made

    def upload_pipeline_version(self, query: dict, upload: str, **_: Any) -> dict:
        self._known("pipelines", query["pipelineid"])
        return self._version(query["pipelineid"], query["name"], upload)

    def run_service_list_runs(self, query: dict, **_: Any) -> dict:
        return self._page("runs", query, experiment_id=query.get("experiment_id"))

    def run_service_create_run(self, body: dict, **_: Any) -> dict:
        self._can_run(body)
        return self._keep("runs", "run_id", {**body, "state": "SUCCEEDED" if self.ends_at_once else "PENDING"})

    def run_service_get_run(self, run_id: str, **_: Any) -> dict:
        return self._known("runs", run_id)

    def run_service_terminate_run(self, run_id: str, **_: Any) -> dict:
        run = self._known("runs", run_id)
        if run.get("state") not in ("PENDING", "RUNNING", "PAUSED", None):
            raise ApiError(400, f"Failed to terminate a run {run_id}. Row not found")
        run["state"] = "CANCELING"
        return {}

    def run_service_retry_run(self, run_id: str, **_: Any) -> dict:
        run = self._known("runs", run_id)
        if run.get("state") not in ("FAILED",):
            raise ApiError(400, "Workflow must be Failed/Error to retry")
        run["state"] = "RUNNING"
        run["state_history"] = [*run.get("state_history", []), {"state": "RUNNING"}]
        return {}

    def run_service_delete_run(self, run_id: str, **_: Any) -> dict:
        self._known("runs", run_id)
        del self.runs[run_id]
        return {}

    def recurring_run_service_list_recurring_runs(self, query: dict, **_: Any) -> dict:
        return self._page("recurring_runs", query, "recurringRuns", experiment_id=query.get("experiment_id"))

    def recurring_run_service_create_recurring_run(self, body: dict, **_: Any) -> dict:
        self._can_run(body)
        if not 1 <= int(body.get("max_concurrency", 0)) <= 10:
            raise ApiError(400, "max_concurrency must be between 1 and 10")
        if len(body["trigger"]["cron_schedule"]["cron"].split()) != 6:
            raise ApiError(400, "cron: expected 6 fields")
        kept = {**body, "max_concurrency": str(body["max_concurrency"]), "status": "ENABLED"}
        return self._keep("recurring_runs", "recurring_run_id", kept)

    def recurring_run_service_disable_recurring_run(self, recurring_run_id: str, **_: Any) -> dict:
        self._known("recurring_runs", recurring_run_id).update(status="DISABLED", mode="DISABLE")
        return {}

    def recurring_run_service_enable_recurring_run(self, recurring_run_id: str, **_: Any) -> dict:
        self._known("recurring_runs", recurring_run_id).update(status="ENABLED", mode="ENABLE")
        return {}

    def recurring_run_service_delete_recurring_run(self, recurring_run_id: str, **_: Any) -> dict:
        self._known("recurring_runs", recurring_run_id)
        del self.recurring_runs[recurring_run_id]
        return {}

    def _namespace(self, given: dict) -> str | None:
        if not self.multi_user:
            return None  # whatever is asked for, as the real server has it (ReplaceNamespace)
        if not given.get("namespace"):
            raise ApiError(400, "a namespace is needed")
        return given["namespace"]

    def _version(self, pipeline_id: str, name: str, upload: str) -> dict:
        if any(v["display_name"] == name and v["pipeline_id"] == pipeline_id for v in self.versions.values()):
            raise ApiError(409, f"pipeline version {name} already exists")
        spec = [part for part in yaml.safe_load_all(upload) if part]
        body = {"pipeline_id": pipeline_id, "display_name": name, "pipeline_spec": {"pipeline_spec": spec[0]}}
        return self._keep("versions", "pipeline_version_id", body)

    def _can_run(self, body: dict) -> None:
        self._known("experiments", body["experiment_id"])
        version = self._known("versions", body["pipeline_version_reference"]["pipeline_version_id"])
        inputs = version["pipeline_spec"]["pipeline_spec"]["root"].get("inputDefinitions", {}).get("parameters", {})
        given = body.get("runtime_config", {}).get("parameters", {})
        for name, definition in inputs.items():
            if name not in given and not definition.get("isOptional") and "defaultValue" not in definition:
                raise ApiError(400, f"parameter {name} is missing")
        for name, value in given.items():
            if name not in inputs:
                raise ApiError(400, f"parameter {name} is not known to the pipeline")
            if value is None:
                raise ApiError(400, f"parameter {name}: null")

    def _known(self, table: str, key: str) -> dict:
        if key not in getattr(self, table):
            raise ApiError(404, f"{table[:-1]} {key} not found")
        return getattr(self, table)[key]

    def _free(self, table: str, name: str) -> None:
        if any(each["display_name"] == name for each in getattr(self, table).values()):
            raise ApiError(409, f"{table[:-1]} {name} already exists")

    def _keep(self, table: str, id_key: str, body: dict) -> dict:
        now = datetime.datetime.now(datetime.UTC).isoformat()
        made = {**body, id_key: str(uuid.uuid4()), "created_at": now}
        getattr(self, table)[made[id_key]] = made
        return made

    def _page(self, table: str, query: dict, key: str | None = None, **same: str | None) -> dict:
        rows = [
            row
            for row in getattr(self, table).values()
            if all(value is None or row.get(name) == value for name, value in same.items())
        ]
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
            assert predicate["key"] in ("display_name", "name"), predicate
            wanted = predicate.get("stringValue", predicate.get("string_value"))
            rows = [row for row in rows if row["display_name"] == wanted]
        order = query.get("sort_by", "").split()
        if order:
            rows.sort(key=lambda row: row[order[0]], reverse=order[1:] == ["desc"])
        first = int(query.get("page_token") or 0)
        size = min(int(query.get("page_size") or 10), self.page_size_limit)
        more = {"next_page_token": str(first + size)} if first + size < len(rows) else {}
        return {key or table: rows[first : first + size], "total_size": len(rows), **more}


def _handler(server: KfpServer) -> type[BaseHTTPRequestHandler]:
    known = routes()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                if server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
                    raise ApiError(401, "Unauthenticated")
                answer = self._call(body)
                status = 200
            except ApiError as error:
                code, said = _CODES.get(error.status, 2), str(error)
                details = [{"@type": "type.googleapis.com/google.rpc.Status", "code": code, "message": said}]
                status, answer = error.status, {"code": code, "message": said, "details": details}
            text = isinstance(answer, str)
            data = answer.encode() if text else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if text else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _call(self, body: bytes) -> Any:
            url = urlsplit(self.path)
            path = unquote(url.path)
            if found := _LOG_ROUTE.fullmatch(path):
                if "log" in server.broken:
                    raise ApiError(503, "the database is away")
                key = (found["run_id"], found["node_id"])
                if key not in server.logs:
                    # The real one has said 200 by then; its error is the text (run_log_server.go).
                    said = f"Failed to read logs for run {key[0]}: Failed to read logs from pod {key[1]} due to error "
                    said += f'opening log stream: pods "{key[1]}" not found'
                    return json.dumps({"error_message": said, "error_details": f"{said}\ngithub.com/kubeflow/…"})
                return server.logs[key]
            if (found := _WORKFLOW_ROUTE.fullmatch(path)) and server.workflows_served:
                server._known("runs", found["run_id"])
                return server.workflows.get(found["run_id"], {"run": {"id": found["run_id"]}, "pipeline_runtime": {}})
            if path == "/apis/v1beta1/healthz" and server.version:
                return {"tag_name": server.version, "multi_user": server.multi_user}
            for route in known:
                found = route.pattern.fullmatch(path)
                if found is None or route.method != self.command:
                    continue
                server.calls.append(route.operation)
                if route.operation in server.broken:
                    raise ApiError(503, "the database is away")
                if route.operation in server.denied:
                    raise ApiError(403, server.denied[route.operation])
                if route.operation in server.refused:
                    raise ApiError(400, server.refused[route.operation])
                arguments: dict[str, Any] = dict(found.groupdict())
                arguments["query"] = {key: values[0] for key, values in parse_qs(url.query).items()}
                if route.body:
                    arguments["body"] = json.loads(body)
                    check(arguments["body"], route.body, route.body)
                elif body and "multipart" in self.headers["Content-Type"]:
                    arguments["upload"] = _uploaded(self.headers["Content-Type"], body)
                operation = getattr(server, route.operation, None)
                if operation is None:
                    raise ApiError(501, f"{route.operation} is not played")
                answer = operation(**arguments)
                if route.response and route.response not in ("object", *_NEWER):
                    check(answer, route.response, route.response)
                return answer
            raise ApiError(404, f"no route {self.command} {path}")

        do_GET = do_POST = do_DELETE = do_PATCH = _serve  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Handler


def _uploaded(content_type: str, body: bytes) -> str:
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + body, policy=email.policy.HTTP).iter_parts()
    return next(part for part in parts if part.get_filename()).get_payload(decode=True).decode()


@contextmanager
def serve(certificate: ssl.SSLContext | None = None, **settings: Any) -> Iterator[KfpServer]:
    """A server on a free port while a `with` block lasts; over TLS where a certificate is given."""
    state = KfpServer(**settings)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    http.daemon_threads = True
    if certificate is not None:
        http.socket = certificate.wrap_socket(http.socket, server_side=True)
    state.url = f"http{'s' if certificate else ''}://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
