import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from latte import device
from latte.errors import UserError
from latte.models.clip_text import ClipTextConfig, ClipTextModel, ClipTokenizer
from tests import peers

SMALL = ClipTextConfig(
    vocab_size=100,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=20,
)
MERGES = ["a t</w>", "c at</w>", "t h", "th e</w>", "i n", "in g</w>", "d o", "do g</w>", "' s</w>", "! !</w>"]


def published_net(config):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**config.model_dump(), bos_token_id=1, eos_token_id=2, pad_token_id=2)).eval()


def with_prefix(state):
    """Published files have this prefix; new versions of transformers drop it in memory."""
    return {f"text_model.{name.removeprefix('text_model.')}": value for name, value in state.items()}


def check(name, config, tokens):
    shapes = peers.shapes(f"{name}-shapes", lambda: with_prefix(published_net(config).state_dict()))
    weights = peers.weights(shapes, seed=0)

    def ask():
        import torch

        published = published_net(config)
        own_names = dict(zip(with_prefix(published.state_dict()), published.state_dict(), strict=True))
        published.load_state_dict({own_names[key]: torch.from_numpy(value) for key, value in weights.items()})
        with torch.no_grad():
            return published(input_ids=torch.from_numpy(tokens)).last_hidden_state.numpy()

    expected = peers.one(f"{name}-{tokens.shape[1]}", ask)
    own = ClipTextModel(config)
    params = dict(own.parameters_and_names())
    assert {key: tuple(param.shape) for key, param in params.items()} == shapes
    for key, value in weights.items():
        params[key].set_data(device.ms.Tensor(value))
    assert expected.values.std() > 0.5
    found = expected.same_places(own.encode(tokens).asnumpy())
    np.testing.assert_allclose(found, expected.values, atol=1e-4, rtol=0)


@pytest.fixture(scope="module", autouse=True)
def _device():
    device.setup(seed=0)


@pytest.mark.peers
@pytest.mark.parametrize("length", [20, 7])
def test_last_hidden_state_is_the_published_one(length):
    check("clip-small", SMALL, np.random.default_rng(length).integers(0, SMALL.vocab_size, (3, length)))


@pytest.mark.peers
def test_one_layer_of_the_published_size():
    config = ClipTextConfig(vocab_size=1000, num_hidden_layers=1)
    check("clip-large", config, np.random.default_rng(0).integers(0, config.vocab_size, (1, 77)))


def test_parameters_are_those_that_the_converter_expects():
    from latte.kinds import clip

    own = {name: tuple(param.shape) for name, param in ClipTextModel(SMALL).parameters_and_names()}
    assert own == clip.shapes_of(SMALL)


def test_tokens_that_do_not_fit_are_refused():
    net = ClipTextModel(SMALL)
    for tokens in (np.zeros((1, 21), int), np.zeros(5, int), np.full((1, 4), 100), np.full((1, 4), -1)):
        with pytest.raises(UserError, match="do not fit"):
            net.encode(tokens)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [letter + "</w>" for letter in alphabet] + [merge.replace(" ", "") for merge in MERGES]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    return folder


@pytest.fixture(scope="module")
def published_file(vocabulary, tmp_path_factory):
    """tokenizer.json as transformers writes it."""

    def write(path):
        from transformers import CLIPTokenizerFast

        merges = [tuple(merge.split(" ")) for merge in MERGES]
        fast = CLIPTokenizerFast(vocab=json.loads((vocabulary / "vocab.json").read_text()), merges=merges)
        fast.backend_tokenizer.save(str(path))

    return peers.file("tokenizer.json", tmp_path_factory.mktemp("published"), write)


def published_tokens(file, texts):
    """Padded and cut off as CLIP's tokenizer does it, by the library that its file is for."""
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(77)
    tokenizer.enable_padding(length=77, pad_id=tokenizer.token_to_id("<|endoftext|>"))
    return np.array([encoding.ids for encoding in tokenizer.encode_batch(texts)])


TEXTS = [
    "",
    "The cat's dog!!",
    "  thing\tTHING\n  ",
    "a photo of 1234 cats, 猫 and ÄÖÜ é",
    "dog " * 100,
    "<|endoftext|> cat <|startoftext|>",
]


@pytest.mark.peers
def test_tokens_are_the_published_ones(vocabulary, published_file):
    tokens = ClipTokenizer(vocabulary)(TEXTS)
    assert tokens.shape == (len(TEXTS), 77)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, published_tokens(published_file, TEXTS))


@pytest.mark.peers
def test_padding_and_cutting_off_are_those_of_transformers(vocabulary):
    def ask():
        from transformers import CLIPTokenizerFast

        merges = [tuple(merge.split(" ")) for merge in MERGES]
        fast = CLIPTokenizerFast(vocab=json.loads((vocabulary / "vocab.json").read_text()), merges=merges)
        return np.array(fast(TEXTS, padding="max_length", max_length=77, truncation=True)["input_ids"])

    expected = peers.one("clip-tokens", ask)
    np.testing.assert_array_equal(expected.same_places(ClipTokenizer(vocabulary)(TEXTS)), expected.values)


@pytest.mark.peers
def test_tokenizer_json_gives_the_same_tokens(vocabulary, published_file, tmp_path):
    (tmp_path / "tokenizer.json").write_text(published_file.read_text())
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        np.testing.assert_array_equal(ClipTokenizer(path)(TEXTS), ClipTokenizer(vocabulary / "vocab.json")(TEXTS))


@pytest.mark.peers
def test_a_tokenizer_that_leaves_out_start_and_end_is_refused(published_file, tmp_path):
    settings = json.loads(published_file.read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**settings, "post_processor": None}))
    with pytest.raises(UserError, match=r"tokenizer\.json: not CLIP's tokenizer: no .* around a text"):
        ClipTokenizer(tmp_path)


@pytest.mark.peers
def test_any_text_has_the_published_tokens(vocabulary, published_file):
    tokenizer = ClipTokenizer(vocabulary)

    @settings(max_examples=100, deadline=None)
    @given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=120))
    def check(text):
        np.testing.assert_array_equal(tokenizer([text]), published_tokens(published_file, [text]))

    check()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer there"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json: not a tokenizer"),
        ({"vocab.json": "{}"}, r"vocab\.json: not a tokenizer"),
        ({"vocab.json": "{}", "merges.txt": "#version: 0.2\n"}, "not CLIP's tokenizer"),
    ],
)
def test_files_that_are_no_tokenizer_are_named(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        ClipTokenizer(tmp_path)
