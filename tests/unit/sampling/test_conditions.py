"""What each video of a set shows, and captions from files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latte.errors import UserError
from latte.sampling.conditions import Conditions, classes_of, read_captions


def test_labels_and_captions_are_taken_in_turn():
    assert [Conditions(labels=[2, 0]).label(i) for i in range(4)] == [2, 0, 2, 0]
    given = Conditions(captions=["a", "b", "c"])
    assert [given.caption(i) for i in (0, 4, 2)] == ["a", "b", "c"]
    assert given.label(0) is None
    assert Conditions().label(5) is Conditions().caption(5) is None


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(sum), st.integers(0, 99), st.integers(0, 5000))
def test_a_drawn_label_is_a_class_that_the_dataset_has(counts, seed, index):
    conditions = Conditions(seed, class_counts=counts)
    assert counts[conditions.label(index)] > 0
    assert conditions.label(index) == Conditions(seed, class_counts=counts).label(index)


def test_drawn_labels_have_the_shares_of_the_dataset():
    conditions = Conditions(3, class_counts=[1, 0, 3])
    shares = np.bincount([conditions.label(i) for i in range(2000)], minlength=3) / 2000
    np.testing.assert_allclose(shares, [0.25, 0, 0.75], atol=0.03)


def test_classes_are_names_or_numbers():
    assert classes_of(None, ["cat", "dog"], 2) == [0, 1]
    assert classes_of(["dog", 0], ["cat", "dog"], 2) == [1, 0]
    for labels, words in ((["bird"], "no class 'bird'"), ([2], "2 is not a class; there are 2")):
        with pytest.raises(UserError, match=words):
            classes_of(labels, ["cat", "dog"], 2)


def test_classes_without_names_are_numbers():
    assert classes_of([100], [], 101) == [100]
    with pytest.raises(UserError, match="labels: 'dog': the model's classes have no names; give numbers from 0 to 100"):
        classes_of(["dog"], [], 101)


def test_only_line_ends_part_captions(tmp_path):
    path = tmp_path / "c.txt"
    path.write_bytes("a cat\u2028on a mat\r\na dog\x0brunning\ra fish\n".encode())
    assert read_captions(str(path)) == ["a cat\u2028on a mat", "a dog\x0brunning", "a fish"]


def test_captions_are_lines_or_a_column(tmp_path):
    text, table = tmp_path / "c.txt", tmp_path / "c.csv"
    text.write_text("a cat\n\n  a dog, running \n")
    table.write_text('\ufeffpath,caption\n1.mp4,a cat\n2.mp4,"a dog, running"\n3.mp4,\n')
    assert read_captions(str(text)) == read_captions(table.as_uri()) == ["a cat", "a dog, running"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.csv", b"path,label\n1.mp4,cat\n", "no column caption, it has path, label"),
        ("c.csv", b"", "no column caption"),
        ("c.csv", b'caption\n"open\n', "not CSV"),
        ("c.txt", b"\n \n", "no captions in it"),
        ("c.txt", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_bad_caption_files_are_refused_in_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_captions(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such object"):
        read_captions(str(tmp_path / "nowhere.txt"))
