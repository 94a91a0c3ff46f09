"""Training rows on disk, and the order in which training reads them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.data.hashing import GOLDEN, mix
from llm.errors import DataError

IGNORED = -100  # target that no loss counts
BOS = 1  # id that begins every document, unless the vocabulary was learned by others
ROUNDS = 6
BLOCK = 4096  # positions whose rows are found at once


@dataclass(frozen=True)
class Group:
    """Training rows of one domain and language. They stand together on disk, group after group."""

    domain: str
    language: str
    rows: int
    tokens: int  # without what only fills rows up


@dataclass(frozen=True)
class Rows:
    """A split as rows of `row_tokens`, read from disk as they are asked for.

    Row i of a split with T = row_tokens is tokens[i*T : i*T + T + 1]: inputs are the first T, targets the last T.
    """

    tokens: NDArray[np.unsignedinteger]
    mask: NDArray[np.uint8] | None  # 1 = this token is a target that counts
    row_tokens: int
    vocab_size: int
    groups: tuple[Group, ...] = ()  # none: the rows are not told apart
    bos: int = BOS

    @classmethod
    def open(cls, folder: Path, split: str) -> Rows:
        """The rows of `split` in a tokenize or chat artifact, memory-mapped.

        Raises: DataError if the artifact has no such split.
        """
        facts = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        if split not in facts["splits"]:
            raise DataError(f"no split named {split}", value=", ".join(facts["splits"]), remedy="name one of these")
        tokens, mask_path = _mapped(folder / f"{split}.tokens", facts["dtype"]), folder / f"{split}.mask"
        mask = _mapped(mask_path, "u1") if mask_path.exists() else None
        groups = tuple(Group(**group) for group in facts.get("groups", {}).get(split, ()))
        return cls(tokens, mask, facts["row_tokens"], facts["vocab_size"], groups, facts.get("bos", BOS))

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.row_tokens

    def batch(self, indices: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Inputs and targets of these rows, both n, T; a target that doesn't count is -100."""
        T = self.row_tokens
        inputs, targets = np.empty((2, len(indices), T), dtype=np.int64)
        for row, first in enumerate((np.asarray(indices, dtype=np.int64) * T).tolist()):
            inputs[row] = self.tokens[first : first + T]
            targets[row] = self.tokens[first + 1 : first + T + 1]
            if self.mask is not None:
                targets[row][self.mask[first + 1 : first + T + 1] == 0] = IGNORED
        return inputs, targets


def _mapped(path: Path, dtype: str) -> NDArray[Any]:
    """A file's numbers; as a plain array, whose slices cost a tenth of a memmap's."""
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


def order(first: int, count: int, *, rows: int, seed: int) -> NDArray[np.int64]:
    """Row at each of the sample positions first … first + count - 1.

    Position p belongs to epoch p // rows, and every epoch visits every row once. A pure function of its
    arguments that never holds a whole permutation: a resumed run computes its next batch at once, and on
    any number of workers the stream is the same.

    Example:
        >>> sorted(order(7, 7, rows=7, seed=0).tolist())
        [0, 1, 2, 3, 4, 5, 6]
    """
    assert rows > 0
    assert first >= 0
    return by_blocks(first, count, lambda block: _block(block, rows, seed))


def by_blocks(first: int, count: int, rows_of: Callable[[int], NDArray[np.int64]]) -> NDArray[np.int64]:
    """Rows at `count` positions out of those of whole blocks, which in numpy take little longer than the rows of one batch."""
    blocks = map(rows_of, range(first // BLOCK, -(-(first + count) // BLOCK)))
    return np.concatenate([np.empty(0, np.int64), *blocks])[first % BLOCK :][:count]


@functools.lru_cache(maxsize=16)
def _block(block: int, rows: int, seed: int) -> NDArray[np.int64]:
    positions = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.uint64)
    return shuffled(positions, np.full_like(positions, rows), np.full_like(positions, seed % 2**64))


def shuffled(positions: NDArray[np.uint64], rows: NDArray[np.uint64], seeds: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Row at each sample position of a stream with its own number of rows and its own seed.

    Source: format-preserving permutation by a Feistel network with cycle walking, Black & Rogaway 2002,
    https://web.cs.ucdavis.edu/~rogaway/papers/subset.pdf.
    """
    epochs, places = np.divmod(positions, rows)
    keys = mix(epochs * GOLDEN + mix(seeds))
    bits = np.frexp((rows - np.uint64(1)).astype(np.float64))[1]
    half_bits = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    places = _permute(places, keys, half_bits)
    while (outside := places >= rows).any():
        places[outside] = _permute(places[outside], keys[outside], half_bits[outside])
    return places.astype(np.int64)


def _permute(places: NDArray[np.uint64], keys: NDArray[np.uint64], half_bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A permutation of 0 … 4**half_bits - 1, another one for every key."""
    low = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = places >> half_bits, places & low
    for number in range(1, ROUNDS + 1):
        left, right = right, left ^ (mix(right ^ mix(keys + np.uint64(number))) & low)
    return (left << half_bits) | right
