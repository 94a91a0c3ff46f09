from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llm.data.filters.characters import CharacterModel

TEXTS = ["the cat sat on the mat. ", "a cat and a rat sat. ", "that hat, that mat, that cat. "] * 3


class Slow:
    """The same formula, one probability at a time, over dictionaries."""

    def __init__(self, texts: list[str], order: int) -> None:
        self.order = order
        grams: Counter[bytes] = Counter()
        for text in texts:
            padded = bytes(order - 1) + text.encode()
            grams.update(padded[place : place + order] for place in range(len(text.encode())))
        self.counts = {order: grams}
        for size in range(order - 1, 0, -1):
            self.counts[size] = Counter(gram[1:] for gram in self.counts[size + 1])
        self.totals, self.followers, self.discounts = {}, {}, {}
        for size, counts in self.counts.items():
            totals, followers = Counter[bytes](), Counter[bytes]()
            for gram, count in counts.items():
                totals[gram[:-1]] += count
                followers[gram[:-1]] += 1
            once, twice = (sum(1 for count in counts.values() if count == number) for number in (1, 2))
            self.totals[size], self.followers[size], self.discounts[size] = totals, followers, once / (once + 2 * twice) if once else 0.5

    def probability(self, gram: bytes) -> float:
        if not gram:
            return 1 / 256
        size, context = len(gram), gram[:-1]
        lower = self.probability(gram[1:])
        total = self.totals[size].get(context, 0)
        if not total:
            return lower
        discount = self.discounts[size]
        return max(self.counts[size][gram] - discount, 0) / total + discount * self.followers[size][context] / total * lower

    def bits_per_byte(self, text: str) -> float:
        padded = bytes(self.order - 1) + text.encode()
        grams = [padded[place : place + self.order] for place in range(len(text.encode()))]
        return sum(-math.log2(self.probability(gram)) for gram in grams) / len(grams)


@pytest.mark.parametrize("order", [2, 3, 5])
def test_it_is_the_formula(order: int) -> None:
    fast, slow = CharacterModel.fit(TEXTS, order, 10_000), Slow(TEXTS, order)
    for text in ("the cat sat", "zebra", "Grüße an alle", "that"):
        assert fast.bits_per_byte(text) == pytest.approx(slow.bits_per_byte(text), rel=1e-12)


@pytest.mark.parametrize("context", [b"\0\0", b"th", b"zz", b"at"])
def test_probabilities_of_all_bytes_are_one_together(context: bytes) -> None:
    slow = Slow(TEXTS, 3)
    assert sum(slow.probability(context + bytes([byte])) for byte in range(256)) == pytest.approx(1)


def test_likeness_shows_and_survives_a_file(tmp_path: Path) -> None:
    model = CharacterModel.fit(TEXTS, 4, 10_000)
    letters = list("the cat sat on a mat and that hat")
    random.Random(1).shuffle(letters)
    assert model.bits_per_byte("the cat sat on a mat") < 2 < 3 < model.bits_per_byte("".join(letters)) < model.bits_per_byte("Ωξψζ")
    model.save(tmp_path / "model.npz")
    loaded = CharacterModel.load(tmp_path / "model.npz")
    assert loaded.bits_per_byte("a rat on a mat") == model.bits_per_byte("a rat on a mat")
    assert model.bits_per_byte("") == 0
    assert all(np.all(np.diff(order.ngrams.astype(np.int64)) > 0) for order in loaded.orders)
