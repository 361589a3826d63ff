"""submit, schedule, doctor and what operates runs and schedules, as a user calls them, against servers on loopback."""

import base64
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from pipelines.cli import cli
from pipelines.store import Store
from tests import kfp_server
from tests import recorded_kfp as recorded
from tests.e2e.runs import BIN, REPOSITORY

SHARDS_POD = "latte-train-and-evaluate-sfcwk-system-container-impl-3461973333"
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


def test_submit_and_schedule(server: kfp_server.KfpServer, tmp_path: Path) -> None:
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

    waiting = call(server, tmp_path, "status")  # of the newest: the one just sent
    assert waiting.stdout.startswith("PENDING  train_and_evaluate demo  "), waiting.stderr
    assert waiting.stdout.count(" WAITING ") == 16


def test_the_status_of_recorded_runs_as_tables_json_and_exit_codes(
    server: kfp_server.KfpServer, tmp_path: Path
) -> None:
    run_id = recorded.play(server, recorded.FAILED_STEP)
    server.logs[(run_id, SHARDS_POD)] = recorded.FAILED_LOG
    shown = call(server, tmp_path, "status", "--wait", run_id)
    assert shown.returncode == 1
    assert shown.stderr.splitlines()[-1].endswith(f"FAILED in encode: shards; latte-pipeline logs {run_id} tells more")
    heads, *rows = shown.stdout.splitlines()[1:]
    assert heads.split() == ["task", "state", "time", "done", "tries"]
    assert len(rows) == 15
    failed = next(row for row in rows if row.startswith("encode: shards"))
    assert failed.split(None, 6)[2:] == ["FAILED", "10", "s", "0/1", "1      encode (all of 1): create Volcano Job "
                                         "latte-encode-1: refused: queue latte is not Open"]  # fmt: skip
    plain = json.loads(call(server, tmp_path, "status", "--json").stdout)
    assert [task["state"] for task in plain["tasks"]].count("FAILED") == 1

    printed = call(server, tmp_path, "logs", "--task", "encode: shards")
    assert printed.stdout == (
        "[encode: shards 1 of 1] error: encode (all of 1): create Volcano Job latte-encode-1: refused: "
        "queue latte is not Open\n"
    )
    lines = call(server, tmp_path, "logs", "--task", "encode: shards", "--json", "--all", "--follow").stdout
    assert len([json.loads(line) for line in lines.splitlines()]) > 100


def in_process(server: kfp_server.KfpServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The command without the seconds that a process of its own takes to start; gives what it prints."""
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
    monkeypatch.setenv("KFP_TOKEN", "right")

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    return said


def test_runs_schedules_stop_retry_pause_resume_delete(
    server: kfp_server.KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = in_process(server, monkeypatch)
    assert said("runs") == "no runs yet\n"
    run_id = recorded.train_again(server)
    assert f"{run_id}  RUNNING  2026-11-27 13:40 UTC" in said("runs")
    assert said("stop", run_id).startswith(f"{run_id}  CANCELING\nVolcano Jobs not looked at")
    stopped = recorded.play(server, recorded.TERMINATED)
    (line, _) = json.loads(said("runs", "--json"))
    assert (line["run_id"], line["state"], line["created"]) == (stopped, "CANCELED", "2026-11-27T14:02:20+00:00")
    assert json.loads(said("retry", stopped, "--json"))["state"] == "RUNNING"

    place = ("--root", "s3://bucket/x", "--cron", "0 0 2 * * *", "--name", "night")
    made = said("schedule", "--pipeline", "nightly_retrain", *CONFIG, *place).split()[0]
    assert said("pause", "night") == f"{made}  night: paused\n"
    (listed,) = json.loads(said("schedules", "--json"))
    assert listed == {"recurring_run_id": made, "name": "night", "state": "DISABLED", "cron": "0 0 2 * * *"}
    assert said("resume", made) == f"{made}  night: resumed\n"
    assert f"{made}  ENABLED  0 0 2 * * *" in said("schedules")
    assert said("delete", "night") == "night  night: deleted\n"
    assert said("schedules") == "no schedules yet\n"
    server.runs[stopped]["state"] = "SUCCEEDED"
    assert said("delete", stopped) == f"{stopped}  vol2: deleted\n"


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_a_help_with_its_examples_line_by_line(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"]).stdout
    assert "\\b" not in shown
    examples = [line for line in shown.splitlines() if line.startswith("    latte-pipeline ")]
    assert bool(examples) == (name in ("run", "check", "get", "runs", "status", "logs")), shown
    assert all(line.split()[1] == name for line in examples)


def test_what_a_cluster_says_does_not_steer_the_terminal(
    server: kfp_server.KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = in_process(server, monkeypatch)
    run_id = recorded.play(server, recorded.SUCCEEDED)
    server.runs[run_id]["display_name"] = "[red]a\x1b[2J\nb"
    for arguments in (("runs",), ("status",)):
        printed = said(*arguments)
        assert "[red]a b" in printed and "\x1b" not in printed


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (("submit", *CONFIG), {}, "a cluster needs --root s3://bucket/prefix"),
        (("submit", *CONFIG, "--root", "s3://b/x", "train.steps=0"), {}, "train.steps"),
        (("schedule", *CONFIG, "--root", "s3://b/x", "--cron", "0 2 * * *"), {}, '"0 0 2 * * *"'),
        (("status", "nothing"), {"KFP_TOKEN": "old"}, "the token has expired"),
        (("status", "nothing"), {}, "run nothing: not found at"),
        (("status",), {}, "no run in experiment latte yet"),
        (("logs",), {}, "no run in experiment latte yet"),
        (("stop", "nothing"), {}, "latte-pipeline runs lists those that are there"),
        (("retry", "nothing"), {}, "not found at"),
        (("pause", "nothing"), {}, "schedule nothing: not in experiment latte (there: none)"),
        (("delete", "nothing"), {}, "run nothing: not found at"),
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
