"""Cron expressions as Kubeflow Pipelines takes them: six fields, seconds first; times are UTC."""

import re

from latte.errors import UserError

_MONTHS = {
    "JAN": 1, "FEB": 2, "MAR": 3, "APR": 4, "MAY": 5, "JUN": 6,
    "JUL": 7, "AUG": 8, "SEP": 9, "OCT": 10, "NOV": 11, "DEC": 12,
}  # fmt: skip
_DAYS = {"SUN": 0, "MON": 1, "TUE": 2, "WED": 3, "THU": 4, "FRI": 5, "SAT": 6}
# name, lowest, highest, names, whether "?" may stand for any
_FIELDS: tuple[tuple[str, int, int, dict[str, int], bool], ...] = (
    ("second", 0, 59, {}, False),
    ("minute", 0, 59, {}, False),
    ("hour", 0, 23, {}, False),
    ("day of month", 1, 31, {}, True),
    ("month", 1, 12, _MONTHS, False),
    ("day of week", 0, 6, _DAYS, True),
)


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
    for part, (name, lowest, highest, names, any_mark) in zip(parts, _FIELDS, strict=True):
        for item in part.split(","):
            if not _fits(item, lowest, highest, names, any_mark):
                raise UserError(f"cron {expression!r}: {name} {item!r}: expected {lowest} to {highest}, *, a-b or */n")
    return " ".join(parts)


def _fits(item: str, lowest: int, highest: int, names: dict[str, int], any_mark: bool) -> bool:
    found = re.fullmatch(r"(?P<first>\*|\?|\w+)(-(?P<last>\w+))?(/(?P<step>[0-9]{1,4}))?", item, re.ASCII)
    if found is None:
        return False
    first, last, step = found["first"], found["last"], found["step"]
    if step is not None and int(step) == 0:
        return False
    if first in ("*", "?"):
        return last is None and (first == "*" or (any_mark and step is None))
    numbers = [_number(text, names) for text in (first, last) if text is not None]
    inside = [number for number in numbers if number is not None and lowest <= number <= highest]
    return inside == numbers == sorted(inside)


def _number(text: str, names: dict[str, int]) -> int | None:
    return int(text) if text.isdigit() else names.get(text.upper())
