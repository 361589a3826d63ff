"""The lease of a launched Job, from a pod's side: when it ends its work, and when it does not."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.volcano import lease, pod
from latte import storage
from tests import fault_proxy

LEASE_S = 1.5
# Work that ends by itself long after a test has failed.
WORK = "import time; time.sleep(30)"
# Takes its time to save when it is asked to leave.
SAVING = """
import os, signal, sys, time
def save(*_):
    time.sleep(SECONDS)
    os.write(1, b"saved\\n")  # both at once: in one piece
    sys.exit(CODE)
signal.signal(signal.SIGTERM, save)
time.sleep(30)
"""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return storage.join((tmp_path / "root").as_uri(), "launched/run/work/lease.json")


def supervise(uri: str, code: str, save_within_s: float = 10.0) -> int:
    watch = lease.Watch(uri, LEASE_S)
    try:
        return pod.supervise([sys.executable, "-c", code], watch, save_within_s)
    finally:
        watch.end()


def at_once(uri: str, *works: str) -> list[int]:
    """Exit codes of several pods."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda work: supervise(uri, work, save_within_s=1.0), works))


def test_work_goes_on_while_a_step_waits_and_ends_within_the_lease_after_it(
    uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    left: list[float] = []

    def wait() -> None:
        with lease.renewed(uri, LEASE_S):
            time.sleep(1.2 * LEASE_S)
        left.append(time.monotonic())

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert supervise(uri, WORK) == lease.EXIT_CODE == 75
    assert time.monotonic() - left[0] < LEASE_S + 1.5
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("the Job's lease was not renewed for ")
    assert second.startswith(f"error: ended without being done: the Job's lease {uri} was not renewed for ")
    assert second.endswith(" s, the step that waits for it is gone; run the step again to go on")


def test_no_clock_is_compared(uri: str) -> None:
    """Only that the content changes counts; when the store says that it was written, and the same again, is nothing."""
    storage.write_json(uri, {"renewal": 1})
    watch, path = lease.Watch(uri, LEASE_S), storage.path(uri)

    def is_over_after(lease_times: float) -> bool:
        until = time.monotonic() + lease_times * LEASE_S
        while time.monotonic() < until:
            watch.is_over()
            time.sleep(0.02)
        return watch.is_over()

    assert not is_over_after(0.6)
    storage.write_json(uri, {"renewal": 2})
    os.utime(path, (0, 0))
    assert not is_over_after(0.6)
    storage.write_json(uri, {"renewal": 2})
    os.utime(path, (4e9, 4e9))
    assert is_over_after(0.6)
    watch.end()


def test_time_in_which_the_pod_itself_stood_still_is_not_held_against_the_step(uri: str) -> None:
    """What it sees when it goes on is a lease that is renewed, however long ago it looked."""
    program = [sys.executable, "-c", f"import time; time.sleep({LEASE_S * 2}); raise SystemExit(3)"]
    code = f"from components.volcano import lease, pod; exit(pod.supervise({program}, lease.Watch({uri!r}, {LEASE_S})))"
    with lease.renewed(uri, LEASE_S):
        stopped = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        time.sleep(LEASE_S * 0.8)
        stopped.send_signal(signal.SIGSTOP)
        time.sleep(LEASE_S * 1.2)
        stopped.send_signal(signal.SIGCONT)
        said = stopped.communicate()[1]
    assert (stopped.returncode, said) == (3, "")


def test_work_has_time_to_save_and_no_more(uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    works = [
        SAVING.replace("SECONDS", str(seconds)).replace("CODE", str(code))
        for seconds, code in [(0.3, 1), (0.3, 0), (20, 0)]
    ]
    # What is done all the same is done.
    assert at_once(uri, *works) == [lease.EXIT_CODE, 0, lease.EXIT_CODE]
    assert time.monotonic() - started < LEASE_S + 3
    assert capfd.readouterr().out == "saved\n" * 2


def test_a_failure_while_nobody_waits_is_not_one_to_start_the_job_anew_for(uri: str) -> None:
    """Workers that train together leave with the first whose lease is over, a moment before their own is."""
    codes = [0, 2, 1, 137]
    leaving = [f"import time, os; time.sleep({LEASE_S * 0.6}); os._exit({code})" for code in codes]
    assert at_once(uri, *leaving) == [0, 2, lease.EXIT_CODE, lease.EXIT_CODE]
    with lease.renewed(uri, LEASE_S):
        assert at_once(uri, *leaving) == codes


def test_signals_reach_the_work_and_its_end_is_the_pod_s(uri: str) -> None:
    assert supervise(uri, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)") == 137
    asked = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    asked.start()
    assert supervise(uri, WORK) == 143


@pytest.mark.parametrize("s3_root", ["seaweedfs"], indirect=True)
def test_an_outage_of_the_store_ends_nothing_before_the_lease_and_both_sides_say_so(
    s3_root: str, proxy: fault_proxy.Proxy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATTE_S3_RETRY_S", "0.1")
    uri = storage.join(s3_root, "launched/run/work/lease.json")
    with ThreadPoolExecutor() as pool, lease.renewed(uri, LEASE_S):
        ended = pool.submit(supervise, uri, WORK)
        time.sleep(LEASE_S / 2)
        for outage_s in (0.5 * LEASE_S, 0.0):  # one that passes, and one that does not
            proxy.always, began = "busy", time.monotonic()
            if outage_s:
                time.sleep(outage_s)
                proxy.always = None
                time.sleep(LEASE_S)
                assert not ended.done()
        assert ended.result() == lease.EXIT_CODE
        assert LEASE_S / 2 < time.monotonic() - began < LEASE_S + 1.5
        proxy.always = None
        time.sleep(LEASE_S / 2)
    lines = capfd.readouterr().err.splitlines()
    told = [" ".join(line.split()[:3]) for line in lines if line.startswith("lease ")]
    assert told == ["lease not renewed", "lease renewed again"] * 2, "once for each outage"
    (error,) = (line for line in lines if line.startswith("error: "))
    assert f"the store does not answer: {uri}: the store did not answer for 0 s" in error
