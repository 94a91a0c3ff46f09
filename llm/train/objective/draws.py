"""Randomness of a row that depends on its place in the sample stream alone, never on the worker that reads it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llm.data.hashing import GOLDEN, mix


def uniform(places: NDArray[np.int64], count: int, *, seed: int, purpose: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) for each place, independent between places, seeds and purposes.

    Shapes: n places → n, count.
    Example:
        >>> both = uniform(np.array([4, 9]), 3, seed=1, purpose=0)
        >>> bool((both[1] == uniform(np.array([9]), 3, seed=1, purpose=0)[0]).all())
        True
    """
    seeds = mix(np.array([seed % 2**64, purpose + 1], dtype=np.uint64)).sum()
    keys = mix(places.astype(np.uint64) * GOLDEN + seeds)
    bits = mix(keys[:, None] + mix(np.arange(count, dtype=np.uint64))[None])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(places: NDArray[np.int64], count: int, limit: int, *, seed: int, purpose: int) -> NDArray[np.int64]:
    """`count` whole numbers in 0 … limit - 1 for each place."""
    return (uniform(places, count, seed=seed, purpose=purpose) * limit).astype(np.int64)
