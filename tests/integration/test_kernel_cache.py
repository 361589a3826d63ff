"""Fused kernels are kept between processes, whatever happens to one of them."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest

from latte.kernel_watch import SERVER

PROGRAM = """
import latte
from latte import device
import mindspore as ms, numpy as np
device.setup(seed=0)

@ms.jit
def compute(x, y):
    return (x + y) * 2.0 - y

x, y = ms.Tensor(np.full((3, 5), 1.5, np.float32)), ms.Tensor(np.full((3, 5), 0.25, np.float32))
assert (compute(x, y).asnumpy() == 3.25).all()
print("computed", flush=True)
"""

# A store hangs up while a thread writes to it, between two graphs that are compiled.
BROKEN_CONNECTION = PROGRAM.replace(
    "print",
    """
import socket, threading

def write():
    ours, theirs = socket.socketpair()
    theirs.close()
    try:
        ours.send(b"a part")
    except BrokenPipeError:
        print("broken")

thread = threading.Thread(target=write)
thread.start()
thread.join()

@ms.jit
def compute_more(x, y):
    return (x - y) * 4.0 + y

assert (compute_more(x, y).asnumpy() == 5.25).all()
print""",
)


@pytest.fixture
def start(tmp_path):
    def start(program=PROGRAM, stdin=None, **more):
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        without = ("MS_COMPILER_CACHE_PATH", "LATTE_FUSED_KERNELS")
        environment = {key: value for key, value in os.environ.items() if key not in without}
        environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "GLOG_v": "3", **more}
        return subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=folder,
            env=environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def run(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def kernels(tmp_path):
    return sorted((tmp_path / "cache").rglob("kept/*.json"))


def test_the_second_process_uses_what_the_first_compiled(start, tmp_path):
    program = tmp_path / "compute.py"
    program.write_text(PROGRAM)  # MindSpore compiles functions whose source is in a file
    code = f"import runpy; runpy.run_path({str(program)!r})"
    assert run(start(code)) == "computed\n"
    kept = kernels(tmp_path)
    assert kept
    times = [path.with_suffix(".so").stat().st_mtime_ns for path in kept]
    assert run(start(code)) == "computed\n"
    assert [path.with_suffix(".so").stat().st_mtime_ns for path in kernels(tmp_path)] == times
    assert not list((tmp_path / "cache").rglob("running-*")), "a process left its folder"
    assert not list((tmp_path / "work").iterdir()), "the compiler left something where it was started"


def test_a_broken_kernel_is_not_kept_and_a_killed_process_leaves_nothing_behind_for_others(start, tmp_path):
    program = tmp_path / "compute.py"
    program.write_text(PROGRAM + "\nimport time; time.sleep(60)\n")
    process = start(f"import runpy; runpy.run_path({str(program)!r})")
    assert process.stdout.readline() == "computed\n"
    process.kill()
    process.wait()
    assert not kernels(tmp_path)
    left = next((tmp_path / "cache").rglob("running-*"))
    breaks = (
        PROGRAM
        + """
import os
from pathlib import Path
for path in Path(os.environ["MS_COMPILER_CACHE_PATH"]).rglob("*.so"):
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-100])
"""
    )
    program.write_text(breaks)
    run(start(f"import runpy; runpy.run_path({str(program)!r})"))
    assert not kernels(tmp_path)
    assert not left.exists()


def test_a_process_keeps_its_kernels_however_old_it_is(start, tmp_path):
    program = tmp_path / "compute.py"
    program.write_text(PROGRAM + "\ninput()\nassert (compute(y, x).asnumpy() == 2.0).all()\n")
    other = tmp_path / "other.py"
    other.write_text(PROGRAM)
    process = start(f"import runpy; runpy.run_path({str(program)!r})", stdin=subprocess.PIPE)
    assert process.stdout.readline() == "computed\n"
    (folder,) = (tmp_path / "cache").rglob("running-*")
    days_ago = time.time() - 1_000_000
    os.utime(folder, (days_ago, days_ago))
    before = {path.name for path in folder.rglob("*")}
    assert run(start(f"import runpy; runpy.run_path({str(other)!r})")) == "computed\n"
    assert {path.name for path in folder.rglob("*")} == before
    process.communicate("\n")
    assert process.returncode == 0
    assert not folder.exists()


def test_a_broken_connection_does_not_end_the_compiler(start, tmp_path):
    program = tmp_path / "compute.py"
    program.write_text(BROKEN_CONNECTION)
    assert run(start(f"import runpy; runpy.run_path({str(program)!r})")) == "broken\ncomputed\n"


def test_kernels_of_another_user_are_not_run(start, tmp_path):
    program = tmp_path / "compute.py"
    program.write_text(PROGRAM)
    code = f"import runpy; runpy.run_path({str(program)!r})"
    run(start(code))
    kept = kernels(tmp_path)[0].parent
    kept.chmod(0o777)
    facts = [json.loads(path.read_text())["sha256"] for path in kernels(tmp_path)]
    for path in kept.glob("*.so"):
        path.unlink()
        path.write_bytes(b"not a library")
    assert run(start(code)) == "computed\n"
    assert facts


def test_without_a_linker_the_error_says_what_to_install(start, tmp_path):
    program = tmp_path / "compute.py"
    program.write_text(PROGRAM)
    process = start(f"import runpy; runpy.run_path({str(program)!r})", PATH=str(tmp_path))
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "g++: not found" in err and "apt-get install g++" in err


GUARDED = """
import time
from latte import cli, device, machine_errors
import mindspore as ms, numpy as np

@ms.jit
def compute(x, y):
    return (x + y) * 2.0 - y

def go():
    device.setup(seed=0)
    print("prepared", flush=True)
    x, y = ms.Tensor(np.full((3, 5), 1.5, np.float32)), ms.Tensor(np.full((3, 5), 0.25, np.float32))
    input()
    compute(x, y).asnumpy()
    print("computed")

cli.guarded(go)
"""


def start_guarded(tmp_path, folder):
    (tmp_path / "compute.py").write_text(GUARDED)
    return subprocess.Popen(
        [sys.executable, tmp_path / "compute.py"],
        cwd=tmp_path,
        env={**os.environ, "LATTE_FUSED_KERNELS": "1", "XDG_CACHE_HOME": str(folder), "GLOG_v": "3"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def the_line(process, timeout_s=300):
    _, err = process.communicate("\n", timeout=timeout_s)
    assert process.returncode == 1, err
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    return line


def test_a_full_disk_is_told_before_anything_is_compiled(tmp_path, small_disk):
    (small_disk / "fill").write_bytes(bytes(18 << 20))
    process = start_guarded(tmp_path, small_disk)
    assert "no space left on the disk for MindSpore's kernels" in the_line(process)


def test_a_disk_that_fills_up_while_kernels_are_compiled_ends_the_command_with_one_line(tmp_path, small_disk):
    process = start_guarded(tmp_path, small_disk)
    assert process.stdout.readline() == "prepared\n"
    (small_disk / "fill").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    assert "no space left on the disk for MindSpore's kernels" in the_line(process)


def test_a_compiler_of_which_a_part_was_killed_is_not_waited_for(tmp_path, monkeypatch):
    slow = tmp_path / "slow" / "g++"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 2\nexec {shutil.which("g++")} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}{os.pathsep}{os.environ['PATH']}")
    process = start_guarded(tmp_path, tmp_path)
    assert process.stdout.readline() == "prepared\n"
    process.stdin.write("\n")
    process.stdin.flush()
    parent, workers = psutil.Process(process.pid), []
    deadline = time.monotonic() + 240
    while not workers:
        assert time.monotonic() < deadline
        with contextlib.suppress(psutil.NoSuchProcess):  # lscpu, for example, has just ended
            servers = [each for each in parent.children() if SERVER in " ".join(each.cmdline())]
            # Those of the pool that have work: another one is replaced, and nothing is lost with it.
            workers = [each for server in servers for each in server.children() if each.children()]
    for worker in workers:
        worker.kill()
    assert "ended without a word" in the_line(process)
    assert not [each for each in workers if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_what_watches_the_compiler_leaves_with_its_process(start, tmp_path):
    process = start(
        "from latte import kernel_cache; kernel_cache.prepare(); print(1, flush=True); import time; time.sleep(60)"
    )
    assert process.stdout.readline() == "1\n"
    (watch,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    watch.wait(10)
