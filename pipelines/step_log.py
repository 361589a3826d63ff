"""Lines that a step wrote, out of the log of its pod: without KFP's own, and without what would steer a terminal."""

import re
import unicodedata
from collections.abc import Iterable, Iterator

# Argo's executor, KFP's launcher and driver (glog), and what KFP's executor and the libraries inside it say at INFO.
_ARGO = re.compile(r"time=\S+ level=\w+ msg=.*\bargo=true\b")
_GLOG = re.compile(r"(?P<level>[IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w./-]+\.go:\d+\] ?(?P<text>.*)")
_EXECUTOR = re.compile(r"\[KFP Executor [\d-]+ [\d:,]+ (?:INFO|DEBUG)\]: ?.*")
# Escape sequences as terminals read them: CSI, then OSC and its like up to their end, then those of two characters.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b.?"
)
_ERROR = "error: "
_LONGEST = 300
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning)\b(?:: .*)?")


def plain(text: str) -> str:
    """Text from elsewhere without escape sequences and control characters, in one line where a line is meant."""
    kept = "".join(letter for letter in _ESCAPES.sub("", text) if letter == "\t" or _shown(letter))
    return kept.encode("utf-8", "replace").decode()


def one_line(text: str) -> str:
    """At most 300 characters of it, in one line."""
    line = " ".join(plain(part) for part in text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _shown(letter: str) -> bool:
    # Cc: control characters; Cs: halves of pairs; Bidirectional overrides would turn the rest of the line around.
    return unicodedata.category(letter) not in ("Cc", "Cs") and not "\u202a" <= letter <= "\u202e"


def lines_of(text: str) -> list[str]:
    """The lines of a log; what a progress bar overwrites with carriage returns are lines of their own."""
    return [plain(line) for line in re.split(r"\r\n|\n|\r", _ESCAPES.sub("", text))]


def own(lines: Iterable[str]) -> Iterator[str]:
    """The lines that the step itself wrote; KFP's are left out with the JSON that follows some of them."""
    after_kfp = inside = False
    for line in lines:
        if inside and (line == "}" or line.startswith((" ", "\t"))):
            inside = line != "}"
            continue
        inside = False
        if after_kfp and line == "{":
            inside = True
            continue
        glog = _GLOG.fullmatch(line)
        after_kfp = bool(glog or _ARGO.match(line) or _EXECUTOR.fullmatch(line))
        if after_kfp:
            inside = line.endswith("{")
            continue
        yield line


def last_words(text: str) -> str:
    """Why a step failed, by its log: our own error line, else an exception's, else what KFP's launcher says; or ""."""
    lines = lines_of(text)
    mine = [line.strip() for line in own(lines)]
    for line in reversed(mine):
        if line.startswith(_ERROR):
            return line.removeprefix(_ERROR)
    for line in reversed(mine):
        if _EXCEPTION.fullmatch(line):
            return line
    for line in reversed(lines):
        glog = _GLOG.fullmatch(line)
        if glog and glog["level"] in "EF":
            return glog["text"]
    return ""


def progress(text: str) -> str:
    """The last line that a step wrote; "" of none."""
    return next((line.strip() for line in reversed(list(own(lines_of(text)))) if line.strip()), "")
