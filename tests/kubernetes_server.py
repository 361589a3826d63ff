"""A Kubernetes API server with Volcano on loopback, for what a real one (tests/cluster) cannot be made to do: it cuts
watches and logs in the middle of a line, fails when it is told to, and runs the pods of Jobs as local processes.

Messages have the published shapes: Status objects, watch events, resource versions. Jobs are checked against Volcano's
CRD and its admission, pod templates against Kubernetes' schemas. The controller does what Volcano's does with policies,
retries and phases, and its plugins svc and env say to each pod who it is.
"""

import datetime
import json
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests import kubernetes_schemas

NAMESPACE = "latte"
STEP_POD = "run-step-1"
WORKFLOW = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run-abc12", "uid": str(uuid.UUID(int=7))}
_JOBS = re.compile(rf"/apis/batch\.volcano\.sh/v1alpha1/namespaces/{NAMESPACE}/jobs(?:/(?P<name>[^/]+))?")
_PODS = re.compile(rf"/api/v1/namespaces/{NAMESPACE}/pods(?:/(?P<name>[^/]+)(?P<log>/log)?)?")
_FINAL = ("Completed", "Failed", "Aborted", "Terminated")


class StatusError(Exception):
    """An answer other than 200."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
        self.body["message"] = message


@dataclass
class Cluster:
    """What the server keeps, and how it behaves.

    Attributes:
        runs_pods: whether a controller starts the Jobs' pods; otherwise tests set phases with `set_phase`.
        environment: variables that every pod gets, besides those of its template.
        forbidden: verbs on Jobs that the caller has no right to.
        has_volcano: whether the CRD is there.
        outages: so many requests are answered 503 from now on.
        cut_watches: so many watches are cut off, in the middle of a line, after their first event.
        cut_logs: after so many lines the next logs are cut off, one after the other, with a word of the kubelet's.
        calls: every request: method, path and query.
        bodies: the body of each of them.
    """

    url: str = ""
    runs_pods: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    has_volcano: bool = True
    outages: int = 0
    cut_watches: int = 0
    cut_logs: list[int] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)
    jobs: dict[str, dict] = field(default_factory=dict)
    pods: dict[str, dict] = field(default_factory=dict)
    logs: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    history: list[tuple[int, str, dict]] = field(default_factory=list)
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        owner = {**WORKFLOW, "controller": True, "blockOwnerDeletion": True}
        self.pods[STEP_POD] = {"metadata": {"name": STEP_POD, "uid": "u", "ownerReferences": [owner]}, "status": {}}

    def create(self, job: dict) -> dict:
        name = job["metadata"]["name"]
        if not self.has_volcano:
            raise StatusError(404, "NotFound", "the server could not find the requested resource")
        try:
            kubernetes_schemas.check(job)
        except kubernetes_schemas.Invalid as error:
            said = f'admission webhook "validatejob.volcano.sh" denied the request: {error.message}'
            raise StatusError(400, "BadRequest", said) from None
        with self.changed:
            if name in self.jobs:
                raise StatusError(409, "AlreadyExists", f'jobs.batch.volcano.sh "{name}" already exists')
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            job["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now, "namespace": NAMESPACE}
            self.jobs[name] = job
            self._record("ADDED", job)
        if self.runs_pods:
            threading.Thread(target=self._control, args=(job,), daemon=True).start()
        return job

    def get(self, name: str) -> dict:
        if name not in self.jobs:
            raise StatusError(404, "NotFound", f'jobs.batch.volcano.sh "{name}" not found')
        return self.jobs[name]

    def delete(self, name: str) -> dict:
        job = self.get(name)
        with self.changed:
            del self.jobs[name]
            self._record("DELETED", job)
        for pod in [pod for pod in self.pods if self._job_of(pod) == name]:
            if process := self.processes.get(pod):
                process.send_signal(signal.SIGTERM)
            del self.pods[pod]
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def set_phase(self, name: str, phase: str, **state: str) -> None:
        """What the controller would do."""
        with self.changed:
            job = self.jobs[name]
            self.jobs[name] = job = {
                **job,
                "metadata": {**job["metadata"]},
                "status": {"state": {"phase": phase, **state}},
            }
            self._record("MODIFIED", job)

    def add_pod(self, job: str, index: int, phase: str, lines: list[str], exit_code: int | None = None) -> None:
        """A pod of a Job as the kubelet shows it."""
        name = f"{job}-worker-{index}"
        self.logs[name] = [(_stamp(), line) for line in lines]
        self.pods[name] = {
            "metadata": {"name": name, "uid": str(uuid.uuid4()), "labels": {"volcano.sh/job-name": job}},
            "status": {"phase": phase},
        }
        if exit_code is not None:
            self._end_pod(name, exit_code)

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def _control(self, job: dict) -> None:
        """Start the pods, apply the first policy that fits when one ends, until the Job is in a final phase."""
        name, spec = job["metadata"]["name"], job["spec"]
        self.set_phase(name, "Pending")
        for start in range(1, spec["maxRetry"] + 1):
            pods = [self._start_pod(name, spec, index) for index in range(spec["tasks"][0]["replicas"])]
            self.set_phase(name, "Running")
            action = self._watch_pods(name, spec, pods)
            if action is None:
                return  # deleted meanwhile
            for pod in pods:
                self.processes[pod].send_signal(signal.SIGTERM)
                self.processes[pod].wait()
            if name not in self.jobs:
                return
            if action != "RestartJob":
                going, gone = {"TerminateJob": ("Terminating", "Terminated")}.get(action, ("Completing", "Completed"))
                self.set_phase(name, going)
                self.set_phase(name, gone)
                return
            if start < spec["maxRetry"]:
                self.set_phase(name, "Restarting", reason="PodFailed")
        self.set_phase(name, "Failed", reason="JobFailed", message="the Job's retries are used up")

    def _watch_pods(self, name: str, spec: dict, pods: list[str]) -> str | None:
        left = set(pods)
        while left and name in self.jobs:
            for pod in sorted(left):
                code = self.processes[pod].poll()
                if code is None:
                    continue
                left.discard(pod)
                code = code if code >= 0 else 128 - code
                self._end_pod(pod, code)
                event = "PodFailed" if code else "TaskCompleted" if not left else None
                for policy in spec["policies"]:
                    if (event and policy.get("event") == event) or (code and policy.get("exitCode") == code):
                        return policy["action"]
            with self.changed:
                self.changed.wait(0.1)
        return None

    def _start_pod(self, job: str, spec: dict, index: int) -> str:
        self.add_pod(job, index, "Running", [])
        pod = f"{job}-worker-{index}"
        container = spec["tasks"][0]["template"]["spec"]["containers"][0]
        # Where the pods of a cluster have names in its DNS, all of these are on this machine.
        hosts = ",".join(["localhost"] * spec["tasks"][0]["replicas"])
        given = {each["name"]: each["value"] for each in container["env"] if "value" in each and each["name"] != "HOME"}
        command = [sys.executable if part == "python3" else part for part in container["command"]]
        process = subprocess.Popen(
            command,
            env={**os.environ, **given, "VC_TASK_INDEX": str(index), "VC_WORKER_HOSTS": hosts, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.processes[pod] = process
        threading.Thread(target=self._collect, args=(pod, process), daemon=True).start()
        return pod

    def _collect(self, pod: str, process: subprocess.Popen) -> None:
        for line in process.stdout:  # whole lines, as a container runtime keeps them
            with self.changed:
                self.logs[pod].append((_stamp(), line.decode().rstrip("\n")))
                self.changed.notify_all()

    def _end_pod(self, pod: str, code: int) -> None:
        with self.changed:
            if pod in self.pods:
                ended = {"name": "worker", "state": {"terminated": {"exitCode": code}}}
                self.pods[pod]["status"] = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [ended]}
            self.changed.notify_all()

    def _record(self, event: str, job: dict) -> None:
        version = len(self.history) + 1
        job["metadata"]["resourceVersion"] = str(version)
        self.history.append((version, event, json.loads(json.dumps(job))))
        self.changed.notify_all()

    def _job_of(self, pod: str) -> str | None:
        return self.pods[pod]["metadata"].get("labels", {}).get("volcano.sh/job-name")


def _stamp() -> str:
    """As the kubelet stamps lines: without the zeros at the end of the fraction."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0") + "Z"


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
            cluster.calls.append(f"{self.command} {url.path} {url.query or '-'}")
            cluster.bodies.append(body or {})
            try:
                if cluster.outages > 0:
                    cluster.outages -= 1
                    raise StatusError(503, "ServiceUnavailable", "the server is currently unable to handle the request")
                answer = self._answer(url.path, query, body)
            except StatusError as error:
                self._send(error.body["code"], error.body)
                return
            if answer is not None:
                self._send(200, answer)

        def _answer(self, path: str, query: dict[str, str], body: Any) -> dict | None:
            if found := _JOBS.fullmatch(path):
                return self._jobs(found["name"], query, body)
            found = _PODS.fullmatch(path)
            if found is None or self.command != "GET":
                raise StatusError(404, "NotFound", "the server could not find the requested resource")
            if found["name"] is None:
                job = query["labelSelector"].removeprefix("volcano.sh/job-name=")
                items = [pod for name, pod in list(cluster.pods.items()) if cluster._job_of(name) == job]
                return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
            if found["name"] not in cluster.pods:
                raise StatusError(404, "NotFound", f'pods "{found["name"]}" not found')
            return self._log(found["name"], query) if found["log"] else cluster.pods[found["name"]]

        def _jobs(self, name: str | None, query: dict[str, str], body: Any) -> dict | None:
            watching = query.get("watch") in ("true", "True")
            reading = "watch" if watching else "get" if name else "list"
            verb = {"POST": "create", "DELETE": "delete"}.get(self.command, reading)
            if verb in cluster.forbidden:
                user = "system:serviceaccount:latte:pipeline-runner"
                said = f'jobs.batch.volcano.sh is forbidden: User "{user}" cannot {verb} resource "jobs"'
                raise StatusError(403, "Forbidden", said)
            if verb == "watch":
                return self._watch(query)
            if verb == "create":
                return cluster.create(body)
            if verb == "list" and cluster.has_volcano:
                return {"kind": "JobList", "items": list(cluster.jobs.values())}
            return cluster.delete(name) if verb == "delete" else cluster.get(name)

        def _watch(self, query: dict[str, str]) -> None:
            name = query["fieldSelector"].removeprefix("metadata.name=")
            seen, sent, cut = int(query.get("resourceVersion") or 0), 0, cluster.cut_watches > 0
            cluster.cut_watches -= cut
            self._start("application/json")
            ends = datetime.datetime.now() + datetime.timedelta(seconds=float(query["timeoutSeconds"]))
            while datetime.datetime.now() < ends:
                with cluster.changed:
                    fresh = [each for each in cluster.history if each[0] > seen]
                    if not fresh:
                        cluster.changed.wait(0.2)
                for version, event, job in fresh:
                    seen = version
                    if job["metadata"]["name"] != name:
                        continue
                    line = json.dumps({"type": event, "object": job}) + "\n"
                    if cut and sent:
                        self._chunk(line[: len(line) // 2])
                        self.close_connection = True
                        self.connection.close()
                        return
                    self._chunk(line)
                    sent += 1
            self._chunk("")

        def _log(self, pod: str, query: dict[str, str]) -> None:
            assert query["container"] == "worker"
            uid, sent = cluster.pods[pod]["metadata"]["uid"], 0
            cut = cluster.cut_logs.pop(0) if cluster.cut_logs else None
            self._start("text/plain")
            while True:
                with cluster.changed:
                    lines = cluster.logs[pod][sent:]
                    state = cluster.pods.get(pod, {})
                    over = state.get("metadata", {}).get("uid") != uid or state["status"]["phase"] != "Running"
                    if not lines and not over:
                        cluster.changed.wait(0.2)
                for stamp, line in lines:
                    if sent == cut:
                        self._chunk("failed to create fsnotify watcher: too many open files\n")
                        self.close_connection = True
                        self.connection.close()
                        return
                    self._chunk(f"{stamp} {line}\n")
                    sent += 1
                if over and not lines:
                    self._chunk("")
                    return

        def _start(self, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

        def _chunk(self, text: str) -> None:
            data = text.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def _send(self, status: int, answer: dict) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Connections end when their client is killed; what that leads to is seen in the tests."""


@contextmanager
def serve(folder: Path, **settings: Any) -> Iterator[tuple[Cluster, dict[str, str]]]:
    """A cluster on a free port while a `with` block lasts, and the environment of a step's pod on it."""
    cluster = Cluster(**settings)
    http = _Server(("127.0.0.1", 0), _handler(cluster))
    cluster.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    kubeconfig = folder / "kubeconfig"
    named = {"name": "here", "cluster": {"server": cluster.url}}
    context = {"name": "here", "context": {"cluster": "here", "user": "step"}}
    users = [{"name": "step", "user": {"token": "secret"}}]
    kubeconfig.write_text(
        yaml.safe_dump({"clusters": [named], "contexts": [context], "users": users, "current-context": "here"})
    )
    try:
        yield cluster, {"KUBECONFIG": str(kubeconfig), "KFP_POD_NAME": STEP_POD, "NAMESPACE": NAMESPACE}
    finally:
        cluster.close()
        http.shutdown()
        http.server_close()
