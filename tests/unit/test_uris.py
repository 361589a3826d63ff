"""URIs in stored documents: what lies under the root moves with it, everything else stays as it was."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latte import storage, uris
from latte.errors import UserError

ROOTS = ["s3://bucket/a/b", "s3://bucket", "file:///data/out", "file:///data/my%20out", "file:///data/my out"]
names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
ways = st.lists(names, max_size=4)
texts = st.one_of(
    st.text(max_size=20),
    st.text(max_size=8).map(lambda text: uris.SCHEME + text),
    st.tuples(st.sampled_from(ROOTS), ways, st.sampled_from(["", "/", "//", "/..", "/../x", "x"])).map(
        lambda parts: "/".join([parts[0], *parts[1]]) + parts[2]
    ),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(root=st.sampled_from(ROOTS), folder=ways, name=names, value=values)
@example(root="file:///data/out", folder=["a"], name="m.json", value=["file:///data/out/a", "file:///data/out/a/"])
def test_what_is_read_is_what_was_written(root: str, folder: list[str], name: str, value: Any) -> None:
    document = "/".join([root, *folder, name])
    stored = json.loads(json.dumps(uris.relative(value, document, root)))
    assert same(uris.resolve(stored, document), value, root)


def same(found: Any, value: Any, root: str) -> bool:
    """Equal, whichever way the root in the texts of `value` is spelled."""

    def plain(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        spelled = [each for each in uris.spellings(root) if text == each or text.startswith(each + "/")]
        return root + text.removeprefix(spelled[0]) if spelled else text

    return uris._mapped(found, plain) == uris._mapped(value, plain)


@given(old=st.sampled_from(ROOTS), new=st.sampled_from(ROOTS), folder=ways, name=names, below=ways)
def test_a_moved_document_names_what_moved_with_it_in_its_new_place(
    old: str, new: str, folder: list[str], name: str, below: list[str]
) -> None:
    def under(root: str, *parts: str) -> str:
        return "/".join([root, *parts])

    stored = uris.relative({"uri": under(old, *below)}, under(old, *folder, name), old)
    assert not json.dumps(stored).count(old), "the old root is nowhere in it"
    assert uris.resolve(stored, under(new, *folder, name)) == {"uri": under(new, *below)}


@given(root=st.sampled_from(ROOTS), folder=ways, name=names, inside=ways)
def test_a_place_that_is_copied_alone_names_what_lies_in_it(
    root: str, folder: list[str], name: str, inside: list[str]
) -> None:
    place = "/".join([root, *folder])
    stored = uris.relative("/".join([place, *inside]), f"{place}/{name}", root)
    assert uris.resolve(stored, f"s3://other/x/{name}") == "/".join(["s3://other/x", *inside])


def test_a_way_is_short_and_a_neighbour_with_a_longer_name_is_not_below_the_root() -> None:
    document = "s3://b/out/scores/a/1/manifest.json"
    value = ["s3://b/out/videos/a/2", "s3://b/out/scores/a/1", "s3://b/out-2/x", "s3://b/out", "see s3://b/out/videos"]
    stored = uris.relative(value, document, "s3://b/out/")
    assert stored == [
        "here://../../../videos/a/2", "here://.", "s3://b/out-2/x", "here://../../..", "see s3://b/out/videos"
    ]  # fmt: skip


def test_a_person_sees_places_from_the_root() -> None:
    value = {"a": ["s3://b/out/videos/a/2", "s3://b/out", "s3://other/x", 3], "b": ("file:///x",)}
    seen = {"a": ["videos/a/2", "s3://b/out", "s3://other/x", 3], "b": ["file:///x"]}
    assert uris.seen_from("s3://b/out", value) == seen


def test_without_a_root_nothing_becomes_relative(root: str) -> None:
    uri = storage.join(root, "a", "m.json")
    value = {"uri": storage.join(root, "a"), "caption": "here://said"}
    storage.write_json(uri, value)
    assert root in storage.read_bytes(uri).decode()
    assert storage.read_json(uri) == value
    storage.write_json(uri, value, root)
    assert root not in storage.read_bytes(uri).decode()
    assert storage.read_json(uri) == value


@pytest.mark.parametrize("way", ["here://../../../x", "here://../../../..", "here://a/../../x"])
def test_a_way_out_of_the_store_is_refused(way: str) -> None:
    with pytest.raises(UserError, match="leads out of its store"):
        uris.resolve({"uri": way}, "s3://bucket/a/b/m.json")


def test_a_document_elsewhere_is_a_bug() -> None:
    with pytest.raises(ValueError, match="not below"):
        uris.relative([], "s3://other/m.json", "s3://bucket/a")
