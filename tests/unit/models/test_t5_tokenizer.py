"""T5's tokenizer beside SentencePiece itself, whose answers tests/data/t5 keeps, and beside transformers."""

import json
from pathlib import Path

import numpy as np
import pytest

from latte.errors import UserError
from latte.models.t5_tokenizer import T5Tokenizer
from tests import peers

DATA = Path(__file__).parents[2] / "data" / "t5"
SENTENCEPIECE = DATA / "spiece.model"
# By SentencePiece 0.2.3, without the end.
TOKENS = json.loads((DATA / "spiece.json").read_text())


def test_tokens_are_those_of_sentencepiece_with_the_end_after_them() -> None:
    tokens, mask, cut = T5Tokenizer(SENTENCEPIECE)(list(TOKENS))
    assert tokens.shape == mask.shape == (len(TOKENS), 120)
    assert (tokens.dtype, mask.dtype) == (np.int32, np.float32)
    for i, expected in enumerate(TOKENS.values()):
        whole = [*expected, 1]
        kept = whole if len(whole) <= 120 else [*expected[:119], 1]
        np.testing.assert_array_equal(tokens[i], kept + [0] * (120 - len(kept)))
        assert mask[i].sum() == len(kept)
        assert cut[i] == len(whole) - len(kept)
    assert max(cut) > 120  # more than once the length


@pytest.mark.peers
def test_tokenizer_json_of_transformers_gives_the_same_tokens(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        from transformers import T5Tokenizer as Published

        from latte.models.t5_tokenizer import _model_class

        model = _model_class()().FromString(SENTENCEPIECE.read_bytes())
        vocab = [(piece.piece, piece.score) for piece in model.pieces]
        vocab += [(f"<extra_id_{number}>", 0.0) for number in reversed(range(100))]
        charsmap = model.normalizer_spec.precompiled_charsmap
        Published(vocab=vocab, _spm_precompiled_charsmap=charsmap).backend_tokenizer.save(str(path))

    file = peers.file("t5-tokenizer.json", tmp_path, write)
    (tmp_path / "tokenizer.json").write_text(file.read_text())
    texts = [*TOKENS, "a dog </s> and <extra_id_3> <unk> <pad>"]
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        for ours, theirs in zip(T5Tokenizer(SENTENCEPIECE)(texts), T5Tokenizer(place)(texts), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_another_length_cuts_there() -> None:
    tokens, mask, cut = T5Tokenizer(DATA, length=5)(["a dog, é è ü … 1 2 3", ""])
    assert tokens[0, -1] == tokens[1, 0] == 1
    assert mask.sum(1).tolist() == [5, 1]
    assert cut[0] > 0 == cut[1]


def test_files_that_are_no_tokenizer_are_named(tmp_path: Path) -> None:
    clip = Path(__file__).parents[2] / "data" / "peers" / "tokenizer.json"
    renamed = SENTENCEPIECE.read_bytes().replace(b"<pad>", b"<pat>")
    cases = [
        ("nothing.model", None, "no tokenizer there; expected spiece.model or tokenizer.json"),
        ("a.model", b"\x0a\xff", "not a tokenizer: neither SentencePiece's model nor tokenizer.json"),
        ("b.model", b"", r"not T5's tokenizer: it begins with \[\]"),
        ("c.model", renamed, r"begins with \['<pat>', '</s>', '<unk>'\]"),
        ("d.model", SENTENCEPIECE.read_bytes()[:-400], "not a tokenizer"),
        ("e.model", SENTENCEPIECE.read_bytes() + b"\x12\x02\x18\x02", "of another kind than unigram"),
        ("tokenizer.json", b"{", "not a tokenizer"),
        ("clip.json", clip.read_bytes(), "not T5's tokenizer: no <pad>"),
    ]
    for name, content, words in cases:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=words) as caught:
            T5Tokenizer(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
