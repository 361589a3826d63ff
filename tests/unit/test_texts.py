"""Hidden states of captions: made once, kept by content, ragged; what is damaged is made again."""

from pathlib import Path

import numpy as np
import pytest

from latte import networks, storage, texts
from latte.checkpoints import store
from latte.errors import UserError
from latte.kinds import t5
from latte.models import t5 as model
from latte.models.t2v_configs import T5Config
from latte.storage import manifest
from tests import peers, published

TOKENIZER = Path(__file__).parents[1] / "data" / "t5" / "spiece.model"
SIZES = {**published.T5, "num_layers": 1}
CAPTIONS = ["A dog", "a small cactus with a happy face", "a dog", "http://www.example.com"]


def source(root: Path, **weights: np.ndarray) -> networks.TextSource:
    made = peers.weights(t5.shapes_of(T5Config(**SIZES)), seed=0) | weights
    ref = store.save(made, storage.join(root.as_uri(), "weights", "t5", "model.safetensors"))
    shard = manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256)
    return networks.TextSource(shard, SIZES, TOKENIZER.as_uri(), ref.sha256, "t5")


def shards(root: Path) -> list[Path]:
    return sorted((root / "texts").rglob("*.safetensors"))


def never(*_: object) -> None:
    raise AssertionError("the encoder is not needed")


def test_states_are_made_once_and_found_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = source(tmp_path)
    made = texts.embed(tmp_path.as_uri(), text, CAPTIONS)
    rows, mask = made.batch(CAPTIONS)
    lengths = mask.sum(1).astype(int).tolist()
    assert lengths[0] == lengths[2] < lengths[1]
    assert lengths[3] == 1  # nothing is left of it but the end
    np.testing.assert_array_equal(rows[0], rows[2])
    np.testing.assert_array_equal(rows[3, 0], made.null[0])
    assert (rows[mask == 0] == 0).all()
    assert np.abs(made.null[1:]).min(axis=1).max() > 0  # the empty caption has states at every token
    # Three texts and the 120 tokens of the empty one, no more.
    (shard,) = shards(tmp_path)
    assert shard.stat().st_size == pytest.approx(4 * 24 * (lengths[0] + lengths[1] + 120), abs=200)

    monkeypatch.setattr(model, "EncoderInPieces", never)
    again, _ = texts.embed(tmp_path.as_uri(), text, ["<b>a dog</b>", CAPTIONS[1]]).batch(["<b>a dog</b>", CAPTIONS[1]])
    np.testing.assert_array_equal(again, rows[:2])
    assert shards(tmp_path) == [shard]


def test_only_what_is_new_or_damaged_is_made(tmp_path: Path) -> None:
    text = source(tmp_path)
    first, _ = texts.embed(tmp_path.as_uri(), text, CAPTIONS[:1]).batch(CAPTIONS[:1])
    (shard,) = shards(tmp_path)
    more, _ = texts.embed(tmp_path.as_uri(), text, CAPTIONS).batch(CAPTIONS)
    assert len(shards(tmp_path)) == 2
    np.testing.assert_array_equal(more[0], first[0])
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # of the last caption of the shard: the first one here
    shard.write_bytes(content)
    healed, _ = texts.embed(tmp_path.as_uri(), text, CAPTIONS).batch(CAPTIONS)
    np.testing.assert_array_equal(healed, more)
    assert len(shards(tmp_path)) == 3
    healed, _ = texts.embed(tmp_path.as_uri(), text, CAPTIONS).batch(CAPTIONS)
    assert len(shards(tmp_path)) == 3


def test_weights_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    shape = t5.shapes_of(T5Config(**SIZES))[name]
    for value, words in ((np.nan, f"tensor {name} holds NaN"), (3e38, "hidden states of the caption .* not finite")):
        with pytest.raises(UserError, match=words) as caught:
            texts.embed(tmp_path.as_uri(), source(tmp_path, **{name: np.full(shape, value, np.float32)}), ["a dog"])
        assert "\n" not in str(caught.value)
    assert not shards(tmp_path)
    other = networks.TextSource(source(tmp_path).weights, published.T5, TOKENIZER.as_uri(), "d", "t5")
    with pytest.raises(UserError, match=r"tensor encoder\.block\.1\..* is missing"):
        texts.embed(tmp_path.as_uri(), other, ["a dog"])
