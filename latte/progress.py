"""Progress on long work: a bar with rate and time left on a terminal, a plain line now and then in a log."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

from latte.errors import UserError
from latte.terminal import shown


def progress(
    iterable: Iterable[Any] | None = None,
    total: int | None = None,
    desc: str = "",
    unit: str = "it",
    disable: bool = False,
    scaled: bool = False,
) -> tqdm:
    """A tqdm bar on standard error; where that is not a terminal (a pod's log) it prints a line about every 10 seconds.

    `LATTE_PROGRESS_INTERVAL_S` changes those 10 seconds; `scaled` says thousands and millions of the unit as kB and MB.
    """
    interval_s = 0.1 if sys.stderr.isatty() else _interval_s()
    return tqdm(
        iterable,
        file=sys.stderr if sys.stderr.isatty() else _Lines(),
        disable=disable,
        total=total,
        desc=shown(desc),
        unit=unit,
        unit_scale=scaled,
        dynamic_ncols=sys.stderr.isatty(),
        mininterval=interval_s,
        miniters=1,
    )


def _interval_s() -> float:
    text = os.environ.get("LATTE_PROGRESS_INTERVAL_S", "10")
    try:
        return float(text)
    except ValueError:
        raise UserError(f"LATTE_PROGRESS_INTERVAL_S={text!r}: expected seconds") from None


def teller(bar: tqdm) -> Callable[[str], None]:
    """A function that shows a text behind a bar between two of its updates, as seldom as the bar is shown itself."""
    shown_at_s = -math.inf

    def tell(text: str) -> None:
        nonlocal shown_at_s
        due = time.monotonic() - shown_at_s >= bar.mininterval
        bar.set_postfix_str(text, refresh=due)
        if due:
            shown_at_s = time.monotonic()

    return tell


class _Lines:
    """Standard error with every update on a line of its own: what collects a pod's log waits for the end of a line."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        """Take one update, which starts with a carriage return."""
        if update := text.strip():
            sys.stderr.write(update + "\n")

    def flush(self) -> None:
        """Hand on what was written."""
        sys.stderr.flush()
