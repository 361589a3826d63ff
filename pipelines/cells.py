"""Output of a notebook's cell: a text whose last line changes in place, markup that is saved once, and tables."""

import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from latte.errors import UserError

# Characters after which pandas cuts a text off unless it is told another number; reasons are sentences.
_CUT_AT = 50


@dataclass(frozen=True)
class Html:
    """Markup that a notebook shows when it is the last line of a cell.

    Attributes:
        text: the markup.
        label: what stands for it where no markup is shown, and in the notebook's file beside it.
    """

    text: str = field(repr=False)
    label: str = "HTML"

    def _repr_html_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        # A notebook's file keeps this beside the markup, so it must not hold the markup again.
        return f"<{self.label}>"


class LiveText(io.TextIOBase):
    """A terminal for the output of a cell: whole lines stay, the unfinished last one is overwritten in place.

    All of it is one output of the cell, which is replaced as a whole: what a progress bar has overwritten is in no
    notebook that is saved. Outside of a notebook whole lines go to standard output, and progress is not shown.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._last = ""
        self._shown: str | None = None
        self._display: Any = None
        self._in_notebook = _kernel() is not None
        # While the server is asked, what KFP prints is dropped; lines written here meanwhile are not KFP's.
        self._output = sys.stdout

    def isatty(self) -> bool:
        """Always: a line after a carriage return takes the place of the one before."""
        return True

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Take a piece of output; it is shown by the next `flush`."""
        *lines, last = (self._last + text).split("\n")
        for line in map(_overwritten, lines):
            self._lines.append(line)
            if not self._in_notebook:
                print(line, file=self._output, flush=True)
        self._last = _overwritten(last)
        return len(text)

    def flush(self) -> None:
        """Show what was written."""
        text = "\n".join([*self._lines, *([self._last] if self._last else [])])
        if not self._in_notebook or text == self._shown:
            return
        self._shown = text
        bundle = {"text/plain": text}
        if self._display is None:
            from IPython.display import display

            self._display = display(bundle, raw=True, display_id=True)
        else:
            self._display.update(bundle, raw=True)

    def say(self, line: str) -> None:
        """Show a line that stays, above the progress."""
        last, self._last = self._last, ""
        self.write(f"{line}\n{last}")
        self.flush()

    def progress(self, line: str) -> None:
        """Show a line in the place of the last unfinished one."""
        self._last = line
        self.flush()

    def end(self) -> None:
        """Take the unfinished line away."""
        self.progress("")


def _overwritten(line: str) -> str:
    """The part of a line that a terminal shows in the end."""
    return line.rsplit("\r", 1)[-1]


def _kernel() -> Any:
    """The notebook's kernel that this process is; None in a plain Python or on IPython's command line."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None)


def frame(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Any:
    """A pandas DataFrame of these rows; it has the columns also where there is no row.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UserError(
            "tables in notebooks need pandas: `make notebook`, or pip install 'latte-pipelines[notebook]'"
        ) from None
    if pandas.get_option("display.max_colwidth") == _CUT_AT:
        pandas.set_option("display.max_colwidth", None)
    return pandas.DataFrame(list(rows), columns=list(columns))
