"""Captions as Latte-1 was trained and published to take them: cleaned twice of what web pages leave in them.

The rules are those of DeepFloyd IF, PixArt-alpha and Latte's pipelines (`clean_caption`), in their order: each finds
what the ones before have left. They were made for texts of web pages; a plain sentence only loses its capitals.
"""

import html
import re
import warnings
from urllib.parse import unquote_plus

_DOMAINS = "com|co|ru|net|org|edu|gov|it"
_ENDINGS = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_ADDRESS = rf"[a-zA-Z0-9.\-]+\.(?:{_DOMAINS})[\w/-]*\b/?(?!@)"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_SIGNS = "#®•©™&@·º½¾¿¡§~()[]{}|\\/*"
_TIMES = "x\u0445×"  # also the Cyrillic letter that looks like an x
_JOINTS = re.compile("[-_]")
_MOST_JOINTS = 3

Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*rows: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rows)


_BEFORE_MARKUP = _rules(
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_ADDRESS})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_ADDRESS})", ""),
)
_AFTER_MARKUP = _rules(
    (r"@\w+\b", ""),  # nicknames
    (r"[\u31c0-\u9fff]+", ""),  # Chinese, and what Unicode has beside it
    (f"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # addresses of machines
    (r"\d:\d\d\s+$", ""),  # times at the end
    (r"\\n", " "),  # line breaks that were written out
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),  # numbers of articles
    (rf"\S+\.(?:{_ENDINGS})", ""),  # names of files
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (f"[{re.escape(_SIGNS)}]+", " "),
    (r"\s+\.\s+", " "),
)
_LAST = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_ENDINGS})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (rf"\b\d+\.?\d*[{_TIMES}]\d+\.?\d*\b", ""),  # sizes, 30x40
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def cleaned(caption: str) -> str:
    """The caption as it is tokenized."""
    return _cleaned_once(_cleaned_once(caption))


def _cleaned_once(caption: str) -> str:
    import ftfy

    text = _apply(_BEFORE_MARKUP, unquote_plus(caption).strip().lower())
    text = _apply(_AFTER_MARKUP, _without_markup(text))
    if len(_JOINTS.findall(text)) > _MOST_JOINTS:  # this-is-my-cute-cat
        text = _JOINTS.sub(" ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _apply(_LAST, text).strip()


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _without_markup(text: str) -> str:
    """The text of an HTML page; what is none, as it is."""
    import bs4

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a caption looks like the name of a file, or like XML
        try:
            return str(bs4.BeautifulSoup(text, features="html.parser").text)
        except bs4.ParserRejectedMarkup:
            return text
