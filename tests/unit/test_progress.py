"""Progress where nobody looks at a terminal."""

import pytest

from latte.progress import progress


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
