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
STRETCH_BYTES = 65_536  # small enough for a core's cache
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
        self._ids = np.empty(0, np.uint32)  # of all known words, one after the other
        self._sizes, self._firsts, self._comes_back = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool)

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Ids of the texts alone, without begin and end."""
        contents = [text.encode() for text in texts]
        text_bytes = np.array([len(content) for content in contents], np.int64)
        data = np.frombuffer(b"".join(contents), np.uint8)
        starts = np.cumsum(text_bytes) - text_bytes
        marks = self._marks(data, starts[text_bytes > 0])
        words = _counts((marks >> 1).view(bool), text_bytes)
        ids, tokens, comes_back = self._gathered(data, marks, starts) if self._by_words else self._one_by_one(texts)
        return Encoded(ids, tokens, text_bytes, words, _counts(self._unknown.take(ids), tokens), comes_back)

    def _marks(self, data: NDArray[np.uint8], starts: Numbers) -> NDArray[np.uint8]:
        """Of each byte, whether a word of the vocabulary begins there, and whether one between whitespace does."""
        marks = np.empty(len(data), np.uint8)
        for first in range(0, len(data) - 1, STRETCH_BYTES):
            stretch = data[first : first + STRETCH_BYTES + 1]
            pairs = stretch[:-1].astype(np.intp)
            pairs <<= 8
            pairs |= stretch[1:]
            self._pairs.take(pairs, out=marks[first + 1 : first + len(stretch)], mode="clip")
        marks[starts] = np.where(np.array(WHITESPACE)[data[starts]], CUT, CUT | WORD_START)
        return marks

    def _gathered(
        self, data: NDArray[np.uint8], marks: NDArray[np.uint8], starts: Numbers
    ) -> tuple[NDArray[np.uint32], Numbers, NDArray[np.bool_]]:
        """Ids, how many each text has, and whether it comes back."""
        places = np.flatnonzero((marks & CUT).view(bool))
        borders = np.append(np.searchsorted(places, starts), len(places))  # the first word of each text
        offsets = pa.py_buffer(np.append(places, len(data)))
        words = pa.Array.from_buffers(pa.large_binary(), len(places), [None, offsets, pa.py_buffer(data)]).dictionary_encode()
        rows = self._rows(words.dictionary.to_pylist()).take(words.indices.to_numpy())
        sizes = self._sizes.take(rows)
        ends = np.cumsum(np.append(0, sizes))
        sources = np.repeat(self._firsts.take(rows) - ends[:-1], sizes)
        sources += np.arange(len(sources))
        whole = self._comes_back.all() or _counts(~self._comes_back.take(rows), np.diff(borders)) == 0
        return self._ids.take(sources), np.diff(ends[borders]), np.broadcast_to(whole, len(starts))

    def _rows(self, words: Sequence[bytes]) -> NDArray[np.intp]:
        """Where these words' ids stand; those of words that were never met are found first."""
        if len(self._known) > KNOWN_WORDS or self._known_bytes > KNOWN_BYTES:
            self._forget()
        unmet = [word for word in words if word not in self._known]
        found = self.tokenizer.vocabulary.encode_all([word.decode() for word in unmet])
        self._known.update(zip(unmet, itertools.count(len(self._known))))
        self._known_bytes += sum(map(len, unmet))
        self._ids = np.concatenate((self._ids, np.fromiter(itertools.chain.from_iterable(found), np.uint32)))
        self._sizes = np.concatenate((self._sizes, np.fromiter(map(len, found), np.int64)))
        self._firsts = np.cumsum(self._sizes) - self._sizes
        spelled = (b"".join(map(self._spelled.__getitem__, ids)) for ids in found)
        come_back = np.fromiter((spelling == word for spelling, word in zip(spelled, unmet, strict=True)), bool)
        self._comes_back = np.concatenate((self._comes_back, come_back))
        return np.fromiter(map(self._known.__getitem__, words), np.intp)

    def _one_by_one(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], Numbers, NDArray[np.bool_]]:
        found = self.tokenizer.vocabulary.encode_all(texts)
        comes_back = np.array([self.tokenizer.decode(ids) == text for ids, text in zip(found, texts, strict=True)], bool)
        ids = np.fromiter(itertools.chain.from_iterable(found), np.uint32)
        return ids, np.array([len(each) for each in found], np.int64), comes_back


def _counts(flags: NDArray[np.bool_], sizes: Numbers) -> Numbers:
    """How many are true in each run of flags."""
    ends = np.cumsum(sizes)
    return np.array([np.count_nonzero(flags[end - size : end]) for end, size in zip(ends, sizes, strict=True)], np.int64)
