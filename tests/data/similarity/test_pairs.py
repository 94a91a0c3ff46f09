from __future__ import annotations

import random
import sysconfig
import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from llm.data.similarity import pairs as module
from llm.data.similarity.pairs import NEIGHBOURS, ShingleSets, components, jaccard, proposed, relatives
from llm.data.similarity.sketch import Shape, Sketches, sketches
from tests.data.similarity import slow
from tests.data.similarity.test_sketch import SHAPE, VOCABULARY, family

Found = dict[tuple[int, int], float]


def sets_of(sketched: Sketches) -> ShingleSets:
    """The sets as if they lay in two files."""
    counts = sketched.counts_T
    half = len(counts) // 2
    border = int(counts[:half].sum())
    starts = np.cumsum(counts) - counts
    shard = (np.arange(len(counts)) >= half).astype(np.int64)
    files = [sketched.shingles_S[:border], sketched.shingles_S[border:]]
    return ShingleSets(files, shard, starts - border * shard, counts)


def everything(texts: list[str], shape: Shape = SHAPE, at_least: float = 0.5) -> Found:
    """All pairs that any band proposes and the shingles confirm."""
    sketched = sketches(pa.array(texts), shape)
    found = np.unique(np.concatenate([proposed(sketched.keys_TK, band)[0] for band in range(sketched.keys_TK.shape[1])]), axis=0)
    similarities = jaccard(sets_of(sketched), found)
    return {(i, j): value for (i, j), value in zip(found.tolist(), similarities.tolist(), strict=True) if value >= at_least}


def installed_texts() -> list[str]:
    """Modules of the standard library, and what packages bring along as text, licences in all variants; exact copies once."""
    library, packages = (Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib"))
    modules = sorted(library.glob("[a-h]*.py"))
    papers = sorted(path for pattern in ("*/licenses/**/*", "*/LICENSE*", "*/*.md", "*/*.rst") for path in packages.glob(pattern))
    files = [path for path in dict.fromkeys([*modules, *papers]) if path.is_file() and path.stat().st_size < 30_000]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    return list({tuple(slow.words(text)): text for text in texts}.values())


@pytest.mark.parametrize(
    ("texts", "recall"),
    [([member for seed in range(40) for member in family(seed, 150)], 0.99), (installed_texts(), 0.97)],
    ids=["made", "installed"],
)
def test_recall_and_precision_against_exact_similarity(texts: list[str], recall: float) -> None:
    truth, found = slow.similar_pairs(texts, 0.5), everything(texts)
    assert len(truth) > 200
    for pair, similarity in found.items():  # precision: nothing but true pairs
        assert similarity == pytest.approx(truth[pair], abs=1e-3)
    near, related = ({pair for pair, similarity in truth.items() if similarity >= least} for least in (0.8, 0.5))
    assert len(near & found.keys()) >= recall * len(near)
    assert len(related & found.keys()) >= 0.95 * len(related)


def test_near_copies_are_found_in_scripts_without_spaces() -> None:
    """Chinese, Japanese and Thai sentences, of which a character or two was exchanged; there are no words between blanks."""
    chance = np.random.default_rng(0)
    scripts = [range(0x4E00, 0x4F00), range(0x3041, 0x3096), range(0x0E01, 0x0E2E)]
    texts = []
    for script in scripts:
        for _ in range(10):
            original = chance.choice(script, 200)
            copy = original.copy()
            copy[[50, 120]] = chance.choice(script, 2)
            texts += ["".join(map(chr, original)), "".join(map(chr, copy))]
    assert everything(texts, at_least=0.8).keys() == {(place, place + 1) for place in range(0, 60, 2)}


def templated(count: int) -> list[str]:
    """Pages of one template, each with words of its own: any two at a similarity of about 0.62; and near copies of every tenth."""
    chance = random.Random(0)
    template = chance.choices(VOCABULARY, k=120)
    pages = [" ".join(template + chance.choices(VOCABULARY, k=35)) for _ in range(count - count // 10)]
    return pages + [f"{page} end" for page in pages[: count // 10]]


def same_groups(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    """Whether two numberings tell the same members apart."""
    return len(set(one.tolist())) == len(set(other.tolist())) == len(set(zip(one.tolist(), other.tolist(), strict=True)))


@pytest.mark.parametrize("round_pairs", [1_000_000, 100])
@pytest.mark.parametrize(
    "texts", [[member for seed in range(20) for member in family(seed)], templated(150)], ids=["families", "templated"]
)
def test_relatives_are_those_that_all_pairs_connect(texts: list[str], round_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND_PAIRS", round_pairs)
    sketched = sketches(pa.array(texts), SHAPE)
    found = relatives(sketched.keys_TK, sets_of(sketched), threshold=0.8, at_least=0.5)
    truth = slow.similar_pairs(texts, 0.5)
    for labels_T, least in zip(found, (0.8, 0.5), strict=True):
        connected = np.array([pair for pair, value in truth.items() if value >= least])
        assert same_groups(labels_T, components(len(texts), connected))


def test_memory_of_templated_pages_grows_by_a_few_numbers_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is alike to all others; at most the pairs of one band are there at a time, and none is kept."""
    monkeypatch.setattr(module, "BATCH_SHINGLES", 1 << 15)
    monkeypatch.setattr(module, "ROUND_PAIRS", 10_000)
    texts = templated(2_000)
    sketched = sketches(pa.array(texts), SHAPE)
    sets = sets_of(sketched)
    tracemalloc.start()
    cluster_T, family_T = relatives(sketched.keys_TK, sets, threshold=0.8, at_least=0.5)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(set(cluster_T.tolist())), len(set(family_T.tolist()))) == (1_800, 1)
    assert peak_bytes < 2_000 * len(texts)


def test_a_pair_is_fresh_in_the_first_band_that_proposes_it_alone() -> None:
    """Small buckets and crowds, against a set of all pairs that have been there."""
    keys_TK = np.random.default_rng(0).integers(12, size=(600, 6), dtype=np.uint32) ** 2 // 8
    seen: set[tuple[int, int]] = set()
    for pairs, earlier in module._rounds(keys_TK):
        here = {(low, high) for low, high in pairs.tolist()}
        assert {(low, high) for low, high in module._fresh(pairs, earlier).tolist()} == here - seen
        seen |= here
    assert len(seen) > 10_000


def test_similarity_is_the_same_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = sets_of(sketches(pa.array(family(0) + family(1) + ["", ""]), SHAPE))
    pairs = np.array(list(combinations(range(20), 2)))
    whole = jaccard(sets, pairs)
    monkeypatch.setattr(module, "BATCH_SHINGLES", 1000)
    assert np.array_equal(jaccard(sets, pairs), whole)
    assert whole[-1] == 0
    assert len(jaccard(sets, pairs[:0])) == 0


def test_components_join_chains_whatever_their_order() -> None:
    pairs = np.random.default_rng(0).permutation([*((i, i + 1) for i in range(50)), (60, 70), (70, 65)])
    labels = components(71, pairs)
    assert len(set(labels[:51].tolist())) == 1
    assert labels[60] == labels[65] == labels[70]
    assert len(set(labels.tolist())) == 71 - 52


def test_crowded_buckets_stay_linear() -> None:
    """One key for all: each stands beside the next few, and that connects everyone."""
    keys = np.ones((3000, 4), np.uint32)
    pairs, _ = proposed(keys, 0)
    assert 2999 <= len(pairs) <= 3000 * NEIGHBOURS
    assert set(components(3000, pairs).tolist()) == {0}


def test_near_copies_in_a_crowd_are_proposed_whoever_stands_first() -> None:
    """200 texts agree in the first band alone, and scattered pairs of them in the next one too."""
    chance = np.random.default_rng(0)
    places = chance.permutation(np.arange(1, 201)).reshape(100, 2)
    keys = chance.integers(2**32, size=(201, 32), dtype=np.uint32)
    keys[:, 0] = 1
    keys[places[:, 1], 1] = keys[places[:, 0], 1]
    found, _ = proposed(keys, 0)
    assert {(low, high) for low, high in np.sort(places).tolist()} <= {(low, high) for low, high in found.tolist()}
    assert len(found) <= 201 * NEIGHBOURS


def test_small_and_full_buckets_stand_side_by_side() -> None:
    keys = np.repeat(np.array([5, 9, 7], np.uint32), [100, 3, 1])[:, None]
    found = {(low, high) for low, high in proposed(keys, 0)[0].tolist()}
    assert {(100, 101), (100, 102), (101, 102)} <= found
    assert all(high <= 99 or low >= 100 for low, high in found)
    assert not any(103 in pair for pair in found)
