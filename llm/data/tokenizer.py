"""The tokenizer: text ↔ ids, whichever kind of vocabulary stands behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llm.data.config import TokenizeConfig
from llm.data.vocabulary import library, pieces
from llm.data.vocabulary.imported import NAMES, imported, is_json
from llm.data.vocabulary.symbols import ASSISTANT, BOS, END, EOS, SPACE_MARK, UNKNOWN, USER
from llm.errors import ArtifactError, DataError

__all__ = ["ASSISTANT", "BOS", "END", "EOS", "SPACE_MARK", "UNKNOWN", "USER", "Tokenizer", "find", "round_trip", "train"]


class Vocabulary(Protocol):
    """What a kind of tokenizer knows: llm/data/vocabulary/pieces.py and library.py."""

    file_name: str
    content: bytes
    kind: str
    vocab_size: int
    lossless: bool  # every text comes back from its ids
    unknown: int | None
    bos: int | None
    eos: int | None

    def id(self, piece: str) -> int | None: ...

    def piece(self, id: int) -> str: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def spelled(self, id: int) -> bytes | None: ...

    def stands_for_unknown(self, id: int) -> bool: ...

    def cuts(self) -> NDArray[np.bool_] | None: ...


@dataclass(frozen=True)
class Tokenizer:
    """Text ↔ ids. In a vocabulary that is learned here, ids 0, 1, 2 are unknown, begin and end; the three chat tokens follow.

    Chat tokens enter as ids (llm/data/chat.py), never as text.
    """

    vocabulary: Vocabulary
    vocab_size: int
    bos: int
    eos: int
    unknown: int | None
    user: int
    assistant: int
    end: int

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """From a `tokenizer.model` or a `tokenizer.json`, or from a folder that holds one; the first goes before the second."""
        return cls.read(find(path).read_bytes())

    @classmethod
    def read(cls, content: bytes) -> Tokenizer:
        """From the content of such a file.

        Raises: ArtifactError if it has no tokens that begin and end a document, or none for a chat.
        """
        vocabulary: Vocabulary = library.Library(content) if is_json(content) else pieces.Pieces(content)
        eos = vocabulary.eos
        bos = eos if vocabulary.bos is None else vocabulary.bos
        chat = [vocabulary.id(symbol) for symbol in (USER, ASSISTANT, END)]
        user, assistant, end = (id for id in chat if id is not None) if None not in chat else (None, None, None)
        if bos is None or eos is None or user is None or assistant is None or end is None:
            remedy = "use a tokenizer that the stage tokenize has written; it can import this one"
            raise ArtifactError(
                "tokenizer lacks tokens for documents or chats", value=f"begin {bos}, end {eos}, chat {chat}", remedy=remedy
            )
        return cls(vocabulary, vocabulary.vocab_size, bos, eos, vocabulary.unknown, user, assistant, end)

    def save(self, folder: Path) -> Path:
        """Write its file into the folder."""
        path = folder / self.vocabulary.file_name
        path.write_bytes(self.vocabulary.content)
        return path

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, without begin and end."""
        return self.vocabulary.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that these ids spell; begin and end are silent."""
        return self.vocabulary.decode([int(token) for token in ids])

    def document_ids(self, text: str) -> list[int]:
        """A document as it stands in the token stream: begin, text, end."""
        return [self.bos, *self.encode(text), self.eos]


def find(path: Path) -> Path:
    """The tokenizer's file in a folder, or the path itself if it is no folder."""
    return next((path / name for name in NAMES if (path / name).is_file()), path / NAMES[0]) if path.is_dir() else path


def train(texts: Iterable[str], config: TokenizeConfig) -> bytes:
    """The file of the tokenizer that the recipe asks for, learned from the texts or taken over.

    Raises: RecipeError if the text can't fill the vocabulary, or the imported one lacks tokens and may not grow.
    """
    kind = config.tokenizer.kind
    if kind == "imported":
        return imported(config.tokenizer)
    if kind in pieces.KINDS:
        return pieces.train(texts, config)
    return library.train(texts, config)


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
