"""A full disk is one line and exit code 1, whoever has met it; what is no fault of the machine's stays a bug."""

import errno
from pathlib import Path

import pytest

from latte import cli, machine_errors
from latte.errors import StorageError

KERNELS_GONE = "Response is empty.\n\n----\n- C++ Call Stack:\nkernel_build_client.h:100 Response"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/data/shard"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors
    ],
)
def test_a_full_disk_is_an_outage_in_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        cli.guarded(fail)
    assert left.value.code == StorageError.exit_code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no space left on the disk" in line


def test_a_compiler_that_is_gone_is_told_with_the_disk_where_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MS_COMPILER_CACHE_PATH", str(tmp_path))
    said = str(machine_errors.explained(RuntimeError(KERNELS_GONE)))
    assert "compiler of kernels has ended without a word" in said
    monkeypatch.setattr(machine_errors, "_ENOUGH_BYTES", 1 << 60)
    said = str(machine_errors.explained(RuntimeError(KERNELS_GONE)))
    assert f"{tmp_path}: no space left on the disk for MindSpore's kernels" in said


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.EIO, "I/O error"), ValueError("x")])
def test_other_errors_keep_their_traceback(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        cli.guarded(fail)
