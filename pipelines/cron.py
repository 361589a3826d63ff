"""Cron expressions as Kubeflow Pipelines takes them: six fields, seconds first; times are UTC.

croniter reads them; what it knows beyond the scheduler of Kubeflow Pipelines (robfig/cron 1) is refused.
"""

import re
from contextlib import suppress
from datetime import UTC, datetime

from croniter import CroniterBadDateError, CroniterError, croniter

from latte.errors import UserError

_FIELDS = (
    ("second", "0 to 59"), ("minute", "0 to 59"), ("hour", "0 to 23"),
    ("day of month", "1 to 31"), ("month", "1 to 12"), ("day of week", "0 to 6"),
)  # fmt: skip
_DAY_OF_MONTH, _DAY_OF_WEEK = 3, 5
# Not L, W, #, R, and nothing at all.
_ITEM = re.compile(r"(\*|\?|(?P<first>[0-9]{1,9}|[A-Za-z]{3})(-(?P<last>[0-9]{1,9}|[A-Za-z]{3}))?)(/[0-9]{1,4})?")
# The scheduler looks no farther ahead.
_YEARS = 5


def check(expression: str) -> str:
    """The expression with single spaces.

    Raises:
        UserError: it has not six fields, or a field cannot be; the field is named.
    """
    parts = expression.split()
    if len(parts) != len(_FIELDS):
        hint = f'; did you mean "0 {" ".join(parts)}"' if len(parts) == 5 else ""
        raise UserError(
            f"cron {expression!r}: {len(parts)} fields, expected 6: second minute hour day-of-month month "
            f"day-of-week{hint}"
        )
    for number, (part, (name, range_of_it)) in enumerate(zip(parts, _FIELDS, strict=True)):
        for item in part.split(","):
            if not _fits(item, number):
                raise UserError(f"cron {expression!r}: {name} {item!r}: expected {range_of_it}, *, a-b or */n")
    return " ".join(parts)


def upcoming(expression: str, after: datetime, count: int = 3) -> list[datetime]:
    """The next times of an expression that `check` has passed, in UTC; fewer where five years have none."""
    fields = enumerate(expression.split())
    parts = [",".join(_plain(item, number) for item in part.split(",")) for number, part in fields]
    # A star lets the other field of the two decide, whatever stands beside it; else one of them is enough.
    starred = "*" in parts[_DAY_OF_MONTH] + parts[_DAY_OF_WEEK]
    times = croniter(
        " ".join(parts),
        after.astimezone(UTC),
        second_at_beginning=True,
        day_or=not starred,
        max_years_between_matches=_YEARS,
    )
    found: list[datetime] = []
    with suppress(CroniterBadDateError):
        found.extend(times.get_next(datetime) for _ in range(count))
    return found


def next_words(expression: str) -> str:
    """The next times from now on, in a line for a person."""
    times = [f"{time:%a %Y-%m-%d %H:%M:%S}" for time in upcoming(expression, datetime.now(UTC))]
    return f"next: {', '.join(times)} UTC" if times else "next: never"


def _fits(item: str, number: int) -> bool:
    if _ITEM.fullmatch(item) is None:
        return False
    ends = _ends(item)
    if number == _DAY_OF_WEEK and any("7" in end for end in ends):  # Sunday is 0
        return False
    try:
        lowest = [_values(end, number)[0] for end in ends]
        _values(item, number)
    except CroniterError:
        return False
    return lowest == sorted(lowest)


def _plain(item: str, number: int) -> str:
    """An item in words that croniter reads as the scheduler does; it takes 9-9 for once around the clock."""
    ends = _ends(item)
    if len(ends) == 2 and _values(ends[0], number) == _values(ends[1], number):
        return ends[0]
    return item.replace("?", "*")


def _ends(item: str) -> list[str]:
    """Both ends of a range, or the one value; none of * and ?."""
    found = _ITEM.fullmatch(item)
    return [] if found is None else [end for end in (found["first"], found["last"]) if end is not None]


def _values(item: str, number: int) -> list[int]:
    """The values of an item in a field by itself; croniter has the seconds last."""
    fields = ["*"] * len(_FIELDS)
    fields[number - 1] = item
    values: list[int] = croniter.expand(" ".join(fields))[0][number - 1]
    return values
