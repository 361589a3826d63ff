"""The encoder of T5 v1.1 beside transformers' T5EncoderModel, on random weights."""

import mindspore as ms
import numpy as np
import pytest

from latte import device
from latte.errors import UserError
from latte.kinds import t5 as kind
from latte.models.t2v_configs import T5Config
from latte.models.t5 import EncoderInPieces, T5Encoder, buckets
from tests import peers

SMALL = T5Config(vocab_size=60, d_model=24, d_kv=5, d_ff=40, num_layers=3, num_heads=3)
FEW_BUCKETS = T5Config(
    vocab_size=20, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
    relative_attention_num_buckets=8, relative_attention_max_distance=20, layer_norm_epsilon=1e-3,
)  # fmt: skip
LENGTHS = (120, 7, 1)


@pytest.fixture(scope="module", autouse=True)
def _device():
    device.setup(seed=0)


def published_net(config):
    from transformers import T5Config as PublishedConfig
    from transformers import T5EncoderModel

    values = {**config.model_dump(), "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0}
    return T5EncoderModel(PublishedConfig(**values)).eval()


def own_state(config):
    """Without the table of tokens once more, which files of the encoder alone may have."""
    return {name: value for name, value in published_net(config).state_dict().items() if "embed_tokens" not in name}


def inputs(config):
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (len(LENGTHS), 120))
    mask = (np.arange(120) < np.array(LENGTHS)[:, None]).astype(np.float32)
    return np.where(mask > 0, tokens, 0), mask


def made_weights(name, config):
    return peers.weights(peers.shapes(f"{name}-shapes", lambda: own_state(config)), seed=0)


def with_weights(config, weights):
    net = T5Encoder(config)
    params = dict(net.parameters_and_names())
    assert {name: tuple(param.shape) for name, param in params.items()} == {k: v.shape for k, v in weights.items()}
    for name, value in weights.items():
        params[name].set_data(ms.Tensor(value))
    return net


def reader(weights):
    return lambda name: weights[name].copy()


@pytest.mark.peers
@pytest.mark.parametrize(("name", "config"), [("t5-small", SMALL), ("t5-few-buckets", FEW_BUCKETS)])
def test_hidden_states_are_the_published_ones(name, config):
    weights = made_weights(name, config)
    tokens, mask = inputs(config)

    def ask():
        import torch

        net = published_net(config)
        missing, unknown = net.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
        assert not unknown
        assert all("embed_tokens" in each for each in missing)
        net.encoder.embed_tokens.weight.data.copy_(net.shared.weight)
        with torch.no_grad():
            return net(torch.from_numpy(tokens), torch.from_numpy(mask)).last_hidden_state.numpy()

    expected = peers.one(name, ask)
    assert expected.values.std() > 0.5
    whole = with_weights(config, weights)(ms.Tensor(tokens.astype(np.int32)), ms.Tensor(mask)).asnumpy()
    pieces = EncoderInPieces(config, reader(weights)).encode(tokens, mask)
    for found in (whole, pieces):
        np.testing.assert_allclose(expected.same_places(found), expected.values, atol=1e-4, rtol=0)


@pytest.mark.peers
def test_distances_fall_into_the_published_buckets():
    def ask():
        import torch
        from transformers.models.t5.modeling_t5 import T5Attention

        offset = torch.arange(600)[None] - torch.arange(600)[:, None]
        one = T5Attention._relative_position_bucket(offset, True, 32, 128)
        return {"usual": one.numpy(), "few": T5Attention._relative_position_bucket(offset, True, 8, 20).numpy()}

    theirs = peers.answer("t5-buckets", ask)
    for key, config in (("usual", T5Config()), ("few", FEW_BUCKETS)):
        np.testing.assert_array_equal(theirs[key].same_places(buckets(config, 600)), theirs[key].values)


def test_a_caption_has_the_same_bits_whatever_is_embedded_beside_it():
    weights = made_weights("t5-small", SMALL)
    net = EncoderInPieces(SMALL, reader(weights))
    tokens, mask = inputs(SMALL)
    together = net.encode(tokens, mask)
    for i in range(len(LENGTHS)):
        np.testing.assert_array_equal(net.encode(tokens[i : i + 1], mask[i : i + 1])[0], together[i])
    other = np.where(mask > 0, tokens, 3)  # what stands beyond the end is not looked at
    np.testing.assert_array_equal(net.encode(other, mask)[1, :7], together[1, :7])


def test_pieces_read_every_tensor_and_hold_one_block():
    read = []

    def tensor(name):
        read.append(name)
        return weights[name].copy()

    weights = made_weights("t5-small", SMALL)
    net = EncoderInPieces(SMALL, tensor)
    net.encode(*inputs(SMALL))
    assert set(read) == set(weights) == set(kind.shapes_of(SMALL))
    held = sum(param.size for _, param in net._block.parameters_and_names())
    assert held * SMALL.num_layers < sum(value.size for value in weights.values())


def test_tokens_that_do_not_fit_are_refused():
    net = EncoderInPieces(SMALL, reader(made_weights("t5-small", SMALL)))
    for token in (60, -1):
        with pytest.raises(UserError, match="do not fit a vocabulary of 60"):
            net.encode(np.full((1, 4), token), np.ones((1, 4)))
