"""Text from elsewhere on its way to a terminal: names of files, what a store or a cluster answers.

Control characters in it would steer the terminal, and a newline would make two lines of one. They are shown, not sent.
"""

import unicodedata

import click

# Ends of lines and paragraphs, and what turns the direction of the rest of the line around.
_STEERS = {"Cc", "Cs", "Zl", "Zp"}
_SPELLED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def shown(text: object) -> str:
    """The text in one line; control characters are spelled as in Python's source."""
    line = str(text)
    return line if line.isprintable() else "".join(map(_spelled, line))


def say(text: object, err: bool = False) -> None:
    """Print it as one line, to standard output or to standard error."""
    click.echo(shown(text), err=err)


def _spelled(letter: str) -> str:
    if letter in _SPELLED:
        return _SPELLED[letter]
    number = ord(letter)
    steers = unicodedata.category(letter) in _STEERS or 0x202A <= number <= 0x202E or 0x2066 <= number <= 0x2069
    return letter if not steers else f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
