import json

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast

from latte import device
from latte.errors import UserError
from latte.models.clip_text import ClipTextConfig, ClipTextModel, ClipTokenizer

SMALL = ClipTextConfig(
    vocab_size=100,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=20,
)
MERGES = ["a t</w>", "c at</w>", "t h", "th e</w>", "i n", "in g</w>", "d o", "do g</w>", "' s</w>", "! !</w>"]


def published_and_own(config, seed=0):
    torch.manual_seed(seed)
    published = CLIPTextModel(
        CLIPTextConfig(**config.model_dump(), bos_token_id=1, eos_token_id=2, pad_token_id=2)
    ).eval()
    with torch.no_grad():
        for value in published.parameters():  # fresh weights are small: biases and norms would not count
            value.add_(0.1 * torch.randn_like(value))
    own = ClipTextModel(config)
    params = dict(own.parameters_and_names())
    # Published files have this prefix; new versions of transformers drop it in memory.
    state = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in published.state_dict().items()}
    assert set(params) == set(state)
    for name, value in state.items():
        assert tuple(params[name].shape) == tuple(value.shape), name
        params[name].set_data(device.ms.Tensor(value.numpy()))
    return published, own


@pytest.fixture(scope="module", autouse=True)
def _device():
    device.setup(seed=0)
    torch.set_num_threads(2)


@pytest.mark.parametrize("length", [20, 7])
def test_last_hidden_state_is_the_published_one(length):
    published, own = published_and_own(SMALL)
    tokens = np.random.default_rng(length).integers(0, SMALL.vocab_size, (3, length))
    with torch.no_grad():
        expected = published(input_ids=torch.from_numpy(tokens)).last_hidden_state.numpy()
    found = own.encode(tokens).asnumpy()
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_one_layer_of_the_published_size():
    config = ClipTextConfig(vocab_size=1000, num_hidden_layers=1)
    published, own = published_and_own(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, 77))
    with torch.no_grad():
        expected = published(input_ids=torch.from_numpy(tokens)).last_hidden_state.numpy()
    np.testing.assert_allclose(own.encode(tokens).asnumpy(), expected, atol=1e-4, rtol=0)


def test_parameters_are_those_that_the_converter_expects():
    from latte.checkpoints.architectures import clip_shapes

    own = {name: tuple(param.shape) for name, param in ClipTextModel(SMALL).parameters_and_names()}
    assert own == clip_shapes(SMALL)


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
def published_tokenizer(vocabulary):
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    return CLIPTokenizerFast(vocab=json.loads((vocabulary / "vocab.json").read_text()), merges=merges)


def published_tokens(tokenizer, texts):
    return np.array(tokenizer(texts, padding="max_length", max_length=77, truncation=True)["input_ids"])


TEXTS = [
    "",
    "The cat's dog!!",
    "  thing\tTHING\n  ",
    "a photo of 1234 cats, 猫 and ÄÖÜ é",
    "dog " * 100,
    "<|endoftext|> cat <|startoftext|>",
]


def test_tokens_are_the_published_ones(vocabulary, published_tokenizer):
    tokens = ClipTokenizer(vocabulary)(TEXTS)
    assert tokens.shape == (len(TEXTS), 77)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, published_tokens(published_tokenizer, TEXTS))


def test_tokenizer_json_gives_the_same_tokens(vocabulary, published_tokenizer, tmp_path):
    published_tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        np.testing.assert_array_equal(ClipTokenizer(path)(TEXTS), ClipTokenizer(vocabulary / "vocab.json")(TEXTS))


def test_a_tokenizer_that_leaves_out_start_and_end_is_refused(published_tokenizer, tmp_path):
    settings = json.loads(published_tokenizer.backend_tokenizer.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**settings, "post_processor": None}))
    with pytest.raises(UserError, match=r"tokenizer\.json: not CLIP's tokenizer: no .* around a text"):
        ClipTokenizer(tmp_path)


def test_any_text_has_the_published_tokens(vocabulary, published_tokenizer):
    tokenizer = ClipTokenizer(vocabulary)

    @settings(max_examples=100, deadline=None)
    @given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=120))
    def check(text):
        np.testing.assert_array_equal(tokenizer([text]), published_tokens(published_tokenizer, [text]))

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
