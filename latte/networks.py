"""Networks with their weights, as manifests name them, built once a process; and texts to embeddings."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latte import owners, storage
from latte.config import build
from latte.errors import UserError
from latte.facts import WeightsFacts
from latte.kinds import KINDS
from latte.models.configs import TEXT_SHAPE, ClipTextConfig
from latte.models.t2v_configs import TEXT_TOKENS, T5Config
from latte.storage import manifest

if TYPE_CHECKING:
    from latte.models.t5_tokenizer import T5Tokenizer

_networks: dict[tuple[str, str, str, str], Any] = {}


@dataclass(frozen=True)
class TextSource:
    """Encoder and tokenizer that turn captions into embeddings.

    Attributes:
        weights: of the text encoder.
        model: its settings.
        tokenizer: URI of its file: of CLIP's `tokenizer.json`, or `vocab.json` with `merges.txt` beside it; of T5's
            `spiece.model` or `tokenizer.json`.
        digest: SHA-256 over the contents of all of them.
        kind: of the encoder, "clip" or "t5".
    """

    weights: manifest.Shard
    model: dict[str, Any]
    tokenizer: str
    digest: str
    kind: str = "clip"

    @classmethod
    def checked(
        cls, text_encoder: str, tokenizer: str, kind: str = "clip", takes: tuple[int, int] = TEXT_SHAPE
    ) -> "TextSource":
        """From the URI of the weights' manifest and the path or URI of the tokenizer's file, checked for a model.

        Args:
            text_encoder: the manifest.
            tokenizer: the file.
            kind: of the encoder that the model takes.
            takes: tokens and channels of a text's embedding that the model takes.

        Raises:
            UserError: the weights are of something else or of another width, or the tokenizer's file is not there.
        """
        encoder = manifest.read_weights(text_encoder, kind, "text_encoder")
        model = WeightsFacts.of(encoder).model
        shape = _text_shape(kind, model, text_encoder)
        if shape != takes:
            raise UserError(f"text_encoder {text_encoder}: embeddings {shape}, the model takes {takes}")
        weights, uri = encoder.weights_file(), storage.from_path(tokenizer)
        digests = []
        for file in tokenizer_files(uri):
            path = storage.path(file)
            if not storage.exists(file) or (path is not None and not path.is_file()):
                raise UserError(f"tokenizer {file}: no such file")
            digests.append(storage.sha256_bytes(storage.read_bytes(file)))
        return cls(weights, model, uri, manifest.fingerprint(weights.sha256, digests), kind)


def _text_shape(kind: str, model: dict[str, Any], source: str) -> tuple[int, int]:
    if kind == "t5":
        return TEXT_TOKENS, build(T5Config, model, source).d_model
    settings = build(ClipTextConfig, model, source)
    return settings.max_position_embeddings, settings.hidden_size


def tokenizer_files(place: str) -> list[str]:
    """The paths or URIs of a tokenizer's files by that of the first: `vocab.json` goes with `merges.txt`."""
    if not place.endswith("vocab.json"):
        return [place]
    return [place, place.removesuffix("vocab.json") + "merges.txt"]


def embedder(text: TextSource) -> Callable[[list[str]], np.ndarray]:
    """A function from texts to CLIP's embeddings of them (N, 77, 768) float32; loads the network.

    Raises:
        UserError: the weights do not fit their settings, or the tokenizer's file is not one.
    """
    from latte.models.clip_text import ClipTokenizer

    net = network("clip", text.model, text.weights)
    with _tokenizer_file(text) as path:
        tokenize = ClipTokenizer(path, net.config.max_position_embeddings)

    def embed(texts: list[str]) -> np.ndarray:
        return np.asarray(net.encode(tokenize(texts)).asnumpy())

    return embed


def t5_tokenizer(text: TextSource) -> "T5Tokenizer":
    """The tokenizer of a T5 encoder.

    Raises:
        UserError: its file is not one.
    """
    from latte.models.t5_tokenizer import T5Tokenizer

    with _tokenizer_file(text) as path:
        return T5Tokenizer(path)


@contextlib.contextmanager
def _tokenizer_file(text: TextSource) -> Iterator[Path]:
    """The path of the tokenizer's file, a copy where it lies elsewhere, while the context lasts."""
    with owners.Folder("tokenizer") as folder:
        path = storage.path(text.tokenizer)
        if path is None:
            path = Path(folder, text.tokenizer.rpartition("/")[2])
            for uri in tokenizer_files(text.tokenizer):
                storage.download(uri, Path(folder, uri.rpartition("/")[2]))
        yield path


def converted(kind: str, weights: manifest.Manifest) -> Any:
    """The network of converted weights of this kind, by their manifest; see `network`."""
    return network(kind, WeightsFacts.of(weights).model, weights.weights_file())


def network(kind: str, settings: dict[str, Any], weights: manifest.Shard, precision: str = "fp32") -> Any:
    """The network of this kind (of `latte.kinds`) and these settings with these weights; kept while the process lives.

    MindSpore keeps compiled graphs by object: a graph would not notice other weights in its network, and the graph of a
    network that is gone can be taken for that of a new one at the same address.
    """
    key = (kind, weights.sha256, manifest.fingerprint(settings), precision)
    if key not in _networks:
        from latte import checkpoints, device
        from latte.models import layers

        compute_type = device.compute_type(precision)
        net = KINDS[kind].fresh(settings, weights.uri)
        with storage.as_local_file(weights.uri, weights.sha256) as path:
            checkpoints.load(net, str(path), weights.uri)
        layers.set_compute_type(net, compute_type)
        net.set_train(False)
        _networks[key] = net
    return _networks[key]
