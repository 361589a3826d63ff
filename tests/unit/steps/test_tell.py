"""How a run's end is told: one JSON line, to a webhook that answers and to those that do not, and under the root."""

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from latte import storage
from latte.config import build
from latte.errors import UserError
from latte.steps import tell
from latte.storage import manifest
from tests import webhook


@pytest.fixture(autouse=True)
def no_webhook_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tell.WEBHOOK_ENV, raising=False)


def config(root: Path, **more: object) -> tell.TellConfig:
    values = {"root": root.as_uri(), "name": "demo", "pipeline": "nightly_retrain", "run": "1f3c", **more}
    return build(tell.TellConfig, values, "test")


def kept(root: Path) -> dict:
    return storage.read_json(f"{root.as_uri()}/notices/1f3c/notice.json")


def test_a_failed_run_is_one_line_with_run_step_error_and_report(tmp_path: Path) -> None:
    root = tmp_path.as_uri()
    tell.leave_failure(root, "1f3c", "b", "score demo", "later", 1)
    word = storage.read_json(f"{root}/notices/1f3c/failed-{manifest.fingerprint('b')[:16]}.json")
    tell.leave_failure(root, "1f3c", "a", "train", "the disk\nis full", 1)
    first = {**storage.read_json(tell._failure_uri(root, "1f3c", "a")), "at": word["at"] - 1}
    storage.write_json(tell._failure_uri(root, "1f3c", "a"), first, root)
    tell.leave_result(
        root, "1f3c", manifest.Manifest(kind="report", name="d", uri=f"{root}/reports/d/1", fingerprint="f")
    )
    with webhook.listening() as hook:
        made = tell.run(config(tmp_path, state="FAILED", webhook=hook.url))
    (line,) = hook.lines
    assert line.count("\n") == 1
    assert line.endswith("}\n")
    (told,) = hook.told
    assert (told["run"], told["step"], told["error"]) == ("1f3c", "train", "the disk is full")
    assert told["report"] == f"{root}/reports/d/1"
    assert told["text"] == "nightly_retrain demo failed at train: the disk is full"
    assert kept(tmp_path) == told
    assert made.metrics["webhook"] == "told"


def test_success_is_told_only_where_it_is_asked_for_and_kept_always(tmp_path: Path) -> None:
    decision = manifest.Manifest(
        kind="promotion", name="d", uri="u", fingerprint="f", metrics={"promoted": 1, "reason": "fvd 3 is within"}
    )
    tell.leave_result(tmp_path.as_uri(), "1f3c", decision)
    with webhook.listening() as hook:
        tell.run(config(tmp_path, state="SUCCEEDED", webhook=hook.url))
        assert hook.lines == []
        assert kept(tmp_path)["state"] == "SUCCEEDED"
        tell.run(config(tmp_path, state="SUCCEEDED", webhook=hook.url, when="always"))
    assert hook.told[0]["text"] == "nightly_retrain demo succeeded: promoted: fvd 3 is within"
    assert (hook.told[0]["step"], hook.told[0]["error"]) == ("", "")


def test_a_run_whose_tasks_left_no_word_is_told_all_the_same(tmp_path: Path) -> None:
    with webhook.listening() as hook:
        tell.run(config(tmp_path, state="FAILED", webhook=hook.url, error="task exit-handler-1 failed"))
        tell.run(config(tmp_path, state="CANCELED", webhook=hook.url))
        tell.run(config(tmp_path, state="FAILED", webhook=hook.url))
    assert hook.told[0]["error"] == "task exit-handler-1 failed"
    assert hook.told[1]["text"].startswith("nightly_retrain demo was stopped: no task had failed before; ")
    assert "no task has told why" in hook.told[2]["error"]


@pytest.mark.parametrize(
    ("answer", "within_s", "said"),
    [
        ({"status": 500}, 10, "it answered 500"),
        ({"status": 302}, 10, "it answered 302"),
        ({"silent_s": 3.0}, 0.5, "no answer in time|timed out"),
    ],
)
def test_a_webhook_that_does_not_take_it_is_one_line_without_its_secret(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], answer: dict, within_s: float, said: str
) -> None:
    with webhook.listening(**answer) as hook:
        made = tell.run(config(tmp_path, webhook=hook.url, within_s=within_s))
        assert hook.paths == ["/services/SECRET-PATH"], "no redirect is followed, nothing is sent twice"
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("webhook on 127.0.0.1: not told of this run: ")
    assert any(part in line for part in said.split("|"))
    assert "SECRET" not in line + json.dumps(made.metrics)
    assert kept(tmp_path)["state"] == "FAILED"


def test_what_answers_without_speaking_http_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"220 mail.example.com ESMTP\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        made = tell.run(config(tmp_path, webhook=f"http://127.0.0.1:{server.getsockname()[1]}/SECRET"))
    assert capfd.readouterr().err == "webhook on 127.0.0.1: not told of this run: BadStatusLine\n"
    assert "SECRET" not in json.dumps(made.metrics)
    assert kept(tmp_path)["state"] == "FAILED"


def test_a_webhook_that_is_not_there_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with webhook.listening() as hook:
        url = hook.url
    tell.run(config(tmp_path, webhook=url))
    (line,) = capfd.readouterr().err.splitlines()
    assert "Connection refused" in line
    assert "SECRET" not in line


def test_the_url_may_stand_in_the_environment_where_no_setting_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with webhook.listening() as hook:
        monkeypatch.setenv(tell.WEBHOOK_ENV, f"{hook.url}\n")
        tell.run(config(tmp_path))
    assert len(hook.lines) == 1
    monkeypatch.setenv(tell.WEBHOOK_ENV, "chat.example.com/SECRET")
    tell.run(config(tmp_path))
    assert capfd.readouterr().err == f"{tell.WEBHOOK_ENV}: expected a URL, http://… or https://…\n"


@pytest.mark.parametrize("url", ["ftp://a/b", "https://", "file:///etc/passwd", "https://u:p@host/x", "http://a b/"])
def test_a_url_of_no_use_is_refused_before_anything_runs(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="webhook") as caught:
        config(tmp_path, webhook=url)
    assert "\n" not in str(caught.value)


def test_a_store_that_is_down_is_one_line_and_the_webhook_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        (tmp_path / "root").write_text("a file where the root should be")
    with webhook.listening() as hook:
        tell.run(config(tmp_path / "root", webhook=hook.url))
    assert hook.told[0]["state"] == "FAILED"
    assert "the notice of this run is not kept" in capfd.readouterr().err
