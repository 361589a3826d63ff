"""What dead processes left behind is cleared, what a live one still uses never."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from latte import owners, storage

HOLDS = """
import sys
from latte import owners, storage
with owners.Folder("test") as folder, storage.writing(sys.argv[1]) as path:
    print(folder, path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def holder(target: Path) -> tuple["subprocess.Popen[str]", list[Path]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, [Path(word) for word in process.stdout.readline().split()]


def test_the_next_process_clears_what_a_killed_one_left_and_nothing_of_a_live_ones(
    temporary: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    killed, its = holder(root / "a.json")
    alive, others = holder(root / "b.json")
    stopped, thirds = holder(root / "c.json")
    foreign = [temporary / "latte-of-the-user", temporary / "latte-0123456789", root / ".tmp-of-the-user"]
    foreign[0].mkdir()
    for path in foreign[1:]:
        path.write_text("mine")
    stopped.send_signal(signal.SIGSTOP)
    day_ago = time.time() - 100_000
    for path in (*others, *thirds, *foreign):
        os.utime(path, (day_ago, day_ago))
    killed.kill()
    # Not waited for: it is a zombie, as under a parent that does not look.
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
    fourth, its_own = holder(root / "d.json")
    assert not any(path.exists() for path in its)
    assert all(path.exists() for path in (*others, *thirds, *foreign, *its_own))
    stopped.send_signal(signal.SIGCONT)
    for process in (alive, stopped, fourth):
        process.communicate("")
    killed.wait()
    assert sorted(path.name for path in root.iterdir()) == [".tmp-of-the-user", "b.json", "c.json", "d.json"]
    assert sorted(temporary.iterdir()) == sorted(foreign[:2])


def test_what_another_machine_left_beside_an_object_goes_after_a_day(tmp_path: Path) -> None:
    fresh, old = (tmp_path / f".tmp-{digit * 32}" for digit in "ab")
    for path in (fresh, old):
        path.write_text("part")
    day_ago = time.time() - 100_000
    os.utime(old, (day_ago, day_ago))
    storage.write_bytes((tmp_path / "object").as_uri(), b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [fresh.name, "object"]


def test_a_number_that_another_process_has_by_now_is_not_its_owner(tmp_path: Path) -> None:
    own = owners.mark()
    assert owners.is_alive(f".tmp-{own}01234567")
    earlier = own[:16] + f"{int(own[16:], 16) - 1:08x}"
    assert owners.is_alive(f".tmp-{earlier}01234567") is False
    assert owners.is_alive(f".tmp-{'0' * 24}01234567") is None
