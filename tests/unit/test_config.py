from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latte import config
from latte.errors import UserError


class Inner(config.Config):
    depth: int = 2


class Outer(config.Config):
    name: str
    rate: float = 0.5
    inner: Inner = Inner()


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_file_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nrate: 0.25\n")
    loaded = config.load(Outer, path, ["inner.depth=7", "name=b c"])
    assert loaded == Outer(name="b c", rate=0.25, inner=Inner(depth=7))


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("name: a\nspeed: 1\n", [], ["settings.yaml", "unknown key speed", "known: inner, name, rate"]),
        ("rate: 1\n", [], ["settings.yaml", "missing key name"]),
        ("name: a\nrate: fast\n", [], ["settings.yaml", "rate", "'fast'"]),
        ("name: a\nrate: .inf\n", [], ["settings.yaml", "rate", "finite number"]),
        ("name: a\n", ["rate=.nan"], ["rate", "finite number"]),
        ("name: a\n", ["inner.depth=yes"], ["inner.depth", "YAML reads it as true or false", "got True"]),
        ("name: off\n", [], ["name", "put a text in quotes"]),
        ("name: a\ninner: {dept: 1}\n", [], ["unknown key inner.dept"]),
        ("name: [a\n", [], ["settings.yaml", "line 2", "not valid YAML"]),
        ("- a\n", [], ["expected a mapping", "list"]),
        ("name: a\n", ["rate"], ["'rate'", "key=value"]),
        ("name: a\n", ["name.x=1"], ["name is a value, not a section"]),
        ("name: !!python/object/apply:os.system ['true']\n", [], ["not valid YAML"]),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(
    tmp_path: Path, text: str, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        config.load(Outer, write(tmp_path, text), overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        config.load(Outer, tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        config.load(Outer, tmp_path / "b.yaml")


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.integers() | st.text(max_size=8) | st.none(), max_size=5))
def test_unknown_keys_never_pass(values: dict) -> None:
    with pytest.raises(UserError, match=r"^here: "):
        config.build(Outer, {**values, "name": "a", "unknown": 1}, "here")
