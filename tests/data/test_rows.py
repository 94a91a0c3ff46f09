from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llm.data.rows import order

ROWS, SEED = st.integers(1, 400), st.integers(-(2**40), 2**63)


@given(ROWS, SEED, st.integers(0, 5))
def test_every_epoch_visits_every_row_once(rows: int, seed: int, epoch: int) -> None:
    assert sorted(order(epoch * rows, rows, rows=rows, seed=seed).tolist()) == list(range(rows))


@given(ROWS, SEED, st.integers(0, 1000), st.lists(st.integers(0, 50), max_size=8))
def test_the_stream_is_the_same_however_it_is_cut(rows: int, seed: int, first: int, pieces: list[int]) -> None:
    whole = order(first, sum(pieces), rows=rows, seed=seed)
    starts = first + np.cumsum([0, *pieces])
    cut = [order(int(start), count, rows=rows, seed=seed) for start, count in zip(starts, pieces, strict=False)]
    assert np.concatenate([np.array([], dtype=np.int64), *cut]).tolist() == whole.tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = [order(epoch * 1000, 1000, rows=1000, seed=seed) for seed in range(3) for epoch in range(3)]
    assert all(np.mean(a == b) < 0.01 for i, a in enumerate(orders) for b in orders[:i])


def test_the_order_looks_random() -> None:
    """Correlation of neighbours, and rows per quarter of an epoch against a uniform draw."""
    permutation = order(0, 10_000, rows=10_000, seed=3)
    assert abs(np.corrcoef(permutation[:-1], permutation[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(10_000), permutation)[0, 1]) < 0.05
    quarters = np.histogram(permutation[:2_500], bins=10, range=(0, 10_000))[0]
    assert np.sum((quarters - 250) ** 2 / 250) < 30


def test_far_into_a_huge_corpus_costs_no_more_than_the_beginning() -> None:
    rows = 10**12
    batch = order(7 * rows - 3, 6, rows=rows, seed=1)
    assert batch.dtype == np.int64
    assert len(set(batch.tolist())) == 6
    assert 0 <= batch.min() <= batch.max() < rows


def test_the_order_never_changes_between_versions() -> None:
    """A resumed run continues the stream of the version that began it."""
    assert order(0, 8, rows=1000, seed=1).tolist() == [521, 821, 693, 916, 912, 47, 994, 420]
