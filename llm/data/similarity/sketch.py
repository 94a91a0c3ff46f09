"""Sketches of texts: shingle sets, one-permutation MinHash, and the keys of its bands."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llm.data.hashing import GOLDEN, mix
from llm.data.similarity.words import Words, words

RECALL = 0.99  # of pairs at the threshold from which a text is dropped
LINK_RECALL = 0.85  # of pairs at that from which two share a split; chains find some of the others
BLOCK_BYTES = 1 << 19  # of text at a time: what is made of it stays in the cache
EMPTY = np.uint32(2**32 - 1)

_prime = np.uint64(0x100000001B3)
_half = np.uint64(32)


@dataclass(frozen=True)
class Shape:
    """How texts are sketched: words per shingle, values per signature, values per band."""

    shingle_words: int
    permutations: int
    band_rows: int


@dataclass(frozen=True)
class Sketches:
    """What dedup needs to know of texts: T texts, S shingles of all of them, K bands."""

    digests_T: NDArray[np.uint64]  # equal for equal words in equal order
    keys_TK: NDArray[np.uint32]  # of two texts equal in some band if they are alike
    counts_T: NDArray[np.int64]  # shingles of each text
    shingles_S: NDArray[np.uint32]  # text after text; each one's are distinct and sorted

    @classmethod
    def joined(cls, some: Sequence[Sketches]) -> Sketches:
        """Those of several runs of texts, of one at least, as one."""
        return cls(*(np.concatenate([getattr(each, field.name) for each in some]) for field in fields(cls)))


def sketches(texts: pa.Array, shape: Shape) -> Sketches:
    """Sketches of texts, made block by block."""
    return Sketches.joined([_sketch(words(block), shape) for block in _blocks(texts)])


def shingles(words: Words, size: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Sorted distinct hashes of every run of `size` words of each text, and how many each has; a shorter text is one run.

    Hashes have 32 bits, so that about n²/2³² of the n shingles of two unlike texts seem shared: 1 of a million at n = 4,000.

    Source: Broder 1997, On the resemblance and containment of documents.
    """
    lengths = np.diff(words.borders)
    runs = _runs(words.hashes, size)
    short = np.flatnonzero((lengths > 0) & (lengths < size))
    runs[words.borders[short]] = _short_runs(words, short)
    counts = np.where(lengths > 0, np.maximum(lengths - size + 1, 1), 0)
    places = np.arange(counts.sum()) + np.repeat(words.borders[:-1] - (np.cumsum(counts) - counts), counts)
    found = mix(runs[places])
    found >>= _half
    found |= np.repeat(np.arange(len(counts), dtype=np.uint64) << _half, counts)
    found.sort()
    found = found[np.append(True, found[1:] != found[:-1])[: len(found)]]
    return found.astype(np.uint32), np.bincount((found >> _half).astype(np.int64), minlength=len(counts))


def signatures(shingles: NDArray[np.uint32], counts: NDArray[np.int64], permutations: int) -> NDArray[np.uint32]:
    """MinHash by one permutation: the hashes fall into bins, and of each bin the smallest counts; an empty bin borrows.

    Two signatures agree in about as many places as the sets' Jaccard similarity. One hash per shingle instead of one per
    shingle and place makes it cheap.

    Shapes: shingles (S), counts (T) -> (T, permutations)
    Source: one permutation hashing, Li, Owen & Zhang 2012, https://arxiv.org/abs/1208.1259; where an empty bin borrows,
    Shrivastava 2017, Optimal densification for fast and accurate minwise hashing, https://arxiv.org/abs/1703.04664.
    """
    bins = shingles * np.uint64(permutations) >> _half
    cells = np.repeat(np.arange(len(counts), dtype=np.uint64) * np.uint64(permutations), counts) + bins
    firsts = np.flatnonzero(np.append(True, cells[1:] != cells[:-1])[: len(cells)])  # shingles are sorted
    sparse = np.full(len(counts) * permutations, EMPTY)
    sparse[cells[firsts].view(np.int64)] = shingles[firsts]
    dense = sparse.copy()
    waiting = np.flatnonzero((sparse == EMPTY) & np.repeat(counts > 0, permutations))
    for lenders in _lenders(permutations):
        own = waiting % permutations
        dense[waiting] = sparse[waiting - own + lenders[own]]
        waiting = waiting[dense[waiting] == EMPTY]
        if not waiting.size:
            break
    return dense.reshape(len(counts), permutations)


def band_keys(signatures: NDArray[np.uint32], rows: int) -> NDArray[np.uint32]:
    """A hash of every `rows` values of a signature.

    Shapes: (T, permutations) -> (T, permutations / rows)
    """
    values = signatures.reshape(len(signatures), signatures.shape[1] // rows, rows)
    keys = np.zeros(values.shape[:2], np.uint64)
    for row in range(rows):
        keys = keys * _prime + values[:, :, row]
    return (mix(keys) >> _half).astype(np.uint32)


def band_rows(permutations: int, threshold: float, link_threshold: float) -> int:
    """Rows per band: the most that find a pair at `threshold` with probability `RECALL`, and at `link_threshold` with `LINK_RECALL`.

    A pair of similarity s is found with 1 - (1 - s^r)^b.

    Source: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4, http://www.mmds.org.
    Example:
        >>> band_rows(128, 0.8, 0.5)
        4
    """

    def missed(similarity: float, rows: int) -> float:
        return (1 - similarity**rows) ** (permutations // rows)

    divisors = (rows for rows in range(16, 1, -1) if permutations % rows == 0)
    enough = (rows for rows in divisors if missed(threshold, rows) <= 1 - RECALL and missed(link_threshold, rows) <= 1 - LINK_RECALL)
    return next(enough, 1)


def _blocks(texts: pa.Array) -> Iterator[pa.Array]:
    """Slices of about `BLOCK_BYTES`, one at least; a text is never cut."""
    ends = np.cumsum(pc.binary_length(texts).to_numpy().astype(np.int64))
    borders = [0, *np.flatnonzero(np.diff(ends // BLOCK_BYTES)) + 1, len(texts)]
    for start, end in pairwise(borders):
        yield texts.slice(start, end - start)


def _sketch(words: Words, shape: Shape) -> Sketches:
    found, counts = shingles(words, shape.shingle_words)
    keys = band_keys(signatures(found, counts, shape.permutations), shape.band_rows)
    return Sketches(_digests(words), keys, counts, found)


def _digests(words: Words) -> NDArray[np.uint64]:
    """Sum over a text's words of a hash of word and place; of a million texts, two unlike ones meet with probability 3e-8."""
    lengths = np.diff(words.borders)
    places = np.arange(len(words.hashes)) - np.repeat(words.borders[:-1], lengths)
    sums = np.append(np.uint64(0), np.cumsum(mix(words.hashes + GOLDEN * places.astype(np.uint64))))
    return sums[words.borders[1:]] - sums[words.borders[:-1]]


def _runs(hashes: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """Hash of the `size` words from each place on."""
    padded = np.append(hashes, np.zeros(size, np.uint64))
    runs = hashes.copy()
    for offset in range(1, size):
        runs *= _prime
        runs += padded[offset : offset + len(runs)]
    return runs


def _short_runs(words: Words, short: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash of all words of texts that have few."""
    starts, ends = words.borders[short], words.borders[short + 1]
    runs = np.zeros(len(short), np.uint64)
    for offset in range(int((ends - starts).max(initial=0))):
        more = starts + offset < ends
        runs[more] = runs[more] * _prime + words.hashes[starts[more] + offset]
    return runs


@functools.cache
def _lenders(permutations: int) -> NDArray[np.int64]:
    """For each bin all bins in an order of its own: whom it asks first, second and so on.

    Shapes: -> (attempts, permutations)
    """
    orders = np.argsort(mix(np.arange(permutations**2, dtype=np.uint64)).reshape(permutations, permutations), axis=1)
    return np.ascontiguousarray(orders.T)
