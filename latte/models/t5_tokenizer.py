"""The tokenizer of T5, from the files that are published with it: SentencePiece's spiece.model, or tokenizer.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.errors import UserError
from latte.models.t2v_configs import TEXT_TOKENS

if TYPE_CHECKING:
    import tokenizers

PAD_TOKEN, END_TOKEN, UNKNOWN_TOKEN = "<pad>", "</s>", "<unk>"
_EXTRA_TOKENS = 100  # for T5's own training; they follow after SentencePiece's
_SPACE = "▁"
_UNIGRAM = 1
# Numbers of the fields that are read, by name, of SentencePiece's sentencepiece_model.proto, with protobuf's types.
_MESSAGES = {
    "Piece": {"piece": (1, "TYPE_STRING"), "score": (2, "TYPE_FLOAT")},
    "Trainer": {"model_type": (3, "TYPE_INT32"), "byte_fallback": (35, "TYPE_BOOL"), "unk_id": (40, "TYPE_INT32")},
    "Normalizer": {"precompiled_charsmap": (2, "TYPE_BYTES")},
}
_PARTS = {"pieces": (1, "Piece"), "trainer_spec": (2, "Trainer"), "normalizer_spec": (3, "Normalizer")}


class T5Tokenizer:
    """Texts to tokens: those of the text, cut off where there are too many, the end, then padding.

    Args:
        path: `spiece.model` or `tokenizer.json`, or a folder that has one of these.
        length: tokens of every text, the end included.

    Raises:
        UserError: the file is missing, or is not what its name says.
    """

    def __init__(self, path: str | Path, length: int = TEXT_TOKENS) -> None:
        import tokenizers

        file = _tokenizer_file(Path(path))
        try:
            is_json = file.name.endswith(".json")
            tokenizer = tokenizers.Tokenizer.from_file(str(file)) if is_json else _from_sentencepiece(file)
        except UserError:
            raise
        except Exception as error:  # the libraries raise plain Exception for whatever is wrong with a file
            raise UserError(f"{file}: not a tokenizer: {error}") from None
        pad, end = (tokenizer.token_to_id(token) for token in (PAD_TOKEN, END_TOKEN))
        tokenizer.no_padding()  # the file may ask for some
        tokenizer.no_truncation()
        if pad is None or end is None or tokenizer.encode("").ids != [end]:
            raise UserError(f"{file}: not T5's tokenizer: no {PAD_TOKEN}, or no {END_TOKEN} after a text")
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=pad, pad_token=PAD_TOKEN)
        self._tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Tokens of texts.

        Returns:
            Tokens (N, length) int32; their mask (N, length) float32, 1 for tokens and 0 for padding; how many tokens of
            each text were cut off.
        """
        encoded = self._tokenizer.encode_batch(list(texts))
        tokens = np.array([text.ids for text in encoded], np.int32).reshape(len(encoded), -1)
        mask = np.array([text.attention_mask for text in encoded], np.float32).reshape(tokens.shape)
        # What is over comes in pieces of the same length, each with its own end.
        cut = [sum(sum(more.attention_mask) - 1 for more in text.overflowing) for text in encoded]
        return tokens, mask, cut


def _tokenizer_file(path: Path) -> Path:
    names = ("spiece.model", "tokenizer.json")
    for file in [path / name for name in names] if path.is_dir() else [path]:
        if file.is_file():
            return file
    raise UserError(f"{path}: no tokenizer there; expected {' or '.join(names)}")


def _from_sentencepiece(file: Path) -> "tokenizers.Tokenizer":
    """T5's tokenizer from SentencePiece's model.

    Raises:
        UserError: the file is no such model, or one of another kind.
    """
    from google.protobuf.message import DecodeError
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    try:
        model = _model_class()().FromString(file.read_bytes())
    except DecodeError:
        raise UserError(f"{file}: not a tokenizer: neither SentencePiece's model nor tokenizer.json") from None
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    trainer = model.trainer_spec
    if (trainer.model_type or _UNIGRAM) != _UNIGRAM or trainer.byte_fallback:
        raise UserError(f"{file}: not T5's tokenizer: SentencePiece's model of another kind than unigram")
    names = [name for name, _ in pieces[:3]]
    if names != [PAD_TOKEN, END_TOKEN, UNKNOWN_TOKEN]:
        raise UserError(f"{file}: not T5's tokenizer: it begins with {names}, not {PAD_TOKEN}, {END_TOKEN}, <unk>")
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=names.index(UNKNOWN_TOKEN)))
    if charsmap := model.normalizer_spec.precompiled_charsmap:
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always", split=True),
        ]
    )
    extra = [f"<extra_id_{number}>" for number in reversed(range(_EXTRA_TOKENS))]
    tokenizer.add_special_tokens([PAD_TOKEN, END_TOKEN, UNKNOWN_TOKEN, *extra])
    end = names.index(END_TOKEN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", END_TOKEN], pair=["$A", END_TOKEN, "$B", END_TOKEN], special_tokens=[(END_TOKEN, end)]
    )
    return tokenizer


def _model_class() -> Any:
    """The class of protobuf messages that SentencePiece writes, with the fields that are read here."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    # The syntax of this file: proto2, in which SentencePiece is described.
    file = descriptor_pb2.FileDescriptorProto(name="latte_sentencepiece.proto", package="latte", syntax="proto2")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            described.field.add(
                name=name, number=number, type=field.Type.Value(kind), label=field.Label.Value("LABEL_OPTIONAL")
            )
    described = file.message_type.add(name="Model")
    for name, (number, message) in _PARTS.items():
        label = "LABEL_REPEATED" if name == "pieces" else "LABEL_OPTIONAL"
        described.field.add(
            name=name,
            number=number,
            type=field.Type.Value("TYPE_MESSAGE"),
            label=field.Label.Value(label),
            type_name=f".latte.{message}",
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("latte.Model"))
