"""submit, schedule, doctor and what operates runs and schedules, as a user calls them, against servers on loopback."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from latte import storage
from pipelines.cli import cli
from tests import kfp_server
from tests import recorded_kfp as recorded
from tests.e2e.runs import BIN, REPOSITORY

SHARDS_POD = "latte-train-and-evaluate-sfcwk-system-container-impl-3461973333"
CONFIG = ("-c", "configs/demo/pipeline.yaml")


def videos(folder: Path) -> str:
    """The setting that names a folder of one small file as the videos."""
    (folder / "videos").mkdir(exist_ok=True)
    (folder / "videos" / "a.mp4").write_text("a video")
    return f"encode.dataset.videos={folder / 'videos'}"


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


@pytest.mark.parametrize("s3_root", ["seaweedfs"], indirect=True)
def test_submit_and_schedule(server: kfp_server.KfpServer, s3_root: str, tmp_path: Path) -> None:
    place = ("--root", s3_root, videos(tmp_path))
    sent = call(server, tmp_path, "submit", *CONFIG, *place, "--image", "registry.example.com/latte:7")
    assert sent.returncode == 0, sent.stderr
    assert sent.stderr.startswith(f"uploads to {s3_root}/uploads: 5 of 5 files, "), sent.stderr
    assert set(re.findall(r"'image': '([^']+)'", str(server.versions))) == {"registry.example.com/latte:7"}
    run_id = sent.stdout.split()[0]
    dataset = server.runs[run_id]["runtime_config"]["parameters"]["encode"]["dataset"]
    assert re.fullmatch(rf"{s3_root}/uploads/[0-9a-f]{{16}}/videos", dataset["videos"])
    assert storage.list_uris(dataset["videos"]) == [f"{dataset['videos']}/a.mp4"]

    schedule = ("schedule", "--pipeline", "nightly_retrain", *CONFIG, *place, "--cron")
    made = call(server, tmp_path, *schedule, "0 0 2 * * *")
    assert "0 of 5 files, 0 bytes; all are there already" in made.stderr
    again = call(server, tmp_path, *schedule, "0 0 2 * * *")
    assert ": scheduled, 0 0 2 * * * UTC" in made.stdout
    assert re.search(
        r"\nnext: \w{3} [0-9-]+ 02:00:00, \w{3} [0-9-]+ 02:00:00, \w{3} [0-9-]+ 02:00:00 UTC\n$", made.stdout
    )
    assert ": scheduled already, " in again.stdout
    assert len(server.recurring_runs) == 1

    waiting = call(server, tmp_path, "status")  # of the newest: the one just sent
    assert waiting.stdout.startswith("PENDING  train_and_evaluate demo  "), waiting.stderr
    assert waiting.stdout.count(" WAITING ") == 6


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


@pytest.mark.parametrize("s3_root", ["seaweedfs"], indirect=True)
def test_runs_schedules_stop_retry_pause_resume_delete(
    server: kfp_server.KfpServer, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

    place = ("--root", s3_root, videos(tmp_path), "--cron", "0 0 2 * * *", "--name", "night")
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
    assert bool(examples) == (name in ("run", "check", "curate", "keys", "get", "runs", "status", "logs")), shown
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
        (("submit", *CONFIG, "encode.dataset.videos=docs"), {}, "a cluster needs --root s3://bucket/prefix"),
        (("submit", *CONFIG, "encode.dataset.videos=docs", "--root", "/data/x"), {}, "a cluster needs a place in a b"),
        (("submit", *CONFIG, "encode.dataset.videos=docs", "--root", "s3://b/x"), {}, "dataset.videos: docs: no video"),
        (
            ("submit", *CONFIG, "encode.dataset.videos=gone", "--root", "s3://b/x"),
            {},
            "dataset.videos: gone: no such",
        ),
        (("submit", *CONFIG, "--root", "s3://b/x", "train.steps=0"), {}, "train.steps"),
        (
            ("schedule", *CONFIG, "encode.dataset.videos=docs", "--root", "s3://b/x", "--cron", "0 2 * * *"),
            {},
            '"0 0 2 * * *"',
        ),
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
