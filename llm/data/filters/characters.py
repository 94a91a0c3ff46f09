"""A model of bytes that says how much a text is written like others: interpolated Kneser–Ney, by counting.

    p_k(b | h) = max(c(h, b) - D, 0) / c(h)  +  D · followers(h) / c(h) · p_{k-1}(b | shorter h)

c counts occurrences for the longest n-grams and, below, how many different bytes stand before; p_0 is 1/256.

Source: Chen & Goodman 1998, TR-10-98, section 2.7; perplexity as a filter: CCNet, https://arxiv.org/abs/1911.00359, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm.errors import DataError

Codes = NDArray[np.uint64]

BYTE = np.uint64(8)


@dataclass(frozen=True)
class Order:
    """The n-grams of one length, ready to be looked up."""

    ngrams: Codes  # sorted; a byte in every 8 bits
    discounted: NDArray[np.float64]  # max(c - D, 0) / c(h) of each
    contexts: Codes  # sorted
    left_over: NDArray[np.float64]  # D · followers / c(h) of each

    @classmethod
    def count(cls, ngrams: Codes, counts: NDArray[np.int64]) -> Order:
        """From the distinct n-grams, sorted, and how often each occurs."""
        contexts, starts, followers = np.unique(ngrams >> BYTE, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, starts)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once else 0.5
        return cls(ngrams, np.maximum(counts - discount, 0) / np.repeat(totals, followers), contexts, discount * followers / totals)

    def probability(self, ngrams: Codes, shorter: NDArray[np.float64]) -> NDArray[np.float64]:
        """p of each n-gram's last byte, given p under the next shorter context."""
        return _find(self.ngrams, self.discounted, ngrams, 0.0) + _find(self.contexts, self.left_over, ngrams >> BYTE, 1.0) * shorter


@dataclass(frozen=True)
class CharacterModel:
    """The n-grams of the examples, shortest first. Zeros, which no text holds, stand before its first byte."""

    orders: tuple[Order, ...]

    @classmethod
    def fit(cls, texts: Iterable[str], order: int, max_bytes: int) -> CharacterModel:
        """Counts the first `max_bytes` of the texts.

        Raises: DataError if they hold nothing.
        """
        ngrams = np.concatenate([_ngrams(_bytes(text, order), order) for text in _first(texts, max_bytes)] or [np.empty(0, np.uint64)])
        if not len(ngrams):
            raise DataError("examples hold no text to count", value=0, remedy="check the paths in clean.fluency.good")
        codes, counts = np.unique(ngrams, return_counts=True)
        orders = [Order.count(codes, counts)]
        for size in range(order - 1, 0, -1):
            codes, counts = np.unique(codes & _mask(size), return_counts=True)
            orders.insert(0, Order.count(codes, counts))
        return cls(tuple(orders))

    def bits_per_byte(self, text: str) -> float:
        """Mean of -log2 p over the text's bytes; 0 for an empty one."""
        longest = len(self.orders)
        ngrams = _ngrams(_bytes(text, longest), longest)
        probability = np.full(len(ngrams), 1 / 256)
        for size, order in enumerate(self.orders, 1):
            probability = order.probability(ngrams & _mask(size), probability)
        return float(-np.log2(probability).mean()) if len(ngrams) else 0.0

    def save(self, path: Path) -> None:
        """Writes a .npz file."""
        np.savez(path, **{f"{name}_{size}": array for size, order in enumerate(self.orders) for name, array in vars(order).items()})

    @classmethod
    def load(cls, path: Path) -> CharacterModel:
        """Reads what `save` wrote."""
        with np.load(path) as file:
            names = ("ngrams", "discounted", "contexts", "left_over")
            return cls(tuple(Order(*(file[f"{name}_{size}"] for name in names)) for size in range(len(file.files) // len(names))))


def _first(texts: Iterable[str], max_bytes: int) -> Iterable[str]:
    for text in texts:
        if max_bytes <= 0:
            return
        yield text[:max_bytes]
        max_bytes -= len(text)


def _bytes(text: str, order: int) -> NDArray[np.uint8]:
    return np.frombuffer(bytes(order - 1) + text.encode("utf-8", "replace").replace(b"\0", b" "), dtype=np.uint8)


def _ngrams(octets: NDArray[np.uint8], size: int) -> Codes:
    codes = np.zeros(max(0, len(octets) - size + 1), dtype=np.uint64)
    for offset in range(size):
        codes = codes << BYTE | octets[offset : offset + len(codes)]
    return codes


def _mask(size: int) -> np.uint64:
    return np.uint64((1 << 8 * size) - 1)


def _find(keys: Codes, values: NDArray[np.float64], wanted: Codes, missing: float) -> NDArray[np.float64]:
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], missing)


def score(model: CharacterModel, texts: Sequence[str]) -> list[float]:
    """Bits per byte of each text."""
    return [round(model.bits_per_byte(text), 6) for text in texts]
