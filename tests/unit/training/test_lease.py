"""Two writers on one run: the newer one holds it, and nothing of the older one's comes after that."""

import os
import threading
from pathlib import Path

import pytest

from latte import storage
from latte.errors import LatteError
from latte.training import lease


def place(root: str) -> str:
    return storage.join(root, "runs", "sky", "0123")


def test_whoever_starts_takes_the_run_over_and_the_one_before_is_told_who_holds_it(root: str) -> None:
    first = lease.take("sky", place(root))
    first.check()
    second = lease.take("sky", place(root))
    assert second.number > first.number
    second.check()
    with pytest.raises(LatteError) as caught:
        first.check()
    said = str(caught.value)
    assert said.startswith(f"run sky ({place(root)}) is held by process {os.getpid()} on ")
    assert "\n" not in said
    assert caught.value.exit_code == 1
    third = lease.take("sky", place(root))
    with pytest.raises(LatteError, match=f"as writer {third.number}"):
        first.check()
    assert len(storage.list_uris(place(root))) == 1, "those before are cleared away"


def test_what_is_put_without_holding_the_run_changes_nothing(root: str) -> None:
    uri = storage.join(place(root), "metrics.jsonl")
    first = lease.take("sky", place(root))
    first.put(uri, b"1\n2\n")
    second = lease.take("sky", place(root))
    second.put(uri, b"1\n2\n3\n")
    for data in (b"1\n2\n", b"1\n2\n3\n", b"1\n2\n4\n"):
        with pytest.raises(lease.LeaseLostError):
            first.put(uri, data)
    assert storage.read_bytes(uri) == b"1\n2\n3\n"


@pytest.mark.parametrize("registry_root", ["seaweedfs"], indirect=True)
def test_stopped_between_looking_and_writing_it_still_overwrites_nothing(
    registry_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = storage.join(place(registry_root), "metrics.jsonl")
    first = lease.take("sky", place(registry_root))
    first.put(uri, b"1\n")
    swap = storage.swap

    def woken_late(*arguments: object) -> bool:
        monkeypatch.setattr(storage, "swap", swap)
        lease.take("sky", place(registry_root)).put(uri, b"1\n2\n3\n")
        return swap(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "swap", woken_late)
    with pytest.raises(lease.LeaseLostError):
        first.put(uri, b"1\n2\n")
    assert storage.read_bytes(uri) == b"1\n2\n3\n"


@pytest.mark.parametrize("registry_root", ["file", "seaweedfs"], indirect=True)
def test_of_many_that_start_at_once_one_holds_the_run(registry_root: str) -> None:
    taken: list[lease.Lease] = []

    def start() -> None:
        try:
            taken.append(lease.take("sky", place(registry_root)))
        except lease.LeaseLostError:
            return

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.number for each in taken}) == len(taken)
    newest = max(taken, key=lambda each: each.number)
    newest.check()
    for each in taken:
        if each is not newest:
            with pytest.raises(lease.LeaseLostError):
                each.check()


def test_an_answer_that_was_lost_is_not_taken_for_anothers_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = storage.swap

    def answer_lost(uri: str, data: bytes, etag: str | None) -> bool:
        return swap(uri, data, etag) and False

    monkeypatch.setattr(storage, "swap", answer_lost)
    assert lease.take("sky", place(tmp_path.as_uri())).number == 1


def test_a_writer_looks_now_and_then_whether_it_holds_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_WATCH_S", 0.02)
    first = lease.take("sky", place(tmp_path.as_uri()))
    with first.watched() as lost:
        assert not lost
        lease.take("sky", place(tmp_path.as_uri()))
        ended = threading.Event()
        for _ in range(500):
            if lost or ended.wait(0.01):
                break
    assert isinstance(lost[0], lease.LeaseLostError)
