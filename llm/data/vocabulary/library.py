"""Vocabularies of the `tokenizers` library: WordPiece, byte-level BPE, and whatever else a tokenizer.json describes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

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

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, in less time than one after the other."""
        return [list(each.ids) for each in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

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
    tokenizer = _wordpiece(list(texts), config) if config.tokenizer.kind == "wordpiece" else _byte_bpe(texts, config)
    tokenizer.post_processor = _begins_with_bos()
    return str(tokenizer.to_str(pretty=True)).encode()


def _byte_bpe(texts: Iterable[str], config: TokenizeConfig) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[*CONTROL, *CHAT],
        initial_alphabet=sorted(BYTE_OF),
        max_token_length=config.max_piece_characters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _wordpiece(texts: Sequence[str], config: TokenizeConfig) -> tokenizers.Tokenizer:
    """The trainer numbers characters inside of words as its hash table has them, so they are given to it in order."""
    alphabet = _alphabet(texts, config.vocab_size // 4)
    inside = [f"{CONTINUES}{character}" for character in alphabet if _inside_words(character)]
    trained = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN_PIECE, continuing_subword_prefix=CONTINUES))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[*CONTROL, *CHAT, *inside],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    model = models.WordPiece(trained.get_vocab(), unk_token=UNKNOWN_PIECE, continuing_subword_prefix=CONTINUES)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES)
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in (*CONTROL, *CHAT)])
    return tokenizer


def _alphabet(texts: Sequence[str], limit: int) -> list[str]:
    """The most frequent characters, in their order."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    frequent = sorted((character for character in counts if not character.isspace()), key=lambda each: (-counts[each], each))
    return sorted(frequent[:limit])


def _inside_words(character: str) -> bool:
    """Whether the pre-tokenizer leaves this character beside a letter."""
    return len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(f"a{character}")) == 1


def _begins_with_bos() -> processors.TemplateProcessing:
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
