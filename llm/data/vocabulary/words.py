"""Many texts to ids at once: each distinct word is encoded once, and the rest is numpy.

A word is what lies between two places where the vocabulary lets any text be cut (`Pieces.cuts`). The texts' bytes are cut by
a table of byte pairs, pyarrow numbers the distinct words, and the ids of all words are gathered from those of the distinct
ones. A text comes back from its ids if its words do, because pieces are spelled one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llm.data.tokenizer import Tokenizer

KNOWN_WORDS = 1_000_000  # more are forgotten
KNOWN_BYTES = 100_000_000
CUT, WORD_START = 1, 2
WHITESPACE = [byte in b" \t\n\v\f\r" for byte in range(256)]

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """Ids of texts one after the other, and about each text: ids, bytes of UTF-8, words between whitespace, ids where no
    piece fits, and whether it comes back."""

    ids: NDArray[np.uint32]
    tokens: Numbers
    text_bytes: Numbers
    words: Numbers
    unknown: Numbers
    comes_back: NDArray[np.bool_]


class Encoder:
    """Encodes as the tokenizer does, many texts at a time, and remembers words from one call to the next."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        cuts = tokenizer.vocabulary.cuts()
        space = np.array(WHITESPACE)
        starts = (space[:, None] & ~space[None, :]) * WORD_START
        self._by_words = cuts is not None
        self._pairs = (starts | (CUT if cuts is None else cuts * CUT)).astype(np.uint8).ravel()
        vocabulary = tokenizer.vocabulary
        self._unknown = np.array([vocabulary.stands_for_unknown(id) for id in range(tokenizer.vocab_size)])
        self._spelled = [vocabulary.spelled(id) or b"" for id in range(tokenizer.vocab_size)]
        self._forget()

    def _forget(self) -> None:
        self._known: dict[bytes, int] = {}
        self._known_bytes = 0
        self._ids = np.empty(0, np.uint32)
        self._sizes, self._comes_back = np.empty(0, np.int64), np.empty(0, bool)

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Ids of the texts alone, without begin and end."""
        contents = [text.encode() for text in texts]
        text_bytes = np.array([len(content) for content in contents], np.int64)
        data = np.frombuffer(b"".join(contents), np.uint8)
        starts = np.cumsum(text_bytes) - text_bytes
        marks = self._marks(data, starts[text_bytes > 0])
        words = _sums(marks >> 1, starts, text_bytes)
        ids, tokens, comes_back = self._gathered(data, marks, starts, text_bytes) if self._by_words else self._one_by_one(texts)
        unknown = _sums(self._unknown[ids], np.cumsum(tokens) - tokens, tokens)
        return Encoded(ids, tokens, text_bytes, words, unknown, comes_back)

    def _marks(self, data: NDArray[np.uint8], starts: Numbers) -> NDArray[np.uint8]:
        """Of each byte, whether a word of the vocabulary begins there, and whether one between whitespace does."""
        marks = np.empty(len(data), np.uint8)
        pairs = data[:-1].astype(np.uint16)
        pairs <<= 8
        pairs |= data[1:]
        np.take(self._pairs, pairs, out=marks[1:])
        marks[starts] = np.where(np.array(WHITESPACE)[data[starts]], CUT, CUT | WORD_START)
        return marks

    def _gathered(
        self, data: NDArray[np.uint8], marks: NDArray[np.uint8], starts: Numbers, text_bytes: Numbers
    ) -> tuple[NDArray[np.uint32], Numbers, NDArray[np.bool_]]:
        """Ids, how many each text has, and whether it comes back."""
        places = np.flatnonzero(marks & CUT)
        offsets = pa.py_buffer(np.append(places, len(data)))
        words = pa.Array.from_buffers(pa.large_binary(), len(places), [None, offsets, pa.py_buffer(data)]).dictionary_encode()
        rows = self._rows(words.dictionary.to_pylist())[words.indices.to_numpy()]
        sizes, firsts = self._sizes[rows], (np.cumsum(self._sizes) - self._sizes)[rows]
        ends = np.cumsum(sizes)
        sources = np.repeat(firsts - ends + sizes, sizes)
        sources += np.arange(len(sources))
        first_words = np.searchsorted(places, starts)
        counts = np.diff(np.append(first_words, len(places)))
        failures = _sums(~self._comes_back[rows], first_words, counts)
        return self._ids[sources], _sums(sizes, first_words, counts), failures == 0

    def _rows(self, words: Sequence[bytes]) -> NDArray[np.intp]:
        """Where these words' ids stand; those of words that were never met are found first."""
        if len(self._known) > KNOWN_WORDS or self._known_bytes > KNOWN_BYTES:
            self._forget()
        unmet = [word for word in words if word not in self._known]
        found = [self.tokenizer.encode(word.decode()) for word in unmet]
        self._known.update(zip(unmet, itertools.count(len(self._known))))
        self._known_bytes += sum(map(len, unmet))
        self._ids = np.concatenate((self._ids, np.fromiter(itertools.chain.from_iterable(found), np.uint32)))
        self._sizes = np.concatenate((self._sizes, np.fromiter(map(len, found), np.int64)))
        spelled = (b"".join(map(self._spelled.__getitem__, ids)) for ids in found)
        come_back = np.fromiter((spelling == word for spelling, word in zip(spelled, unmet, strict=True)), bool)
        self._comes_back = np.concatenate((self._comes_back, come_back))
        return np.fromiter(map(self._known.__getitem__, words), np.intp)

    def _one_by_one(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], Numbers, NDArray[np.bool_]]:
        found = [self.tokenizer.encode(text) for text in texts]
        comes_back = np.array([self.tokenizer.decode(ids) == text for ids, text in zip(found, texts, strict=True)], bool)
        ids = np.fromiter(itertools.chain.from_iterable(found), np.uint32)
        return ids, np.array([len(each) for each in found], np.int64), comes_back


def _sums(values: NDArray[np.generic], starts: Numbers, sizes: Numbers) -> Numbers:
    """Sum of each run of values; an empty one's is 0."""
    sums = np.zeros(len(sizes), np.int64)
    filled = sizes > 0
    if filled.any():
        sums[filled] = np.add.reduceat(values, starts[filled], dtype=np.int64)
    return sums
