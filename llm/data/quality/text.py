"""A text as the rules look at it: its lines and its words, found once for all of them."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cached_property
from itertools import filterfalse

import numpy as np
from numpy.typing import NDArray

from llm.data.hashing import mix

TERMINAL = tuple(".?!…\"'”’»。！？．؟۔।॥։።")  # what ends a sentence, or the quotation around it

_letter = re.compile(r"[^\W\d_]")
_unspaced = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # Thai, Lao, Burmese, Khmer, kana, Han
_blank_lines = re.compile(r"\n(?:[^\S\n]*\n)+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Text:
    """One text without the blanks at its ends. Lines are those that hold something, words what stands between blanks."""

    def __init__(self, text: str, language: str = "") -> None:
        self.text = text.strip()
        self.language = language

    def __len__(self) -> int:
        return len(self.text)

    @cached_property
    def lines(self) -> list[str]:
        return [stripped for line in self.text.split("\n") if (stripped := line.strip())]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What stands between blank lines, its lines stripped."""
        if "\n" not in self.text:
            return self.lines
        blocks = _blank_lines.split(self.text)
        return ["\n".join(line.strip() for line in block.split("\n")) if "\n" in block else block.strip() for block in blocks if block]

    @cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @cached_property
    def spaced(self) -> bool:
        """Is this written with spaces between words? Rules on words say nothing about Chinese or Thai."""
        return self.text.isascii() or len(_unspaced.findall(self.text)) < 0.1 * self.word_characters

    @cached_property
    def letter_words_share(self) -> float:
        """Words that hold a letter, among all."""
        without = list(map(_letter.search, filterfalse(str.isalpha, self.words))).count(None)
        return 1 - without / len(self.words) if self.words else 0.0

    @cached_property
    def word_lengths(self) -> list[int]:
        """In characters."""
        return list(map(len, self.words))

    @cached_property
    def word_characters(self) -> int:
        """Characters but blanks."""
        return sum(self.word_lengths)

    @property
    def mean_word_characters(self) -> float:
        return self.word_characters / max(1, len(self.words))

    def top_share(self, n: int) -> float:
        """Of the characters in words, those in occurrences of the most frequent n words in a row; 0 if none occurs twice.

        Of several that are equally frequent, the longest counts.
        """
        if self.top_bound(n) == 0:
            return 0.0
        kinds, counts = np.unique(grams := self._grams(n), return_counts=True)
        if (most := int(counts.max())) == 1:
            return 0.0
        longest = int(self._gram_characters(n)[np.isin(grams, kinds[counts == most])].max())
        return min(1.0, most * longest / self.word_characters)

    def top_bound(self, n: int) -> float:
        """At least `top_share(n)`, and cheaper for several n: no run of words is more frequent than the most frequent pair."""
        if len(self.words) <= n or self._pair_count == 1:
            return 0.0
        return self._pair_count * int(self._gram_characters(n).max()) / self.word_characters

    def repeated_share(self, n: int) -> float:
        """Of the characters in words, those in n words in a row that stood there before; each counts once.

        Never more than that of a smaller n: what repeats n words repeats all shorter runs in them.
        """
        if len(self.words) <= n:
            return 0.0
        grams = self._grams(n)
        ordered = np.sort(grams)  # several times faster than a stable sort, which few texts need
        if not (ordered[1:] == ordered[:-1]).any():
            return 0.0
        order = np.argsort(grams, kind="stable")
        later = order[1:][grams[order[1:]] == grams[order[:-1]]]  # in a stable order, the first of equals is the earliest
        opened = np.zeros(len(self.words) + 1, np.int64)
        opened[later] += 1
        opened[later + n] -= 1
        covered = np.cumsum(opened)[:-1] > 0
        return int(np.diff(self._characters)[covered].sum()) / self.word_characters

    @cached_property
    def _characters(self) -> NDArray[np.int64]:
        """Characters in the words before each word, and in all."""
        return np.cumsum([0, *self.word_lengths])

    @cached_property
    def _mixed(self) -> NDArray[np.uint64]:
        """A number for each word: equal for equal words."""
        numbers: defaultdict[str, int] = defaultdict()
        numbers.default_factory = numbers.__len__
        return mix(np.array(list(map(numbers.__getitem__, self.words)), np.uint64))

    @cached_property
    def _pair_count(self) -> int:
        """How often the most frequent pair of words occurs."""
        grams = np.sort(self._grams(2))
        borders = np.flatnonzero(np.concatenate(([True], grams[1:] != grams[:-1], [True])))
        return int(np.diff(borders).max())

    def _gram_characters(self, n: int) -> NDArray[np.int64]:
        """Characters of each run of n words."""
        return self._characters[n:] - self._characters[:-n]

    def _grams(self, n: int) -> NDArray[np.uint64]:
        """A number for each run of n words: a polynomial of the words' numbers, modulo 2^64."""
        if n == 1:
            return self._mixed
        if n not in self._found:
            self._found[n] = self._grams(n - 1)[:-1] * _FACTOR + self._mixed[n - 1 :]
        return self._found[n]

    @cached_property
    def _found(self) -> dict[int, NDArray[np.uint64]]:
        return {}


def later_share(parts: list[str]) -> tuple[float, float]:
    """Of some lines or paragraphs, the share of those that stood there before, and of the characters in them.

    Example:
        >>> later_share(["ab", "abcdef", "ab", "ab"])
        (0.5, 0.3333333333333333)
    """
    if len(kinds := set(parts)) == len(parts):
        return 0.0, 0.0
    characters = sum(map(len, parts))
    return (len(parts) - len(kinds)) / len(parts), (characters - sum(map(len, kinds))) / max(1, characters)
