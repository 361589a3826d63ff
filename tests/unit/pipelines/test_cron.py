"""Next times of cron expressions, as the scheduler of Kubeflow Pipelines counts them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from pipelines import cron

MONDAY = datetime(2026, 11, 30, 6, 3, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 2 * * *", ["12-01 02:00:00", "12-02 02:00:00", "12-03 02:00:00"]),
        ("5 3 6 * * *", ["12-01 06:03:05", "12-02 06:03:05", "12-03 06:03:05"]),
        ("30 */15 6-7 ? * mon", ["11-30 06:15:30", "11-30 06:30:30", "11-30 06:45:30"]),
        ("0 0 9 ? DEC FRI-SAT", ["12-04 09:00:00", "12-05 09:00:00", "12-11 09:00:00"]),
        # One of two fields is enough, unless there is a star in one of them.
        ("0 0 0 1 * SUN", ["12-01 00:00:00", "12-06 00:00:00", "12-13 00:00:00"]),
        ("0 0 0 */2 * SUN", ["12-13 00:00:00", "12-27 00:00:00", "01-03 00:00:00"]),
        ("0 0 0 ?,1 * 0", ["12-06 00:00:00", "12-13 00:00:00", "12-20 00:00:00"]),
        ("0 9-9 2 * * *", ["12-01 02:09:00", "12-02 02:09:00", "12-03 02:09:00"]),
        ("0 50/7 2 1 * *", ["12-01 02:50:00", "12-01 02:57:00", "01-01 02:50:00"]),
        ("0 0 0 29 2 *", ["02-29 00:00:00"] * 3),
        ("0 0 0 30 2 *", []),
    ],
)
def test_the_next_times(expression: str, expected: list[str]) -> None:
    found = cron.upcoming(cron.check(expression), MONDAY)
    assert [f"{time:%m-%d %H:%M:%S}" for time in found] == expected
    assert all(time.utcoffset() == timedelta(0) for time in found)


def test_times_are_utc_wherever_one_asks() -> None:
    there = MONDAY.astimezone(timezone(timedelta(hours=8)))
    assert cron.upcoming("0 0 2 * * *", there) == cron.upcoming("0 0 2 * * *", MONDAY)


def test_the_line_for_a_person() -> None:
    assert cron.next_words("0 0 2 29 2 *").startswith("next: ")
    assert cron.next_words("0 0 2 * * *").count(" 02:00:00") == 3
    assert cron.next_words("0 0 2 * * *").endswith(" UTC")
    assert cron.next_words("0 0 2 30 2 *") == "next: never"
