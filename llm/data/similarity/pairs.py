"""Which of many sketched texts are alike: banding proposes, the shingles decide, components gather."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

FULL_BUCKET = 64
NEIGHBOURS = 16
ROUND_PAIRS = 1_000_000
BATCH_SHINGLES = 1 << 19  # compared at a time: what stays in the cache

_half = np.uint64(32)
_low = np.uint64(2**32 - 1)

Pairs = NDArray[np.int64]  # (pairs, 2), the smaller member first


@dataclass(frozen=True)
class ShingleSets:
    """Sorted distinct shingles of T texts, which lie in the files of several shards: mapped, not read."""

    shards: Sequence[NDArray[np.uint32]]
    shard_T: NDArray[np.int64]
    start_T: NDArray[np.int64]
    count_T: NDArray[np.int64]

    def chosen(self, texts: NDArray[np.int64]) -> ShingleSets:
        """The sets of some texts."""
        return ShingleSets(self.shards, self.shard_T[texts], self.start_T[texts], self.count_T[texts])

    def of(self, texts: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The shingles of these texts, one after the other."""
        counts = self.count_T[texts]
        ends = np.cumsum(counts)
        found = np.empty(ends[-1] if len(ends) else 0, np.uint32)
        for shard in np.unique(self.shard_T[texts]):
            here = np.flatnonzero(self.shard_T[texts] == shard)
            found[spans(ends[here] - counts[here], counts[here])] = self.shards[shard][spans(self.start_T[texts[here]], counts[here])]
        return found


def relatives(
    keys_TK: NDArray[np.uint32], sets: ShingleSets, *, threshold: float, at_least: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each text the number of its cluster, which pairs that reach `threshold` connect, and of its family, which `at_least` makes.

    Every pair that banding proposes is verified on the sets themselves, once at most. One whose members are already in a
    cluster is not looked at, nor one within a family whose sizes keep it below `threshold`: they could add nothing.
    Pairs are forgotten as soon as they have joined what they join, so memory grows with texts, however many are alike.
    """
    cluster_T = family_T = np.arange(len(keys_TK))
    for pairs, earlier in _rounds(keys_TK):
        pairs = pairs[_differ(cluster_T, pairs)]
        pairs = pairs[_differ(family_T, pairs) | (_most_alike(sets, pairs) >= threshold)]
        pairs = _fresh(pairs, earlier)
        similarity = jaccard(sets, pairs)
        cluster_T, family_T = (
            _joined(labels_T, pairs[similarity >= least]) for labels_T, least in ((cluster_T, threshold), (family_T, at_least))
        )
    return cluster_T, family_T


def proposed(keys_TK: NDArray[np.uint32], band: int) -> tuple[Pairs, NDArray[np.uint32]]:
    """Pairs that agree in a band: all of a bucket; in a crowd (boilerplate) each with the next few, or they'd grow as the square.

    And each text's place, by which pairs are known later on: they are those at most `NEIGHBOURS` places apart. A bucket
    that is no crowd has one place for all. Next neighbours come first, then those two places apart, and so on.
    A crowd is sorted by the keys of the bands that follow, so that the most alike stand together, and every band that a
    pair shares sorts it anew.

    Source: the sorted neighbourhood method, Hernández & Stolfo 1995, The merge/purge problem for large databases.
    """
    slots = np.sort(keys_TK[:, band].astype(np.uint64) << _half | np.arange(len(keys_TK), dtype=np.uint64))
    buckets, members = slots >> _half, (slots & _low).astype(np.int64)
    lengths = np.diff(np.flatnonzero(np.append(buckets[1:] != buckets[:-1], True)[: len(buckets)]), prepend=-1)
    number = np.repeat(np.arange(len(lengths)), lengths)
    crowded = lengths[number] > FULL_BUCKET
    crowd = np.flatnonzero(crowded)
    following = [keys_TK[members[crowd], (band + step) % keys_TK.shape[1]] for step in range(min(8, keys_TK.shape[1] - 1), 0, -1)]
    members[crowd] = members[crowd][np.lexsort([*following, buckets[crowd]])] if crowd.size else members[crowd]
    pairs = np.concatenate([np.stack([members[at], members[at + step]], 1) for step, at in _steps(buckets, crowded)])
    place_T = np.empty(len(members), np.uint32)
    place_T[members] = np.where(crowded, np.arange(len(members)), (np.cumsum(lengths) - lengths)[number]) + NEIGHBOURS * number
    return np.sort(pairs, axis=1), place_T


def jaccard(sets: ShingleSets, pairs: Pairs) -> NDArray[np.float64]:
    """Shared shingles among all shingles of both, for each pair; 0 for two empty sets."""
    sizes = sets.count_T[pairs].sum(axis=1)
    order = np.argsort(sets.shard_T[pairs[:, 0]], kind="stable")
    batches = np.flatnonzero(np.diff(np.cumsum(sizes[order]) // BATCH_SHINGLES, prepend=-1))
    shared = np.zeros(len(pairs), np.int64)
    for batch in np.split(order, batches[1:]):
        shared[batch] = _shared(sets, pairs[batch])
    return shared / np.maximum(1, sizes - shared)


def components(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """For each of `count` members the number of its connected component."""
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    labels: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def spans(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1, … for each start, as many as it counts.

    Example:
        >>> spans(np.array([5, 9]), np.array([2, 3])).tolist()
        [5, 6, 9, 10, 11]
    """
    return np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)


def _rounds(keys_TK: NDArray[np.uint32]) -> Iterator[tuple[Pairs, list[NDArray[np.uint32]]]]:
    """All that bands propose, so much at a time that what was found connects most of a crowd before its next round.

    With them the places of all texts in earlier bands.
    """
    earlier: list[NDArray[np.uint32]] = []
    for band in range(keys_TK.shape[1]):
        pairs, place_T = proposed(keys_TK, band)
        for start in range(0, len(pairs), ROUND_PAIRS):
            yield pairs[start : start + ROUND_PAIRS], earlier
        earlier.append(place_T)


def _fresh(pairs: Pairs, earlier: Sequence[NDArray[np.uint32]]) -> Pairs:
    """Those pairs that no earlier band proposed."""
    for place_T in earlier:
        apart = place_T[pairs[:, 0]] - place_T[pairs[:, 1]]  # modulo 2³², as the sum that follows
        pairs = pairs[apart + np.uint32(NEIGHBOURS) > 2 * NEIGHBOURS]
    return pairs


def _differ(labels_T: NDArray[np.int64], pairs: Pairs) -> NDArray[np.bool_]:
    """Which pairs' members have different labels."""
    unlike: NDArray[np.bool_] = labels_T[pairs[:, 0]] != labels_T[pairs[:, 1]]
    return unlike


def _most_alike(sets: ShingleSets, pairs: Pairs) -> NDArray[np.float64]:
    """The similarity that each pair has if the smaller set lies within the larger."""
    sizes = sets.count_T[pairs]
    return sizes.min(axis=1) / np.maximum(1, sizes.max(axis=1))


def _joined(labels_T: NDArray[np.int64], pairs: Pairs) -> NDArray[np.int64]:
    """The labels of components, after these pairs have connected some of them."""
    bridges = labels_T[pairs[_differ(labels_T, pairs)]]
    return components(len(labels_T), bridges)[labels_T] if len(bridges) else labels_T


def _steps(buckets: NDArray[np.uint64], crowded: NDArray[np.bool_]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(step, places whose bucket reaches at least that many places further)."""
    at = np.arange(len(buckets))
    for step in range(1, FULL_BUCKET):
        at = at[at + step < len(buckets)]
        at = at[(buckets[at + step] == buckets[at]) & (~crowded[at] | (step <= NEIGHBOURS))]
        yield step, at
        if not at.size:
            return


def _shared(sets: ShingleSets, pairs: Pairs) -> NDArray[np.int64]:
    """How many shingles the members of each pair share: those that stand twice among the pair's."""
    numbers = [np.repeat(np.arange(len(pairs), dtype=np.uint64) << _half, sets.count_T[side]) for side in pairs.T]
    both = np.sort(np.concatenate([number | sets.of(side) for number, side in zip(numbers, pairs.T, strict=True)]))
    twice = both[1:][both[1:] == both[:-1]]
    return np.bincount((twice >> _half).astype(np.int64), minlength=len(pairs))
