"""Captions to what a network's condition takes: the hidden states of T5, made block by block and kept by content.

The states of a caption follow from it and the encoder alone, bit for bit: each is computed by itself in one shape. What
lies beyond a caption's end is neither kept nor looked at. They lie under the root, ragged, some captions to a shard:

    texts/<fingerprint of text encoder, tokenizer and precision>/<fingerprint of the captions>.safetensors (+ record)

A record says of each caption the digest of the cleaned text, its tokens, and the digest of its states. A shard is
written when its captions are done, so that a stopped run goes on, and other sets of the root find them.
"""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latte import finite, networks, owners, storage, uses
from latte.checkpoints import open_checkpoint
from latte.checkpoints.store import check_match, safetensors_header, unusable
from latte.checkpoints.stored import StoredTensor, forget
from latte.config import build
from latte.errors import NotThereError, UserError
from latte.kinds import KINDS
from latte.models.caption_cleaning import cleaned
from latte.models.t2v_configs import TEXT_TOKENS, T5Config
from latte.networks import TextSource
from latte.progress import progress
from latte.storage import manifest

FOLDER = "texts"
EMPTY = ""
# What the encoder's matrix products take.
_PRODUCTS = ("fp32", "bf16")
# Captions that go through the blocks together: each of XXL has 2 MB meanwhile, and the weights are read once for all.
_GROUP = 256
_TENSOR = "states"
# Of a caption; 120 tokens are some 600. The rules of cleaning take the square of the time for a long word.
_MAX_CHARACTERS = 10_000


@dataclass(frozen=True)
class _Row:
    """States of a caption: where they lie, how many tokens they have, and the digest that they must have."""

    uri: str
    offset: int
    tokens: int
    sha256: str


class CaptionStates:
    """Hidden states of captions, kept in a file without a name, which ends with the process.

    Attributes:
        null: states of the empty caption at every token (S, C) float32; guidance cuts them where another caption ends.
    """

    def __init__(self, channels: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the object is)
        self._channels = channels
        self._places: dict[str, tuple[int, int]] = {}
        self._bytes = 0
        self.null = np.zeros((TEXT_TOKENS, channels), np.float32)

    def add(self, caption: str, states: np.ndarray) -> None:
        """Keep the states (L, C) of a caption of L tokens."""
        self._places[caption] = (self._bytes, len(states))
        self._file.seek(self._bytes)
        self._bytes += self._file.write(np.ascontiguousarray(states, np.float32).tobytes())

    def batch(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """States of captions (N, S, C) float32, zeros beyond their ends, and the mask (N, S) float32 that says so."""
        text = np.zeros((len(captions), TEXT_TOKENS, self._channels), np.float32)
        mask = np.zeros((len(captions), TEXT_TOKENS), np.float32)
        for row, caption in enumerate(captions):
            start, length = self._places[caption]
            self._file.seek(start)
            values = np.frombuffer(self._file.read(4 * length * self._channels), np.float32)
            text[row, :length] = values.reshape(length, self._channels)
            mask[row, :length] = 1
        return text, mask


def embed(root: str, text: TextSource, captions: Sequence[str], precision: str = "fp32") -> CaptionStates:
    """Hidden states of captions and of the empty one; what is not kept yet is made, one block in memory at a time.

    Args:
        root: where they are kept.
        text: a T5 encoder and its tokenizer.
        captions: as they are written; they are cleaned here.
        precision: of the encoder's products; bf16 needs Ascend. With fp16 T5 overflows: it then takes float32.

    Raises:
        UserError: the weights do not fit their settings or are not finite, a caption is absurdly long, or the
            tokenizer's file is not one.
        StorageError: object storage stayed away for too long, or the kept states are being removed.
    """
    config = build(T5Config, text.model, text.weights.uri)
    products = "bf16" if precision == "bf16" else "fp32"
    name = _place(text.digest, products)
    place = storage.join(root, name)
    texts = {EMPTY: EMPTY, **_cleaned(captions)}
    states = CaptionStates(config.d_model)
    with uses.noted(root, [name]):
        missing = _read(place, texts, config, states)
        if missing:
            _make(place, text, config, list(dict.fromkeys(texts[caption] for caption in missing)), products)
            if missing := _read(place, {caption: texts[caption] for caption in missing}, config, states):
                raise NotThereError(f"{place}: the states of {missing[0][:40]!r} vanished after they were written")
    return states


def places_of(digest: str) -> list[str]:
    """Places, as seen from a root, that hold the states of captions by an encoder and tokenizer of this digest."""
    return [_place(digest, products) for products in _PRODUCTS]


def _place(digest: str, products: str) -> str:
    return f"{FOLDER}/{manifest.fingerprint('t5', digest, products)[:16]}"


def notes(text: TextSource, captions: Sequence[str]) -> list[str]:
    """Words on captions that are not shown as they are written: cut off, or empty once they are cleaned.

    Raises:
        UserError: a caption is absurdly long, or the tokenizer's file is not one.
    """
    if text.kind != "t5":
        return []
    texts = _cleaned(captions)
    _, _, cut = networks.t5_tokenizer(text)(list(texts.values()))
    lines = []
    if count := sum(map(bool, cut)):
        lines.append(
            f"{count} of {len(texts)} captions are longer than {TEXT_TOKENS} tokens and cut off there, the longest by "
            f"{max(cut)}"
        )
    if count := sum(not each for each in texts.values()):
        lines.append(f"{count} of {len(texts)} captions are empty once cleaned, as published")
    return lines


def _cleaned(captions: Sequence[str]) -> dict[str, str]:
    """Cleaned texts of captions, each once."""
    for caption in captions:
        if len(caption) > _MAX_CHARACTERS:
            raise UserError(
                f"captions: the caption {caption[:40]!r}… has {len(caption)} characters, expected at most "
                f"{_MAX_CHARACTERS}"
            )
    return {caption: cleaned(caption) for caption in dict.fromkeys(captions)}


def _read(place: str, texts: dict[str, str], config: T5Config, into: CaptionStates) -> list[str]:
    """Take the kept states of captions, by their cleaned texts; those that are not kept or are damaged come back."""
    places: dict[str, list[_Row]] = {}
    step = 4 * config.d_model
    for shard, record in manifest.read_records(place):
        starts = itertools.accumulate(record["tokens"], initial=0)
        for caption, start, tokens, digest in zip(
            record["captions"], starts, record["tokens"], record["digests"], strict=False
        ):
            row = _Row(shard.uri, record["offset"] + step * start, tokens, digest)
            places.setdefault(caption, []).append(row)
    missing = []
    for caption, text in texts.items():
        read = (_states(row, config.d_model) for row in places.get(_digest(text), []))
        states = next((found for found in read if found is not None), None)
        if states is None:
            missing.append(caption)
            continue
        if caption == EMPTY:
            into.null = states
        into.add(caption, states[:1] if text == EMPTY else states)
    return missing


def _states(row: _Row, channels: int) -> np.ndarray | None:
    """Kept states (L, C), or None where they are damaged: those are made again, to a shard of their own."""
    data = storage.read_bytes(row.uri, row.offset, 4 * row.tokens * channels)
    if storage.sha256_bytes(data) != row.sha256:
        return None
    return np.frombuffer(data, np.float32).reshape(row.tokens, channels)


def _make(place: str, text: TextSource, config: T5Config, texts: Sequence[str], products: str) -> None:
    """Make and publish the states of cleaned captions."""
    from latte import device
    from latte.models.t5 import EncoderInPieces

    tokens, mask, _ = networks.t5_tokenizer(text)(texts)  # 2 x (M, S)
    groups = range(0, len(texts), _GROUP)
    with (
        storage.as_local_file(text.weights.uri, text.weights.sha256) as path,
        progress(total=len(groups) * config.num_layers, desc="embed captions", unit="block") as bar,
    ):
        read = _reader(open_checkpoint(str(path)).tensors, config, text.weights.uri)
        encoder = EncoderInPieces(config, read, device.compute_type(products))
        for start in groups:
            part = slice(start, start + _GROUP)
            states = encoder.encode(tokens[part], mask[part], lambda _: bar.update())  # (n, S, C)
            if bad := finite.bad_rows(states):
                raise UserError(
                    f"text_encoder: the hidden states of the caption {texts[start + bad[0]][:40]!r} are not finite: "
                    "these weights cannot be used"
                )
            # Of the empty caption all tokens: it stands beside longer ones.
            ends = [
                TEXT_TOKENS if each == EMPTY else int(shown.sum())
                for each, shown in zip(texts[part], mask[part], strict=True)
            ]
            _publish(place, texts[part], [rows[:end] for rows, end in zip(states, ends, strict=True)])


def _publish(place: str, texts: Sequence[str], states: Sequence[np.ndarray]) -> None:
    known = [_digest(text) for text in texts]
    uri = storage.join(place, manifest.fingerprint("texts", known)[:16] + manifest.SHARD_ENDING)
    shape = (sum(map(len, states)), states[0].shape[1])
    header = safetensors_header({_TENSOR: (shape, np.dtype(np.float32))}, uri)
    with owners.Folder("texts") as folder:
        path = Path(folder, "shard.safetensors")
        with path.open("wb") as file:
            file.write(header)
            for rows in states:
                file.write(rows.tobytes())
        facts: dict[str, Any] = {
            "captions": known,
            "tokens": [len(rows) for rows in states],
            "digests": [storage.sha256_bytes(rows.tobytes()) for rows in states],
            "offset": len(header),
        }
        manifest.publish_shard(path, uri, len(known), **facts)


def _digest(text: str) -> str:
    return storage.sha256_bytes(text.encode())


def _reader(tensors: dict[str, StoredTensor], config: T5Config, file: str) -> Callable[[str], np.ndarray]:
    """A function that reads a tensor by its name, and lets the file's pages go."""
    check_match(
        {name: (tensor.shape, str(tensor.read_dtype)) for name, tensor in tensors.items()},
        {name: (shape, "float32") for name, shape in KINDS["t5"].shapes(config).items()},
        file,
    )

    def read(name: str) -> np.ndarray:
        values = np.array(tensors[name].array())  # a copy: MindSpore may keep the memory it is given
        if what := finite.blemish(values):
            raise UserError(f"{file}: {unusable(name, what)}")
        forget(tensors[name].storage.pieces[0])
        return values

    return read
