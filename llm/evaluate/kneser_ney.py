"""A bigram model that a neural one has to beat: interpolated Kneser–Ney, by counting.

    p(w | v) = max(c(v, w) - D, 0) / c(v)  +  D · successors(v) / c(v) · p(w)
    p(w)     = max(n(w) - E, 0) / pairs    +  E · seen / pairs · 1 / V

c counts occurrences, n(w) counts the different tokens before w, pairs is their sum, seen the number of w with
n(w) > 0. D and E are estimated from the counts that they discount.

Source: Chen & Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling", TR-10-98, section 2.7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK_TOKENS = 1 << 24


@dataclass(frozen=True)
class KneserNey:
    """Counts of one training stream. Memory grows with the different bigrams, not with the tokens."""

    vocab_size: int
    pairs: np.ndarray  # sorted codes v · V + w of the bigrams that occur
    counts: np.ndarray  # how often each does
    discount: float
    context_counts: np.ndarray  # c(v)
    successors: np.ndarray  # different w after v
    lower: np.ndarray  # p(w)

    @classmethod
    def fit(cls, tokens: np.ndarray, vocab_size: int) -> KneserNey:
        """The model of every adjacent pair of a stream, which may be a memory map."""
        pairs, counts = _count(_blocks(tokens, vocab_size))
        contexts, words = np.divmod(pairs, vocab_size)
        predecessors = np.bincount(words, minlength=vocab_size)
        return cls(
            vocab_size,
            pairs,
            counts,
            discount=_discount(counts),
            context_counts=np.bincount(contexts, weights=counts, minlength=vocab_size),
            successors=np.bincount(contexts, minlength=vocab_size),
            lower=_lower(predecessors),
        )

    def probability(self, contexts: np.ndarray, words: np.ndarray) -> np.ndarray:
        """p(word | context), elementwise; a context that never occurred leaves p(word)."""
        codes = contexts.astype(np.int64) * self.vocab_size + words
        places = np.minimum(np.searchsorted(self.pairs, codes), len(self.pairs) - 1)
        counts = np.where(self.pairs[places] == codes, self.counts[places], 0)
        total = np.maximum(self.context_counts[contexts], 1)
        left_over = np.where(self.context_counts[contexts] > 0, self.discount * self.successors[contexts] / total, 1.0)
        return np.maximum(counts - self.discount, 0) / total + left_over * self.lower[words]

    def nats(self, tokens: np.ndarray) -> np.ndarray:
        """-ln p of each token after the first."""
        return -np.log(self.probability(tokens[:-1], tokens[1:]))


def _blocks(tokens: np.ndarray, vocab_size: int) -> Iterator[np.ndarray]:
    for first in range(0, len(tokens) - 1, BLOCK_TOKENS):
        block = np.asarray(tokens[first : first + BLOCK_TOKENS + 1], dtype=np.int64)
        yield block[:-1] * vocab_size + block[1:]


def _count(blocks: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct codes, sorted, and how often each occurs in all blocks."""
    codes, counts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for block in blocks:
        more_codes, more_counts = np.unique(block, return_counts=True)
        codes, places = np.unique(np.concatenate((codes, more_codes)), return_inverse=True)
        counts = np.bincount(places, weights=np.concatenate((counts, more_counts))).astype(np.int64)
    return codes, counts


def _discount(counts: np.ndarray) -> float:
    """n1 / (n1 + 2 n2), n1 and n2 being how many counts are 1 and 2.

    Where nothing occurs once the estimate would be 0 and an unseen token impossible: then one half.

    Source: Ney, Essen & Kneser 1994, "On structuring probabilistic dependences in stochastic language modelling", eq. 21.
    """
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once else 0.5


def _lower(predecessors: np.ndarray) -> np.ndarray:
    """p(w) for each w of the vocabulary, from the number of different tokens before it."""
    seen = predecessors[predecessors > 0]
    discount, pairs = _discount(seen), seen.sum()
    return np.maximum(predecessors - discount, 0) / pairs + discount * len(seen) / pairs / len(predecessors)
