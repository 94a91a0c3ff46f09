"""Runs of words as numbers that are the same on every machine."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm.data.hashing import mix

_prime = np.uint64(0x100000001B3)


def word_codes(words: Sequence[str]) -> NDArray[np.uint64]:
    """A number for each word."""
    codes = {word: zlib.crc32(word.encode("utf-8", "replace")) for word in set(words)}
    return np.fromiter(map(codes.__getitem__, words), dtype=np.uint64, count=len(words))


def ngram_codes(codes: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """A number for each run of `size` words, by where it starts; none if there are fewer words.

    Example:
        >>> a, b = ngram_codes(word_codes("x y z".split()), 2), ngram_codes(word_codes("y z".split()), 2)
        >>> len(a), len(b), bool(a[1] == b[0])
        (2, 1, True)
    """
    runs = np.zeros(max(0, len(codes) - size + 1), dtype=np.uint64)
    for offset in range(size):
        runs = runs * _prime + mix(codes[offset : offset + len(runs)])
    return mix(runs)
