"""Progress where nobody looks at a terminal."""

import time

import pytest

from latte.errors import UserError
from latte.progress import progress, teller


def test_a_log_gets_whole_lines(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATTE_PROGRESS_INTERVAL_S", "0")
    with progress(total=3, desc="train", unit="step") as bar:
        for _ in range(3):
            bar.update()
    said = capfd.readouterr().err
    assert "\r" not in said
    assert said.endswith("\n")
    lines = said.splitlines()
    assert len(lines) >= 4
    assert all(line.startswith("train: ") for line in lines)


def test_what_is_told_between_updates_does_not_flood_a_log(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATTE_PROGRESS_INTERVAL_S", "0.2")
    with progress(total=2, desc="sample", unit="video") as bar:
        tell = teller(bar)
        for step in range(250):
            tell(f"denoising step {step}")
        time.sleep(0.25)
        tell("denoising step 250")
    lines = capfd.readouterr().err.splitlines()
    told = [line.rpartition("denoising step ")[2].strip("]") for line in lines if "denoising" in line]
    assert told[:2] == ["0", "250"]
    assert len(lines) <= 4


def test_an_interval_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATTE_PROGRESS_INTERVAL_S", "often")
    with pytest.raises(UserError, match="LATTE_PROGRESS_INTERVAL_S='often': expected seconds"):
        progress(total=3)
