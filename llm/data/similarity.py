"""Which texts share most of their words: shingles, MinHash, banding, union-find."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from llm.data.hashing import mix

RECALL = 0.99
CHUNK = 4096
FULL_BUCKET = 64
NEIGHBOURS = 16

_words = re.compile(r"\w+|[^\w\s]")
_prime = np.uint64(0x100000001B3)

Shingles = NDArray[np.uint64]
Pair = tuple[int, int]


def words(text: str) -> list[str]:
    """Words and single punctuation marks, in lower case: what two copies of a text, or of a program, have in common."""
    return _words.findall(text.lower())


def shingles(tokens: Sequence[str], size: int) -> Shingles:
    """Sorted distinct hashes of every run of `size` words; a shorter text is one run.

    Source: Broder 1997, On the resemblance and containment of documents.
    """
    size = min(size, max(1, len(tokens)))
    codes = np.fromiter((zlib.crc32(token.encode()) for token in tokens), dtype=np.uint64, count=len(tokens))
    runs = np.zeros(max(0, len(tokens) - size + 1), dtype=np.uint64)
    for offset in range(size):
        runs = runs * _prime + codes[offset : offset + len(runs)]
    return np.unique(mix(runs))


def signature(shingles: Shingles, permutations: int) -> NDArray[np.uint32]:
    """Smallest hash of the shingles under each of `permutations` hash functions.

    Two signatures agree in about as many places as the sets' Jaccard similarity.

    Source: MinHash, Broder 1997; multiply-shift hashing, Dietzfelbinger et al. 1997.
    """
    numbers = np.arange(2 * permutations, dtype=np.uint64)
    factors, offsets = mix(numbers[::2])[:, None] | np.uint64(1), mix(numbers[1::2])[:, None]
    smallest = np.full(permutations, 2**32 - 1, dtype=np.uint64)
    for start in range(0, len(shingles), CHUNK):
        hashes = (shingles[None, start : start + CHUNK] * factors + offsets) >> np.uint64(32)
        smallest = np.minimum(smallest, hashes.min(axis=1))
    return smallest.astype(np.uint32)


def jaccard(a: Shingles, b: Shingles) -> float:
    """Shared shingles among all shingles of both; 0 for two empty sets."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(1, len(a) + len(b) - shared)


def similar_pairs(sets: Sequence[Shingles], *, threshold: float, at_least: float, permutations: int) -> Iterator[tuple[int, int, float]]:
    """(i, j, Jaccard similarity) of the pairs that reach `at_least`.

    Banding proposes pairs so that it misses less than 1 in 100 at `threshold` (and somewhat more below it); each
    proposal is then verified on the sets themselves, so that no pair is reported wrongly.
    """
    signatures = np.array([signature(each, permutations) for each in sets], dtype=np.uint32).reshape(len(sets), permutations)
    for i, j in _proposals(signatures, band_rows(permutations, threshold)):
        similarity = jaccard(sets[i], sets[j])
        if similarity >= at_least:
            yield i, j, similarity


def band_rows(permutations: int, threshold: float) -> int:
    """Rows per band: the most that still find a pair at `threshold` with probability `RECALL`, 1 - (1 - s^r)^b.

    Source: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4, http://www.mmds.org.
    Example:
        >>> band_rows(128, 0.8)
        4
    """
    divisors = (rows for rows in range(16, 1, -1) if permutations % rows == 0)
    return next((rows for rows in divisors if 1 - (1 - threshold**rows) ** (permutations // rows) >= RECALL), 1)


def roots(count: int, pairs: Iterable[Pair]) -> list[int]:
    """For each of `count` members the smallest member that pairs connect it to."""
    parents = list(range(count))

    def root(member: int) -> int:
        while parents[member] != member:
            parents[member] = member = parents[parents[member]]
        return member

    for i, j in pairs:
        low, high = sorted((root(i), root(j)))
        parents[high] = low
    return [root(member) for member in range(count)]


def _proposals(signatures: NDArray[np.uint32], rows: int) -> list[Pair]:
    """Pairs that agree in all rows of some band."""
    found: set[Pair] = set()
    for start in range(0, signatures.shape[1], rows):
        band = np.ascontiguousarray(signatures[:, start : start + rows])
        _, buckets = np.unique(band, axis=0, return_inverse=True)
        found.update(pair for bucket in _shared(buckets) for pair in _pairs(bucket, signatures, start))
    return sorted(found)


def _shared(buckets: NDArray[np.intp]) -> Iterator[list[int]]:
    """Members of each bucket that holds more than one, in order."""
    by_bucket = np.argsort(buckets, kind="stable")
    starts = np.flatnonzero(np.diff(buckets[by_bucket], prepend=-1))
    for members in np.split(by_bucket, starts[1:]):
        if len(members) > 1:
            yield members.tolist()


def _pairs(bucket: list[int], signatures: NDArray[np.uint32], start: int) -> Iterator[Pair]:
    """Everyone with everyone; in a crowd (boilerplate) everyone with the next few in a sorted order, or the pairs would grow as the square.

    The order is that of the signatures read from the band on, so that the most alike stand together, and every
    band that a pair shares sorts the crowd anew.

    Source: the sorted neighbourhood method, Hernández & Stolfo 1995, The merge/purge problem for large databases.
    """
    if len(bucket) <= FULL_BUCKET:
        yield from combinations(bucket, 2)
        return
    ordered = sorted(bucket, key=lambda member: np.roll(signatures[member], -start).tobytes())
    for place, member in enumerate(ordered):
        yield from ((min(member, other), max(member, other)) for other in ordered[place + 1 : place + 1 + NEIGHBOURS])
