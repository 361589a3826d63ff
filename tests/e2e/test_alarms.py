"""A run that fails tells somebody: the exit task as KFP runs it, and the runner of this machine, over real HTTP."""

import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.tries import RUN_ENV, TRY_ENV, Retry
from latte import storage
from latte.steps import tell
from pipelines.cluster import Cluster
from tests import webhook
from tests.e2e import runs


@pytest.fixture(autouse=True)
def no_webhook_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tell.WEBHOOK_ENV, raising=False)


def run_with_kfp(folder: Path, notify: dict[str, Any]) -> None:
    """One task and the exit task, as they are compiled for a cluster, by KFP's own runner."""
    from kfp import dsl, local

    from components.hello.component import hello
    from pipelines import parts

    def told(root: str, notify: dict) -> None:
        with parts.told("told", root, "demo", notify):
            parts.named(hello(root=root), "hello")

    with parts.on(Cluster(retry=Retry(tries=2, pods=0, wait_s=0))):
        pipeline = dsl.pipeline(name="told")(told)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "kfp"), raise_on_error=False)
    pipeline(root=(folder / "root").as_uri(), notify=notify)


def test_kfp_runs_the_exit_task_when_a_step_has_failed_and_it_posts_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_ENV, "1f3c")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "hello").write_text("no folder can be here")
    with webhook.listening() as hook:
        run_with_kfp(tmp_path, {"webhook": hook.url})
    (told,) = hook.told
    assert (told["state"], told["pipeline"], told["name"], told["run"]) == ("FAILED", "told", "demo", "1f3c")
    kept = storage.read_json(f"{tmp_path.as_uri()}/root/notices/1f3c/notice.json")
    assert kept == told
    assert "\n" not in told["error"]
    assert told["step"] == "hello", told


def test_kfp_runs_the_exit_task_when_all_went_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_ENV, "1f3c")
    (tmp_path / "root").mkdir()
    with webhook.listening(status=503) as hook:
        run_with_kfp(tmp_path, {"webhook": hook.url, "when": "always"})
    assert [told["state"] for told in hook.told] == ["SUCCEEDED"], "a webhook that refuses is asked once"


def kill_first_try(killed: list[int]) -> None:
    """Kill the process of a first try as the kernel does for want of memory, as soon as there is one."""
    deadline = time.monotonic() + 120
    while not killed and time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.environ().get(TRY_ENV) == "1":
                    process.kill()
                    killed.append(process.pid)
                    return
        time.sleep(0.05)


def test_a_task_that_is_killed_is_tried_again_in_its_pod_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_ENV, "1f3c")
    (tmp_path / "root").mkdir()
    killed: list[int] = []
    killer = threading.Thread(target=kill_first_try, args=(killed,))
    with webhook.listening() as hook:
        killer.start()
        run_with_kfp(tmp_path, {"webhook": hook.url, "when": "always"})
        killer.join()
    assert len(killed) == 1
    assert [told["state"] for told in hook.told] == ["SUCCEEDED"]
    assert list((tmp_path / "root" / "notices" / "1f3c").iterdir()) == [tmp_path / "root/notices/1f3c/notice.json"]


def settings_of(videos: Path, hook: webhook.Webhook) -> dict[str, Any]:
    return {**runs.TINY, "encode.dataset.videos": str(videos), "encode.num_tasks": 1, "notify.webhook": hook.url}


def test_a_run_on_this_machine_that_fails_tells_its_step_and_its_error(tmp_path: Path) -> None:
    videos = tmp_path / "videos" / "cats"
    videos.mkdir(parents=True)
    (videos / "a.mp4").write_bytes(b"no video at all")
    root = tmp_path / "root"
    root.mkdir()
    with webhook.listening() as hook:
        run = runs.start(
            tmp_path / "run",
            "--pipeline", "nightly_retrain", "--root", root.as_uri(),
            settings=settings_of(videos.parent, hook),
        )  # fmt: skip
        assert run.finish() == 1, run.output
    (told,) = hook.told
    assert (told["state"], told["name"], told["pipeline"]) == ("FAILED", "demo", "nightly_retrain")
    assert told["step"].startswith("encode: merge")
    assert "1 of 1 videos are rejected" in told["error"]
    assert "\n" not in told["error"]
    assert told["report"] == ""
    assert "SECRET" not in run.output + (run.run_dir / "run.log").read_text()
    assert storage.read_json(str(run.run_dir / "notice.json")) == told
    assert storage.read_json(f"{root.as_uri()}/notices/{told['run']}/notice.json") == told
    (line,) = runs.error_lines(run.output)
    assert line.startswith("error: encode: merge"), "the terminal says it as ever"


def test_a_run_that_is_stopped_is_told_and_a_webhook_that_is_gone_is_one_line(tmp_path: Path) -> None:
    videos = tmp_path / "videos" / "cats"
    videos.mkdir(parents=True)
    (videos / "a.mp4").write_bytes(b"no video at all")
    with webhook.listening(status=404) as hook:
        run = runs.start(
            tmp_path / "run", "--root", (tmp_path / "root").as_uri(), settings=settings_of(videos.parent, hook)
        )
        run.wait_for("convert vae")
        run.process.send_signal(signal.SIGTERM)
        assert run.finish(120) != 0
    (told,) = hook.told
    assert (told["state"], told["error"]) == ("CANCELED", "stopped by SIGTERM or Ctrl-C")
    assert run.output.count("webhook on 127.0.0.1: not told of this run: it answered 404") == 1
    assert run.gone()
