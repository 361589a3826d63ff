"""What notebooks show: tables, markup that is saved once, and text; in real kernels it is shown in tests/e2e."""

from pathlib import Path

import pandas
import pytest

from latte.config import build
from latte.steps.promote import PromoteConfig, run
from pipelines import cells, notebook
from tests.unit.steps.promotions import make


def test_markup_is_not_in_what_stands_for_it() -> None:
    shown = cells.Html("<b>" + "x" * 1000, "report demo")
    assert repr(shown) == "<report demo>" and shown._repr_html_().startswith("<b>x")


def test_outside_of_a_notebook_whole_lines_are_printed_and_progress_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    text = cells.LiveText()
    text.write("\r     \rencode:  40%")
    text.flush()
    text.say("train …")
    text.write("\r     \rtrain:  10%\r            \rtrain: done\nsa")
    text.write("mple …\n")
    text.end()
    assert capsys.readouterr().out == "train …\ntrain: done\nsample …\n"


def test_a_notebook_has_one_output_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, bool]] = []

    class Handle:
        def update(self, bundle: dict[str, str], raw: bool) -> None:
            shown.append((bundle["text/plain"], raw))

    def display(bundle: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert not shown and display_id
        shown.append((bundle["text/plain"], raw))
        return Handle()

    monkeypatch.setattr(cells, "_kernel", lambda: object())
    monkeypatch.setattr("IPython.display.display", display)
    text = cells.LiveText()
    text.say("train …")
    text.write("\r   \rtrain:  10%")
    text.flush()
    text.flush()
    text.write("\r            \rtrain:  20%")
    text.flush()
    text.end()
    assert [line for line, _ in shown] == ["train …", "train …\ntrain:  10%", "train …\ntrain:  20%", "train …"]
    assert all(raw for _, raw in shown)


def test_a_table_has_its_columns_without_rows_and_whole_sentences() -> None:
    assert list(cells.frame([], ("a", "b")).columns) == ["a", "b"]
    sentence = "x" * 200
    assert sentence in cells.frame([{"a": sentence, "of no use": 1}], ("a",)).to_html()


def test_every_promotion_has_the_gate_s_reason(tmp_path: Path) -> None:
    root = tmp_path.as_uri()

    def decide(**settings: object) -> None:
        run(build(PromoteConfig, {"root": root, "name": "m", **settings}, "test"))

    candidates = [make(root, name, value) for name, value in (("a", 10.0), ("b", 9.0), ("c", 9.5))]
    for candidate in candidates:  # the last one is refused
        decide(checkpoint=candidate.checkpoint, score=candidate.score)
    decide(checkpoint=candidates[1].checkpoint, score=candidates[1].score, margin=0.5)  # is promoted already
    decide(rollback=True)
    table = notebook.promotions(root, "m")
    assert list(table["entry"]) == [1, 2, 3]
    assert list(table["value"]) == [10.0, 9.0, 10.0]
    assert list(table["in_force"]) == [False, False, True]
    first, second, third = table["reason"]
    assert first == "the first model under this name"
    assert "9 is within the limit 10" in second
    assert third == "rolled back from entry 2 to the model of entry 1"
    assert pandas.isna(table["before"][0]) and table["before"][1] == 10.0
    assert notebook.promotions(root, "nobody").empty


def test_before_the_first_run_nothing_has_been_trained(tmp_path: Path) -> None:
    assert notebook.trained(str(tmp_path)) is None
