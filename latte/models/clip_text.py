"""The text encoder of CLIP and its tokenizer.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision". Latte's text condition is
the encoder's last hidden state for 77 tokens. Parameters have the names and shapes of the published
checkpoint (`text_model.encoder.layers.0.self_attn.q_proj.weight`, …), so that weights need no renaming.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import nn

from latte import graph_cache, operators
from latte.errors import UserError
from latte.models import layers
from latte.models.configs import ClipTextConfig
from latte.models.layers import Embedding, Linear, parameter

if TYPE_CHECKING:
    import tokenizers

START_TOKEN = "<|startoftext|>"  # noqa: S105
END_TOKEN = "<|endoftext|>"  # noqa: S105
_END_OF_WORD = "</w>"
# How CLIP's byte pair encoding splits text before it merges: contractions, words, single digits, runs of other signs.
_SPLIT = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_MASKED = -1e9


class ClipTextModel(nn.Cell):
    """Tokens to hidden states; each token sees itself and those before it.

    Fresh weights follow from the seed given to `latte.device.setup`.

    Args:
        config: sizes.
    """

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = _TextTransformer(config)
        layers.fill(self, _fresh)
        for name, param in self.parameters_and_names():
            param.name = name

    def encode(self, tokens: np.ndarray) -> ms.Tensor:
        """Tokens (N, L) of whole numbers, L at most 77 -> last hidden states (N, L, hidden) float32.

        Compiled once per shape.

        Raises:
            UserError: too many tokens, or a token that the vocabulary does not have.
        """
        longest, size = self.config.max_position_embeddings, self.config.vocab_size
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= longest:
            raise UserError(f"text encoder: tokens {tokens.shape} do not fit, expected (N, L) with L at most {longest}")
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < size):
            raise UserError(f"text encoder: tokens {tokens.min()} to {tokens.max()} do not fit a vocabulary of {size}")
        return graph_cache.call(self._encode, ms.Tensor(tokens.astype(np.int32)))

    def construct(self, tokens: ms.Tensor) -> ms.Tensor:
        """Tokens (N, L) int32 -> (N, L, hidden) float32, as a part of a larger graph."""
        return self.text_model(tokens)

    @ms.jit
    def _encode(self, tokens: ms.Tensor) -> ms.Tensor:
        return self.text_model(tokens)


class ClipTokenizer:
    """Texts to tokens by the published tokenizer files: start, at most 75 tokens of text, end, then end as padding.

    Args:
        path: `tokenizer.json`, or `vocab.json` with `merges.txt` beside it, or a folder that has one of these.
        length: tokens of every text, start and end included.

    Raises:
        UserError: a file is missing, or is not what its name says.
    """

    def __init__(self, path: str | Path, length: int = 77) -> None:
        import tokenizers

        file = _tokenizer_file(Path(path))
        try:
            if file.name.endswith("vocab.json"):
                merges = file.with_name(file.name.removesuffix("vocab.json") + "merges.txt")
                self._tokenizer = _from_vocabulary(file, merges)
            else:
                self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception for whatever is wrong with a file
            raise UserError(f"{file}: not a tokenizer: {error}") from None
        start, end = (self._tokenizer.token_to_id(token) for token in (START_TOKEN, END_TOKEN))
        if start is None or end is None:
            raise UserError(f"{file}: not CLIP's tokenizer: it has no {START_TOKEN} and {END_TOKEN}")
        self._tokenizer.no_padding()  # the file may ask for some
        if self._tokenizer.encode("").ids != [start, end]:
            raise UserError(f"{file}: not CLIP's tokenizer: no {START_TOKEN} and {END_TOKEN} around a text")
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length, pad_id=end, pad_token=END_TOKEN)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> tokens (N, length) int32."""
        encoded = self._tokenizer.encode_batch(list(texts))
        return np.array([text.ids for text in encoded], np.int32).reshape(len(encoded), -1)


class _TextTransformer(nn.Cell):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.final_layer_norm = _LayerNorm(config)

    def construct(self, tokens: ms.Tensor) -> ms.Tensor:
        """Tokens (N, L) -> (N, L, hidden)."""
        return self.final_layer_norm(self.encoder(self.embeddings(tokens)))


class _Embeddings(nn.Cell):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.token_embedding = Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = Embedding(config.max_position_embeddings, config.hidden_size)

    def construct(self, tokens: ms.Tensor) -> ms.Tensor:
        """Tokens (N, L) -> (N, L, hidden)."""
        return self.token_embedding(tokens) + operators.first_rows(self.position_embedding.weight, tokens.shape[1])


class _Encoder(nn.Cell):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.layers = nn.CellList([_Layer(config) for _ in range(config.num_hidden_layers)])
        self._mask = ms.Tensor(np.triu(np.full((config.max_position_embeddings,) * 2, _MASKED, np.float32), 1))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, hidden) -> the same shape."""
        length = x.shape[1]
        mask = operators.first_corner(self._mask, length)  # (L, L)
        for layer in self.layers:
            x = layer(x, mask)
        return x


class _Layer(nn.Cell):
    """Pre-norm transformer block."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config.hidden_size, config.num_attention_heads)
        self.layer_norm1 = _LayerNorm(config)
        self.mlp = _MLP(config.hidden_size, config.intermediate_size)
        self.layer_norm2 = _LayerNorm(config)

    def construct(self, x: ms.Tensor, mask: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, hidden) -> the same shape."""
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class _Attention(nn.Cell):
    """Multi-head attention with a mask, written out: 77 tokens need no fused kernel."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.q_proj = Linear(size, size)
        self.k_proj = Linear(size, size)
        self.v_proj = Linear(size, size)
        self.out_proj = Linear(size, size)
        self._heads = num_heads
        self._scale = (size // num_heads) ** -0.5

    def construct(self, x: ms.Tensor, mask: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, size) -> the same shape; `mask` (L, L) is added to the scores."""
        by_head = (x.shape[0], x.shape[1], self._heads, x.shape[2] // self._heads)
        q = (self.q_proj(x) * self._scale).reshape(by_head).transpose(0, 2, 1, 3)  # (N, H, L, D)
        k = self.k_proj(x).reshape(by_head).transpose(0, 2, 1, 3)
        v = self.v_proj(x).reshape(by_head).transpose(0, 2, 1, 3)
        y = operators.masked_attention(q, k, v, mask)  # (N, H, L, D)
        return self.out_proj(y.transpose(0, 2, 1, 3).reshape(x.shape))


class _MLP(nn.Cell):
    """Linear, x * sigmoid(1.702 x), Linear."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.fc1 = Linear(size, inner)
        self.fc2 = Linear(inner, size)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, size) -> the same shape."""
        return self.fc2(operators.quick_gelu(self.fc1(x)))


class _LayerNorm(nn.Cell):
    """Normalisation over the last axis with learned `weight` and `bias`."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.weight = parameter(config.hidden_size)
        self.bias = parameter(config.hidden_size)
        self._epsilon = config.layer_norm_eps

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Map x (N, L, hidden) -> the same shape."""
        return operators.layer_norm(x, self.weight, self.bias, self._epsilon)


def _fresh(name: str) -> Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] | None:
    """Norms start as the identity, biases at 0, the rest small and normal."""
    if name.endswith(".bias"):
        return None
    if "layer_norm" in name:
        return lambda rng, shape: np.ones(shape, np.float32)
    return layers.normal(0.02)


def _tokenizer_file(path: Path) -> Path:
    names = ("tokenizer.json", "vocab.json")
    candidates = [path / name for name in names] if path.is_dir() else [path]
    for file in candidates:
        if file.is_file():
            return file
    raise UserError(f"{path}: no tokenizer there; expected {names[0]}, or {names[1]} with merges.txt beside it")


def _from_vocabulary(vocabulary: Path, merges: Path) -> "tokenizers.Tokenizer":
    """CLIP's tokenizer from its two older files."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    model = models.BPE.from_file(
        str(vocabulary), str(merges), unk_token=END_TOKEN, end_of_word_suffix=_END_OF_WORD, fuse_unk=False
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    start, end = (tokenizer.token_to_id(token) for token in (START_TOKEN, END_TOKEN))
    if start is not None and end is not None:
        tokenizer.post_processor = processors.RobertaProcessing(
            (END_TOKEN, end), (START_TOKEN, start), add_prefix_space=False, trim_offsets=False
        )
        tokenizer.add_special_tokens([START_TOKEN, END_TOKEN])
    return tokenizer
