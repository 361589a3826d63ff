"""What of a pod's log is the step's, what is told of a failure, and what never reaches a terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import step_log
from tests.recorded_kfp import DATA

TRAIN = (DATA / "pod_log_train.txt").read_text()
LAUNCHER = "I1127 14:08:01.137283      16 launcher_v2.go:206] publish success."
EXIT = "F1127 14:08:01.137283      16 main.go:130] failed to execute component: exit status 2"


def test_of_a_recorded_log_the_steps_own_lines_are_left() -> None:
    assert list(step_log.own(step_log.lines_of(TRAIN))) == [
        "Volcano Job latte-train-a61d84e204: created, 2 pod(s)",
        "Volcano Job latte-train-a61d84e204: Pending",
        "Volcano Job latte-train-a61d84e204: Running",
        "worker-0 | train:   0%|          | 0/20 [00:00<?, ?step/s]",
        "worker-0 | train:   5%|▌         | 1/20 [01:10<22:19, 70.48s/step, loss=1.0075, grad=0.316, lr=5.0e-05]",
        "worker-0 | train: 100%|██████████| 20/20 [01:44<00:00,  5.21s/step, loss=0.8163, grad=0.336, lr=1.0e-03]",
        "Volcano Job latte-train-a61d84e204: Completing",
        "Volcano Job latte-train-a61d84e204: Completed",
        "",
    ]
    assert step_log.progress(TRAIN) == "Volcano Job latte-train-a61d84e204: Completed"


def test_a_log_that_is_cut_off_inside_kfps_json_hides_no_line_of_the_step() -> None:
    head = TRAIN[: TRAIN.index('"parameterValues"')]
    assert list(step_log.own([*head.splitlines(), "train: 1/20", "{", "mine", "}"])) == [
        "train: 1/20",
        "{",
        "mine",
        "}",
    ]


def test_warnings_of_libraries_stay_and_their_information_goes() -> None:
    said = [
        "[KFP Executor 2026-11-27 14:05:40,439 INFO]: Found credentials in environment variables.",
        "[KFP Executor 2026-11-27 14:05:40,440 WARNING]: Connection pool is full",
    ]
    assert list(step_log.own(said)) == said[1:]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["train: 3/20", "error: train: no latents", EXIT], "train: no latents"),
        (["error: encode (1 of 2): queue x is not open", "Volcano Job a: Failed", LAUNCHER, EXIT],
         "encode (1 of 2): queue x is not open"),
        (["Traceback (most recent call last):", "  File 'a'", "ModuleNotFoundError: No module named 'x'", EXIT],
         "ModuleNotFoundError: No module named 'x'"),
        (["Traceback (most recent call last):", "latte.errors.SomethingError", EXIT], "latte.errors.SomethingError"),
        (["train: 3/20", LAUNCHER, EXIT], "failed to execute component: exit status 2"),
        (["train: 3/20"], ""),
        ([], ""),
    ],
)  # fmt: skip
def test_why_a_step_failed_by_its_log(lines: list[str], words: str) -> None:
    assert step_log.last_words("\n".join(lines)) == words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;Zm9v", ""),
        ("a\x9b2Jb", "ab"),
        ("a\x08\x08\x00b\x7f", "ab"),
        ("a\u202eb", "ab"),
        ("\x1bc", ""),
        ("tab\tstays, é stays, 漢 stays", "tab\tstays, é stays, 漢 stays"),
    ],
)
def test_what_steers_a_terminal_is_taken_out(text: str, shown: str) -> None:
    assert step_log.plain(text) == shown


def test_a_progress_bar_that_overwrites_itself_is_lines() -> None:
    assert step_log.lines_of("1/3\r2/3\r3/3\r\ndone\n") == ["1/3", "2/3", "3/3", "done", ""]


@given(st.text(st.characters(codec=None), max_size=60))
def test_any_text_is_safe_to_print(text: str) -> None:
    for line in (*step_log.lines_of(text), step_log.one_line(text), step_log.last_words(text), step_log.progress(text)):
        line.encode()
        assert all(letter == "\t" or unicodedata.category(letter) not in ("Cc", "Cs") for letter in line)


@given(st.lists(st.sampled_from([LAUNCHER, "{", "}", " inside", "mine", f"{LAUNCHER} {{", ""]), max_size=12))
def test_no_line_of_the_step_is_lost_whatever_kfp_writes_around_it(lines: list[str]) -> None:
    assert list(step_log.own(lines)).count("mine") == lines.count("mine")
