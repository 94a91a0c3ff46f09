"""SentencePiece vocabularies: byte-pair encoding, unigram, characters and words."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import sentencepiece
from numpy.typing import NDArray
from sentencepiece import sentencepiece_model_pb2

from llm.data.config import TokenizeConfig
from llm.data.vocabulary.symbols import BOS, CHAT, EOS, SPACE_MARK, UNKNOWN
from llm.errors import RecipeError

ModelProto = cast(Any, sentencepiece_model_pb2).ModelProto  # protobuf makes it when it is imported
KINDS = ("bpe", "unigram", "char", "word")
CHUNK_CHARACTERS = 1_000  # at most 4,000 bytes: SentencePiece skips training lines above 4,192
SPACE = ord(" ")
SCORE_STEP = 1 / 16

_inside_symbols = re.compile("|".join(f"(?<=<)(?={re.escape(symbol[1:])})" for symbol in CHAT))
_space_marks = re.compile(f"({SPACE_MARK}+)")
_words = re.compile(" ?[^ ]+| ")


class Pieces:
    """A vocabulary in a `tokenizer.model`.

    Text is only ever text: a chat token or U+2581 that someone typed is spelled out in ordinary pieces, so
    no document and no user can forge a turn.
    """

    file_name = "tokenizer.model"

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        self.vocab_size: int = self.processor.get_piece_size()
        self.unknown, self.bos, self.eos = (
            None if id < 0 else id for id in (self.processor.unk_id(), self.processor.bos_id(), self.processor.eos_id())
        )
        proto = self.proto()
        normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
        self.kind: str = trainer.ModelType.Name(trainer.model_type).lower()
        identity = not normalizer.precompiled_charsmap and not normalizer.remove_extra_whitespaces
        self.lossless: bool = identity and trainer.byte_fallback
        self.plain: bool = identity and not normalizer.add_dummy_prefix  # text reaches the pieces as it is
        self._continued = self.processor if not normalizer.add_dummy_prefix else _without_prefix(proto)
        self._space_mark_ids = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]

    def proto(self) -> Any:
        """The file's content as a message."""
        return ModelProto.FromString(self.content)

    def id(self, piece: str) -> int | None:
        """The id of a piece; None if there is no such piece."""
        id = self.processor.piece_to_id(piece)
        return id if self.processor.id_to_piece(id) == piece else None

    def piece(self, id: int) -> str:
        """What the vocabulary calls this id."""
        return str(self.processor.id_to_piece(id))

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone."""
        if SPACE_MARK not in text and "<|" not in text:
            return self._encode_part(text, self.processor)
        first, *others = _parts(text)
        ids = self._encode_part(first, self.processor)
        return [*ids, *(id for part in others for id in self._encode_part(part, self._continued))]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, in less time than one after the other."""
        if not self.plain or self.kind == "word":
            return [self.encode(text) for text in texts]
        ids: list[list[int]] = self.processor.encode(list(texts), num_threads=1)
        special = [number for number, text in enumerate(texts) if SPACE_MARK in text or "<|" in text]
        for number in special:
            ids[number] = self.encode(texts[number])
        return ids

    def _encode_part(self, part: str, processor: sentencepiece.SentencePieceProcessor) -> list[int]:
        if self.lossless and part.startswith(SPACE_MARK):
            return self._space_mark_ids * len(part)
        if self.kind == "word":  # SentencePiece would make one of neighbours that it does not know
            return [id for ids in processor.encode(_words.findall(part)) for id in ids]
        return list(processor.encode(part))

    def decode(self, ids: Sequence[int]) -> str:
        """The text that these ids spell; control ids are silent."""
        return str(self.processor.decode(ids))

    def spelled(self, id: int) -> bytes | None:
        """The UTF-8 that an id stands for; None for ids that are no text."""
        piece = self.piece(id)
        if piece in CHAT or self.processor.is_control(id) or self.processor.is_unknown(id):
            return None
        return bytes([int(piece[3:5], 16)]) if self.processor.is_byte(id) else piece.replace(SPACE_MARK, " ").encode()

    def stands_for_unknown(self, id: int) -> bool:
        """Whether this id is written where no piece fits."""
        return bool(self.processor.is_unknown(id) or self.processor.is_byte(id))

    def cuts(self) -> NDArray[np.bool_] | None:
        """Between which two bytes any text can be cut, so that its parts' ids are its own; None if that isn't known.

        Shapes: 256, 256, the byte before and the byte after.

        That is where no piece has the two bytes side by side. Every symbol of byte-pair encoding is a piece or a character,
        so no merge ever reaches over such a place, and the merges on both sides of it don't see one another. A best path of
        the unigram model passes through it, and is made of the best paths of its parts, as long as sums of scores are
        exact (`_whole_scores`). Words begin at spaces by definition.
        """
        if not self.plain or (self.kind == "unigram" and not self._adds_up()):
            return None
        if self.kind == "word":
            starts = np.zeros((256, 256), bool)
            starts[:, SPACE] = True
            return starts
        free = np.ones((256, 256), bool)
        free[:, 0x80:0xC0] = False  # inside of a character
        for id in range(self.vocab_size):
            if not (self.processor.is_control(id) or self.processor.is_unknown(id) or self.processor.is_byte(id)):
                spelling = np.frombuffer(self.piece(id).replace(SPACE_MARK, " ").encode(), np.uint8)
                free[spelling[:-1], spelling[1:]] = False
        return free

    def _adds_up(self) -> bool:
        """Whether all scores are such as `_whole_scores` makes them."""
        scores = np.array([self.processor.get_score(id) for id in range(self.vocab_size)]) / SCORE_STEP
        return bool((scores == np.round(scores)).all())


def train(texts: Iterable[str], config: TokenizeConfig) -> bytes:
    """A SentencePiece model learned from the texts; the same texts give the same bytes.

    Identity normalisation, no dummy prefix and no removal of spaces, so that decoding gives back the text and
    transformers agrees; whitespace-only pieces, so that indentation is cheap. One thread, since the number of threads
    changes the bytes of the model.

    Source: BPE, https://arxiv.org/abs/1508.07909; unigram, https://arxiv.org/abs/1804.10959; SentencePiece,
    https://arxiv.org/abs/1808.06226.
    Raises: RecipeError if the text can't fill the vocabulary, or the alphabet overflows it.
    """
    model = io.BytesIO()
    kind = config.tokenizer.kind
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chunks(texts), model_writer=model, model_type=kind, vocab_size=config.vocab_size, **_settings(config)
        )
    except RuntimeError as error:
        raise _explained(error, config) from error
    return _whole_scores(model.getvalue()) if kind == "unigram" else model.getvalue()


def _whole_scores(content: bytes) -> bytes:
    """The model with all scores rounded to sixteenths, so that sums of them are exact in float32 up to 2**20 nats.

    SentencePiece adds scores up from the beginning of a text in float32. With any digits they are rounded on the way, so
    that the same word falls into other pieces a few pages later wherever two ways to cut it are worth nearly the same.
    """
    proto = ModelProto.FromString(content)
    for each in proto.pieces:
        each.score = round(each.score / SCORE_STEP) * SCORE_STEP
    return bytes(proto.SerializeToString(deterministic=True))


def _settings(config: TokenizeConfig) -> dict[str, Any]:
    kind = config.tokenizer.kind
    return {
        "byte_fallback": kind != "word",
        "hard_vocab_limit": kind in ("bpe", "unigram"),  # there are only so many characters and words
        "unk_id": UNKNOWN,
        "bos_id": BOS,
        "eos_id": EOS,
        "pad_id": -1,
        "user_defined_symbols": list(CHAT),
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": kind != "word",
        "split_digits": True,
        "max_sentencepiece_length": config.max_piece_characters,
        "character_coverage": config.character_coverage,
        "num_threads": 1,
        "minloglevel": 2,
    }


def _without_prefix(proto: Any) -> sentencepiece.SentencePieceProcessor:
    """The same model for what stands behind the beginning of a text."""
    inner = ModelProto.FromString(proto.SerializeToString())
    inner.normalizer_spec.add_dummy_prefix = False
    return sentencepiece.SentencePieceProcessor(model_proto=inner.SerializeToString())


def _parts(text: str) -> Iterator[str]:
    """The text cut so that no part holds a whole chat token, and every run of U+2581 stands alone."""
    for piece in _space_marks.split(text):
        start = 0
        for match in _inside_symbols.finditer(piece):
            yield piece[start : match.start()]
            start = match.start()
        yield piece[start:]


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        text = text.replace(SPACE_MARK, "")
        for start in range(0, len(text), CHUNK_CHARACTERS):
            yield text[start : start + CHUNK_CHARACTERS]


def _explained(error: RuntimeError, config: TokenizeConfig) -> RecipeError:
    """SentencePiece's complaint in the recipe's words."""
    message = str(error)
    if limit := re.search(r"Please set it to a value <= (\d+)", message):
        fact, remedy = "the vocabulary is larger than the text supports", f"set tokenize.vocab_size to {limit[1]} or less"
    elif alphabet := re.search(r"required_chars\. \d+ vs (\d+)", message):
        fact = "the vocabulary is smaller than the alphabet of the text"
        remedy = f"set tokenize.vocab_size above {alphabet[1]}, or lower tokenize.character_coverage"
    else:
        fact, remedy = f"SentencePiece could not learn a vocabulary ({message})", "change tokenize.vocab_size or the corpus"
    return RecipeError(fact, value=f"tokenize.vocab_size {config.vocab_size}", remedy=remedy)
