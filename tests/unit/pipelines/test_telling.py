"""How a run on this machine tells its end: the task that failed, and never an error of its own in the place of that."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from latte.errors import StorageError
from latte.steps import tell
from pipelines import telling


def event(kind: str, task: str, **more: Any) -> dict[str, Any]:
    return {"event": kind, "task": task, **more}


def test_the_task_that_failed_is_told_and_not_those_that_were_ended_with_it() -> None:
    events = [
        event("started", "encode"),
        event("finished", "encode"),
        event("started", "sample 1 of 2"),
        event("started", "sample 2 of 2"),
        event("failed", "sample 2 of 2", message="the disk is full", exit_code=1),
    ]
    failure = telling.first_failure(events, Path("run.log"))
    assert failure == telling.Failure("sample 2 of 2", "the disk is full", 1, False)
    silent = telling.first_failure(events[:-1], Path("run.log"))
    assert silent is not None
    assert silent.task == "sample 1 of 2"
    assert "for want of memory" in silent.message
    assert telling.first_failure(events[:2], Path("run.log")) is None


def test_a_run_that_cannot_keep_its_notice_ends_with_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(tell.WEBHOOK_ENV, raising=False)

    def full(*_: object, **__: object) -> None:
        raise StorageError("no space left on the disk")

    monkeypatch.setattr(telling.storage, "write_json", full)
    config: Any = SimpleNamespace(notify={}, name="demo", pipeline="train_and_evaluate")
    with pytest.raises(StorageError, match="the store is away"), telling.Teller(config, tmp_path).telling():
        raise StorageError("the store is away")
