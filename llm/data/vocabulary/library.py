"""Vocabularies of the `tokenizers` library: WordPiece, byte-level BPE, and whatever else a tokenizer.json describes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from llm.data.config import TokenizeConfig
from llm.data.vocabulary.symbols import BOS, BOS_PIECE, CHAT, CONTROL, SPACE_MARK, UNKNOWN_PIECE

KINDS = ("wordpiece", "byte_bpe")
CONTINUES = "##"
# How published models call the tokens that begin and end a document, the usual name first.
BOS_NAMES = (BOS_PIECE, "<|begin_of_text|>", "<bos>", "[CLS]", "<|endoftext|>")
EOS_NAMES = ("</s>", "<|end_of_text|>", "<eos>", "[SEP]", "<|endoftext|>")
UNKNOWN_NAMES = (UNKNOWN_PIECE, "[UNK]")


class Library:
    """A vocabulary in a `tokenizer.json`. Special tokens that someone typed are spelled out like any text."""

    file_name = "tokenizer.json"

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        self.tokenizer.encode_special_tokens = True
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values()) + 1
        self.bos, self.eos, self.unknown = (
            next((vocabulary[name] for name in names if name in vocabulary), None) for names in (BOS_NAMES, EOS_NAMES, UNKNOWN_NAMES)
        )
        facts = json.loads(content)
        self.kind = str(facts["model"]["type"]).lower()
        self._special = {token["id"] for token in facts["added_tokens"] if token["special"]}
        self._added = {token["id"] for token in facts["added_tokens"]}
        self._byte_level = "ByteLevel" in _types(facts["decoder"])
        self.lossless = self._byte_level and facts["normalizer"] is None

    def id(self, piece: str) -> int | None:
        """The id of a piece; None if there is no such piece."""
        found: int | None = self.tokenizer.token_to_id(piece)
        return found

    def piece(self, id: int) -> str:
        """What the vocabulary calls this id."""
        return self.tokenizer.id_to_token(id) or ""

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text that these ids spell; special ids are silent."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def spelled(self, id: int) -> bytes | None:
        """The UTF-8 that an id stands for; None for ids that are no text."""
        piece = self.piece(id)
        if id in self._special or id == self.unknown or not piece:
            return None
        if self._byte_level and id not in self._added:
            return bytes(BYTE_OF[character] for character in piece)
        if self.kind == "wordpiece":
            return (piece.removeprefix(CONTINUES) if piece.startswith(CONTINUES) else f" {piece}").encode()
        if len(piece) == 6 and piece.startswith("<0x"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE_MARK, " ").encode()

    def stands_for_unknown(self, id: int) -> bool:
        """Whether this id is written where no piece fits."""
        return id == self.unknown

    def cuts(self) -> NDArray[np.bool_] | None:
        """Nothing is known about where text can be cut."""
        return None


def train(texts: Iterable[str], config: TokenizeConfig) -> bytes:
    """A tokenizer.json learned from the texts; the same texts give the same bytes.

    Source: WordPiece, https://arxiv.org/abs/1609.08144, section 4.1, its vocabulary learned by merges of frequent pairs;
    byte-level BPE, Language Models are Unsupervised Multitask Learners (GPT-2), section 2.2.
    """
    sizes: dict[str, Any] = {"vocab_size": config.vocab_size, "special_tokens": [*CONTROL, *CHAT], "show_progress": False}
    if config.tokenizer.kind == "wordpiece":
        tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN_PIECE, continuing_subword_prefix=CONTINUES))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES)
        trainer: Any = trainers.WordPieceTrainer(**sizes, continuing_subword_prefix=CONTINUES, limit_alphabet=config.vocab_size // 2)
    else:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(**sizes, initial_alphabet=sorted(alphabet), max_token_length=config.max_piece_characters)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = begins_with_bos()
    return str(tokenizer.to_str(pretty=True)).encode()


def begins_with_bos() -> processors.TemplateProcessing:
    """A text begins with the token that documents begin with."""
    pair = f"{BOS_PIECE} $A {BOS_PIECE}:1 $B:1"
    return processors.TemplateProcessing(single=f"{BOS_PIECE} $A", pair=pair, special_tokens=[(BOS_PIECE, BOS)])


def _types(description: Any) -> set[str]:
    """The names of all steps in a part of a tokenizer.json."""
    if isinstance(description, list):
        return {name for each in description for name in _types(each)}
    if not isinstance(description, dict):
        return set()
    return {str(description.get("type"))} | {name for value in description.values() for name in _types(value)}


def _byte_characters() -> Iterator[tuple[str, int]]:
    """Every byte's character in a byte-level vocabulary: itself if it can be seen, else the next unused one from 256 on."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    yield from ((chr(byte), byte) for byte in sorted(visible))
    yield from ((chr(256 + number), byte) for number, byte in enumerate(hidden))


BYTE_OF = dict(_byte_characters())
