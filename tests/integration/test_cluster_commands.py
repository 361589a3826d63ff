"""submit, schedule, status, logs and doctor as a user calls them, against servers on loopback."""

import base64
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from pipelines.store import Store
from tests import kfp_server
from tests.e2e.runs import BIN, REPOSITORY

CONFIG = ("-c", "configs/demo/pipeline.yaml")
# What a namespace made from manifests/ holds, by the path under which Kubernetes has it.
CLUSTER = {
    "/api/v1/namespaces/team/secrets/latte-s3": {
        "kind": "Secret",
        "data": {
            key: base64.b64encode(b"value").decode()
            for key in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
        },
    },
    "/api/v1/namespaces/team/configmaps/kfp-launcher": {
        "kind": "ConfigMap",
        "data": {"defaultPipelineRoot": "s3://latte/kfp"},
    },
}


def granted() -> set[tuple[str, str, str]]:
    """(API group, resource, verb) of the role for steps that launch."""
    path = REPOSITORY / "manifests/overlays/ascend-mindcluster/volcano-role.yaml"
    role = next(each for each in yaml.safe_load_all(path.read_text()) if each["kind"] == "Role")
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.fixture
def server() -> Iterator[kfp_server.KfpServer]:
    with kfp_server.serve(token="right") as served:
        yield served


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[tuple[Path, dict]]:
    """A kubeconfig of a loopback Kubernetes API, and the objects that it has."""
    objects = json.loads(json.dumps(CLUSTER))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(objects.get(self.path))

        def do_POST(self) -> None:
            """A LocalSubjectAccessReview: allowed is what the roles in manifests/ grant to latte-runner."""
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/apis/authorization.k8s.io/v1/namespaces/team/localsubjectaccessreviews"
            wanted = review["spec"]["resourceAttributes"]
            resource = "/".join(wanted[key] for key in ("resource", "subresource") if key in wanted)
            asked = (wanted.get("group", ""), resource, wanted["verb"])
            ours = review["spec"]["user"] == "system:serviceaccount:team:latte-runner"
            self._answer({**review, "status": {"allowed": ours and asked in granted()}})

        def _answer(self, found: dict | None) -> None:
            data = json.dumps(found or {"kind": "Status", "code": 404}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    path = tmp_path / "kubeconfig"
    named = {"name": "here"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{**named, "cluster": {"server": f"http://127.0.0.1:{http.server_port}"}}],
        "users": [{**named, "user": {}}],
        "contexts": [{**named, "context": {"cluster": "here", "user": "here"}}],
        "current-context": "here",
    }
    path.write_text(yaml.safe_dump(config))
    yield path, objects
    http.shutdown()
    http.server_close()


def call(
    server: kfp_server.KfpServer, home: Path, *arguments: str, env: dict | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HOME": str(home),
        "KUBECONFIG": str(home / "none"),
        "KF_PIPELINES_ENDPOINT": server.url,
        "KFP_TOKEN": "right",
        **(env or {}),
    }
    command = [str(BIN / "latte-pipeline"), *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)


def test_compile(server: kfp_server.KfpServer, tmp_path: Path) -> None:
    done = call(
        server, tmp_path, "compile", "--image", "registry.example.com/latte:7", "--output", str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stderr
    written = [Path(line) for line in done.stdout.splitlines()]
    names = {path.relative_to(tmp_path / "out") for path in written}
    kept = [*REPOSITORY.glob("pipelines/*.yaml"), *REPOSITORY.glob("components/*/*.yaml")]
    assert names == {path.relative_to(REPOSITORY) for path in kept}
    for path in written:
        images = [line.split()[-1] for line in path.read_text().splitlines() if line.lstrip().startswith("image: ")]
        assert set(images) == {"registry.example.com/latte:7"}, path
    (tmp_path / "file").write_text("")
    refused = call(server, tmp_path, "compile", "--output", str(tmp_path / "file"))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert "Not a directory" in refused.stderr


def test_submit_schedule_status_logs(server: kfp_server.KfpServer, tmp_path: Path) -> None:
    place = ("--root", "s3://bucket/x", "--image", "registry.example.com/latte:7")
    sent = call(server, tmp_path, "submit", *CONFIG, *place, "encode.dataset.videos=s3://bucket/v")
    assert sent.returncode == 0, sent.stderr
    assert set(re.findall(r"'image': '([^']+)'", str(server.versions))) == {"registry.example.com/latte:7"}
    run_id = sent.stdout.split()[0]
    assert server.runs[run_id]["runtime_config"]["parameters"]["encode"]["dataset"] == {"videos": "s3://bucket/v"}

    schedule = ("schedule", "--pipeline", "nightly_retrain", *CONFIG, "--root", "s3://bucket/x", "--cron")
    made = call(server, tmp_path, *schedule, "0 0 2 * * *")
    again = call(server, tmp_path, *schedule, "0 0 2 * * *")
    assert ": scheduled, 0 0 2 * * * UTC" in made.stdout
    assert ": scheduled already, " in again.stdout
    assert len(server.recurring_runs) == 1

    server.runs[run_id] |= {
        "state": "FAILED",
        "run_details": {
            "task_details": [
                {"task_id": "1", "display_name": "train", "state": "FAILED", "pod_name": "pod-1",
                 "start_time": "2026-01-02T03:04:00Z", "end_time": "2026-01-02T03:04:30Z"}
            ]
        },
    }  # fmt: skip
    server.logs[(run_id, "pod-1")] = "step 1\nerror: train: no latents\n"
    shown = call(server, tmp_path, "status", "--wait", run_id)
    assert (shown.returncode, len(shown.stderr.splitlines())) == (1, 1), shown.stderr
    assert "FAILED       30 s  train" in shown.stdout
    assert "[train] error: train: no latents\n" in call(server, tmp_path, "logs", run_id).stdout


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (("submit", *CONFIG), {}, "a cluster needs --root s3://bucket/prefix"),
        (("submit", *CONFIG, "--root", "s3://b/x", "train.steps=0"), {}, "train: steps"),
        (("schedule", *CONFIG, "--root", "s3://b/x", "--cron", "0 2 * * *"), {}, '"0 0 2 * * *"'),
        (("status", "nothing"), {"KFP_TOKEN": "old"}, "the token has expired"),
        (("status", "nothing"), {}, "not found there"),
        (("status", "nothing"), {"KF_PIPELINES_ENDPOINT": "kubeflow.example.com"}, "expected a URL"),
    ],
)
def test_mistakes_are_one_line(
    server: kfp_server.KfpServer, tmp_path: Path, arguments: tuple[str, ...], env: dict, message: str
) -> None:
    done = call(server, tmp_path, *arguments, env=env)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert message in done.stderr


@pytest.mark.parametrize("s3_root", ["seaweedfs"], indirect=True)
def test_doctor(
    server: kfp_server.KfpServer, store: Store, s3_root: str, kubeconfig: tuple[Path, dict], tmp_path: Path
) -> None:
    path, objects = kubeconfig
    arguments = ("doctor", "--root", s3_root, "--namespace", "team")
    found = call(server, tmp_path, *arguments, env={"KUBECONFIG": str(path)})
    assert found.returncode == 1
    lines = {line.split(": ")[0].strip(): line for line in found.stdout.splitlines()}
    problems = [line for line in lines.values() if "PROBLEM" in line]
    assert len(problems) == 1, found.stdout + found.stderr
    assert "jobs.batch.volcano.sh: not there; install Volcano" in problems[0]

    objects["/apis/apiextensions.k8s.io/v1/customresourcedefinitions/jobs.batch.volcano.sh"] = {
        "kind": "CustomResourceDefinition",
        "spec": {"group": "batch.volcano.sh", "names": {"kind": "Job", "plural": "jobs"}, "scope": "Namespaced",
                 "versions": []},
    }  # fmt: skip
    steps = {"KUBECONFIG": str(path), "KFP_SERVICE_ACCOUNT": "latte-runner"}
    whole = call(server, tmp_path, *arguments, env=steps)
    assert (whole.returncode, whole.stderr) == (0, ""), whole.stdout + whole.stderr
    assert whole.stdout.count("ok  ") == 7
    assert "version: not looked at" in whole.stdout
    other = call(server, tmp_path, *arguments, env={**steps, "KFP_SERVICE_ACCOUNT": "pipeline-runner"})
    (problem,) = [line for line in other.stdout.splitlines() if "PROBLEM" in line]
    assert "pipeline-runner in team may not create jobs, get jobs" in problem
    assert "manifests/overlays/ascend-mindcluster" in problem

    server.version = "2.0.5"
    del objects["/api/v1/namespaces/team/secrets/latte-s3"]["data"]["AWS_SECRET_ACCESS_KEY"]
    wrong = call(server, tmp_path, *arguments, env={"KUBECONFIG": str(path), "AWS_SECRET_ACCESS_KEY": "wrong"})
    assert wrong.returncode == 1
    assert wrong.stdout.count("PROBLEM") == 4, wrong.stdout
    assert "the server is Kubeflow Pipelines 2.0.5, older than the SDK" in wrong.stdout
    assert "no AWS_SECRET_ACCESS_KEY in it" in wrong.stdout
    assert "check AWS_SECRET_ACCESS_KEY" in wrong.stdout
    assert store.secret_key not in wrong.stdout


@pytest.mark.parametrize("s3_root", ["swift"], indirect=True)
def test_doctor_with_an_old_token_no_cluster_and_a_store_that_does_not_do(
    server: kfp_server.KfpServer, s3_root: str, tmp_path: Path
) -> None:
    found = call(server, tmp_path, "doctor", "--root", s3_root, env={"KFP_TOKEN": "old"})
    assert (found.returncode, found.stderr) == (1, "")
    said = [line.strip().split("  ", 1) for line in found.stdout.splitlines()]
    assert [(mark, line.split(":")[0]) for mark, line in said] == [
        ("PROBLEM", "Kubeflow Pipelines"), ("ok", "bucket"), ("PROBLEM", "conditional writes"), ("-", "namespace")
    ]  # fmt: skip
    assert "the token has expired; set KFP_TOKEN to a new one" in said[0][1]
    assert "keep the registry in a store that does" in said[2][1]
