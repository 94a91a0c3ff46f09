"""Training rows on disk, and the order in which training reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm.data.hashing import GOLDEN, mix
from llm.errors import DataError

IGNORED = -100  # target that no loss counts
BOS = 1  # id that begins every document
ROUNDS = 6


@dataclass(frozen=True)
class Rows:
    """A split as rows of `row_tokens`, read from disk as they are asked for.

    Row i of a split with T = row_tokens is tokens[i*T : i*T + T + 1]: inputs are the first T, targets the last T.
    """

    tokens: NDArray[np.unsignedinteger]
    mask: NDArray[np.uint8] | None  # 1 = this token is a target that counts
    row_tokens: int
    vocab_size: int

    @classmethod
    def open(cls, folder: Path, split: str) -> Rows:
        """The rows of `split` in a tokenize or chat artifact, memory-mapped.

        Raises: DataError if the artifact has no such split.
        """
        facts = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        if split not in facts["splits"]:
            raise DataError(f"no split named {split}", value=", ".join(facts["splits"]), remedy="name one of these")
        tokens = np.memmap(folder / f"{split}.tokens", dtype=facts["dtype"], mode="r")
        mask_path = folder / f"{split}.mask"
        mask = np.memmap(mask_path, dtype=np.uint8, mode="r") if mask_path.exists() else None
        return cls(tokens, mask, facts["row_tokens"], facts["vocab_size"])

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.row_tokens

    def batch(self, indices: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Inputs and targets of these rows, both n, T; a target that doesn't count is -100."""
        places = np.asarray(indices, dtype=np.int64)[:, None] * self.row_tokens + np.arange(self.row_tokens + 1)
        window = self.tokens[places].astype(np.int64)
        inputs, targets = window[:, :-1], window[:, 1:].copy()
        if self.mask is not None:
            targets[self.mask[places[:, 1:]] == 0] = IGNORED
        return inputs, targets


def order(first: int, count: int, *, rows: int, seed: int) -> NDArray[np.int64]:
    """Row at each of the sample positions first … first + count - 1.

    Position p belongs to epoch p // rows, and every epoch visits every row once. A pure function of its
    arguments that never holds a whole permutation: a resumed run computes its next batch at once, and on
    any number of workers the stream is the same.

    Source: format-preserving permutation by a Feistel network with cycle walking, Black & Rogaway 2002,
    https://web.cs.ucdavis.edu/~rogaway/papers/subset.pdf.
    Example:
        >>> sorted(order(7, 7, rows=7, seed=0).tolist())
        [0, 1, 2, 3, 4, 5, 6]
    """
    assert rows > 0
    assert first >= 0
    epochs, places = np.divmod(np.arange(first, first + count, dtype=np.uint64), np.uint64(rows))
    keys = mix(epochs * GOLDEN + mix(np.full_like(epochs, seed % 2**64)))
    half_bits = np.uint64(max(1, ((rows - 1).bit_length() + 1) // 2))
    places = _permute(places, keys, half_bits)
    while (outside := places >= rows).any():
        places[outside] = _permute(places[outside], keys[outside], half_bits)
    return places.astype(np.int64)


def _permute(places: NDArray[np.uint64], keys: NDArray[np.uint64], half_bits: np.uint64) -> NDArray[np.uint64]:
    """A permutation of 0 … 4**half_bits - 1, another one for every key."""
    low = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = places >> half_bits, places & low
    for number in range(1, ROUNDS + 1):
        left, right = right, left ^ (mix(right ^ mix(keys + np.uint64(number))) & low)
    return (left << half_bits) | right
