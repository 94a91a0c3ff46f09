"""The tokenizer: SentencePiece BPE that gives back every text exactly."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from llm.data import rows
from llm.data.config import TokenizeConfig
from llm.errors import DataError, RecipeError

UNKNOWN, BOS, EOS = 0, rows.BOS, 2
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
SPACE_MARK = "\u2581"  # what SentencePiece writes for a space, so a literal one must not reach it
CHUNK_CHARACTERS = 1_000  # at most 4,000 bytes: SentencePiece skips training lines above 4,192

_inside_symbols = re.compile("|".join(f"(?<=<)(?={re.escape(symbol[1:])})" for symbol in (USER, ASSISTANT, END)))
_space_marks = re.compile(f"({SPACE_MARK}+)")


class Tokenizer:
    """Text ↔ ids. Ids 0, 1, 2 are unknown, begin and end; the three chat tokens follow.

    Text is only ever text: a chat token or U+2581 that someone typed is spelled out in ordinary pieces, so
    no document and no user can forge a turn. Chat tokens enter as ids (llm/data/chat.py).
    """

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        self.processor = processor
        self.vocab_size: int = processor.get_piece_size()
        self.user, self.assistant, self.end = (processor.piece_to_id(symbol) for symbol in (USER, ASSISTANT, END))
        self._space_mark_ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """From a `tokenizer.model`, or from a folder that holds one."""
        file = path / "tokenizer.model" if path.is_dir() else path
        return cls(sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes()))

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, without begin and end."""
        if SPACE_MARK not in text and "<|" not in text:
            return self.processor.encode(text)
        return [token for part in _parts(text) for token in self._encode_part(part)]

    def _encode_part(self, part: str) -> list[int]:
        if part.startswith(SPACE_MARK):
            return self._space_mark_ids * len(part)
        return self.processor.encode(part)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that these ids spell; begin and end are silent."""
        return self.processor.decode([int(token) for token in ids])

    def document_ids(self, text: str) -> list[int]:
        """A document as it stands in the token stream: begin, text, end."""
        return [BOS, *self.encode(text), EOS]


def train(texts: Iterable[str], config: TokenizeConfig) -> bytes:
    """A SentencePiece model learned from the texts; the same texts give the same bytes.

    Identity normalisation, no dummy prefix and no removal of spaces, so that decoding gives back the text and
    Hugging Face's LlamaTokenizer agrees; whitespace-only pieces, so that indentation is cheap. One thread,
    since the number of threads changes the bytes of the model.

    Source: BPE, https://arxiv.org/abs/1508.07909; SentencePiece, https://arxiv.org/abs/1808.06226.
    Raises: RecipeError if the text can't fill the vocabulary, or the alphabet overflows it.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chunks(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=config.vocab_size,
            byte_fallback=True,
            unk_id=UNKNOWN,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=-1,
            user_defined_symbols=[USER, ASSISTANT, END],
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentencepiece_length=config.max_piece_characters,
            character_coverage=config.character_coverage,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, config) from error
    return model.getvalue()


def round_trip(tokenizer: Tokenizer, id: str, text: str, ids: list[int]) -> None:
    """Gate: decoding gives back the document.

    Raises: DataError if it doesn't.
    """
    decoded = tokenizer.decode(ids)
    if decoded == text:
        return
    place = next((i for i, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b), min(len(text), len(decoded)))
    raise DataError(
        f"the tokenizer does not give back document {id}",
        value=f"at character {place}, {text[place : place + 20]!r} became {decoded[place : place + 20]!r}",
        remedy="drop the document with a rule of clean, or report this as a bug",
    )


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
