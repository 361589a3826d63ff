"""Captions are cleaned as diffusers' LattePipeline does it: a list, and random mixtures of what its rules look for."""

import ast
import html
import importlib.util
import random
import re
import urllib.parse
import warnings
from pathlib import Path

import numpy as np
import pytest

from latte.models.caption_cleaning import cleaned
from tests import peers

PARTS = [
    "a cat", "DOG", "https://www.x.com/a-b", "http:/", "www:abc", "foo.co/bar", "me@x.com", "@nick", "<b>bold</b>",
    "<person>", "&amp;", "&quot;x", "&lt;i&gt;", "猫", "㌀", "—", "«q»", "’s", "1.2.3.4", "3:45 ", "\\n", "#12",
    "#123456", "1234567",
    "pic.png", '"""', "...", "***", "this-is-my-cute-cat", "_a_", "jc6640", "jc6640vc", "6640vc231", "a./b",
    "free shipping", "download free", "click for more", "jpg images", "page 3", "j2d1a2a", "30x40", "2.5×3", " : ",
    "a,b", "\tx\n", "'", '"', "-", ":", ";", "+", "%20", "%3Cb%3E", ".hidden", "Ã©", "ﬁ", "½", "café", "<",
    "<!--c-->", "</",
    "<script>x</script>", "worldwide  free shipping", "\u200b", "x²", "１２", "é", "(a) [b] {c}|~", "4х5", "http:x",
]  # fmt: skip
SENTENCES = {
    "A small cactus with a happy face in the Sahara desert.": "a small cactus with a happy face in the sahara desert.",
    "  Dogs,cats and birds  ": "dogs, cats and birds",
    "this-is-my-cute-cat.png": "",
    '"A quoted caption"': "a quoted caption",
    "see https://example.com/cats for <i>cats</i> &amp; dogs": "see for cats dogs",
    "": "",
}


def mixtures(count: int) -> list[str]:
    draw = random.Random(0)
    return [draw.choice(["", " "]).join(draw.choices(PARTS, k=draw.randint(1, 9))) for _ in range(count)]


def published():
    """The pipeline's own method, without the pipeline: it is called on the class, which holds one pattern."""
    import bs4
    import ftfy

    found = importlib.util.find_spec("diffusers")
    assert found is not None and found.origin is not None
    source = Path(found.origin).parent / "pipelines" / "latte" / "pipeline_latte.py"
    pipeline = next(
        node for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "LattePipeline"
    )  # fmt: skip
    kept = [
        node for node in pipeline.body
        if (isinstance(node, ast.FunctionDef) and node.name == "_clean_caption")
        or (isinstance(node, ast.Assign) and "bad_punct_regex" in ast.unparse(node))
    ]  # fmt: skip
    names = {"re": re, "html": html, "ul": urllib.parse, "BeautifulSoup": bs4.BeautifulSoup, "ftfy": ftfy}
    exec(compile(ast.Module(kept, []), str(source), "exec"), names)
    holder = type("Holder", (), {"bad_punct_regex": names["bad_punct_regex"]})
    clean = names["_clean_caption"]
    return lambda caption: clean(holder, clean(holder, caption))


@pytest.mark.peers
def test_captions_are_cleaned_as_published() -> None:
    captions = [*SENTENCES, *mixtures(500)]

    def ask():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.array(list(map(published(), captions)), np.str_)

    answered = ask() if peers.MODE != "recorded" else None
    path = peers.FOLDER / "cleaned-captions.txt"
    if peers.MODE == "record":
        path.write_text("\n".join(map(repr, answered.tolist())) + "\n", encoding="utf-8")
    expected = [ast.literal_eval(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if answered is not None:
        assert answered.tolist() == expected
    assert [cleaned(caption) for caption in captions] == expected


@pytest.mark.parametrize("caption", SENTENCES)
def test_a_plain_caption_stays_and_what_pages_leave_goes(caption: str) -> None:
    assert cleaned(caption) == SENTENCES[caption]
    assert cleaned(cleaned(caption)) == cleaned(caption)


def test_markup_that_is_none_stays_text() -> None:
    assert cleaned("a <![cat in a box") == "a <! cat in a box"
