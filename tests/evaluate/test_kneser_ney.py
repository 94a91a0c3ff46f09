"""Kneser–Ney against the formula written out with dictionaries."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.evaluate import kneser_ney
from llm.evaluate.kneser_ney import KneserNey

VOCABULARY = 12
streams = st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=80)


class Slow:
    """Chen & Goodman's section 2.7, one probability at a time."""

    def __init__(self, tokens: list[int]) -> None:
        self.pairs = Counter(itertools.pairwise(tokens))
        self.contexts = Counter(tokens[:-1])
        self.followers = Counter(v for v, _ in self.pairs)
        self.preceders = Counter(w for _, w in self.pairs)

    @staticmethod
    def discount(counts: Counter) -> float:
        once, twice = list(counts.values()).count(1), list(counts.values()).count(2)
        return once / (once + 2 * twice) if once else 0.5

    def lower(self, w: int) -> float:
        discount = self.discount(self.preceders)
        total = len(self.pairs)
        return max(self.preceders[w] - discount, 0) / total + discount * len(self.preceders) / total / VOCABULARY

    def probability(self, v: int, w: int) -> float:
        if v not in self.contexts:
            return self.lower(w)
        discount, total = self.discount(self.pairs), self.contexts[v]
        return max(self.pairs[v, w] - discount, 0) / total + discount * self.followers[v] / total * self.lower(w)


@settings(max_examples=60, deadline=None)
@given(streams)
def test_agrees_with_the_slow_version_and_sums_to_one(tokens: list[int]) -> None:
    fast, slow = KneserNey.fit(np.array(tokens, dtype=np.uint16), VOCABULARY), Slow(tokens)
    contexts, words = (grid.ravel() for grid in np.meshgrid(range(VOCABULARY), range(VOCABULARY), indexing="ij"))
    got = fast.probability(contexts, words)
    np.testing.assert_allclose(got, [slow.probability(v, w) for v, w in zip(contexts, words, strict=True)], rtol=1e-12)
    np.testing.assert_allclose(got.reshape(VOCABULARY, VOCABULARY).sum(axis=1), 1.0, rtol=1e-12)
    assert (got > 0).all()


def test_blocks_of_any_size_give_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 500).astype(np.uint16)
    whole = KneserNey.fit(tokens, VOCABULARY)
    monkeypatch.setattr(kneser_ney, "BLOCK_TOKENS", 7)
    cut = KneserNey.fit(tokens, VOCABULARY)
    np.testing.assert_array_equal(whole.pairs, cut.pairs)
    np.testing.assert_array_equal(whole.counts, cut.counts)
    assert whole.counts.sum() == len(tokens) - 1


def test_nats_of_a_stream_it_has_learned_by_heart() -> None:
    tokens = np.array([3, 4, 5] * 400)
    model = KneserNey.fit(tokens, VOCABULARY)
    assert model.nats(tokens).mean() < 0.01
    assert model.nats(np.array([5, 4]))[0] == pytest.approx(-math.log(Slow(tokens.tolist()).probability(5, 4)))


def test_codes_do_not_overflow_with_a_large_vocabulary() -> None:
    tokens = np.array([65_000, 64_999, 65_000, 64_999, 2], dtype=np.uint16)
    model = KneserNey.fit(tokens, 65_536)
    assert model.probability(np.array([65_000]), np.array([64_999]))[0] > model.probability(np.array([65_000]), np.array([2]))[0]
