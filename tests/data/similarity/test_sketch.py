from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash

from llm.data.similarity import sketch
from llm.data.similarity.sketch import Shape, band_keys, band_rows, shingles, signatures, sketches
from llm.data.similarity.words import words
from tests.data.similarity import slow

VOCABULARY = [f"word{number}" for number in range(2000)]
SHAPE = Shape(shingle_words=5, permutations=128, band_rows=4)


def text(seed: int, length: int = 300) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=length))


def edited(original: str, share: float, seed: int) -> str:
    """The text with this share of its words replaced."""
    chance = random.Random(seed)
    return " ".join(chance.choice(VOCABULARY) if chance.random() < share else word for word in original.split())


def family(seed: int, length: int = 300) -> list[str]:
    """A text and copies at every distance."""
    return [edited(text(seed, length), share, seed) for share in (0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12)]


def sets_of(texts: list[str]) -> list[set[int]]:
    found, counts = shingles(words(pa.array(texts)), 5)
    return [set(each.tolist()) for each in np.split(found, np.cumsum(counts)[:-1])]


def test_hashed_shingles_have_the_similarity_of_the_words_themselves() -> None:
    texts = [*family(0), *family(1), "one", "one two", "one  TWO", "a b c d e", "a b c d e f", ""]
    sets = sets_of(texts)
    for i, j in combinations(range(len(texts)), 2):
        ours = len(sets[i] & sets[j]) / max(1, len(sets[i] | sets[j]))
        assert ours == pytest.approx(slow.jaccard(slow.shingles(texts[i]), slow.shingles(texts[j])), abs=1e-12)


@pytest.mark.parametrize("length", [30, 150, 600])
def test_signatures_estimate_similarity_about_as_well_as_datasketch(length: int) -> None:
    """One permutation instead of 128: short sets fill few bins, for which the bound makes allowance."""

    def reference(values: Iterable[int]) -> MinHash:
        minhash = MinHash(num_perm=128)
        minhash.update_batch([value.to_bytes(8, "little") for value in values])
        return minhash

    texts = [member for seed in range(4) for member in family(seed, length)]
    sets = sets_of(texts)
    ours = signatures(*shingles(words(pa.array(texts)), 5), 128)
    theirs = [reference(each) for each in sets]
    errors = [
        (np.mean(ours[i] == ours[j]) - exact, theirs[i].jaccard(theirs[j]) - exact)
        for i, j in combinations(range(len(texts)), 2)
        if (exact := len(sets[i] & sets[j]) / len(sets[i] | sets[j])) > 0.2
    ]
    our_error, their_error = np.sqrt(np.mean(np.square(errors), axis=0))
    assert our_error < max(1.5 * their_error, 0.03)


def test_every_place_of_a_signature_is_filled() -> None:
    found, counts = shingles(words(pa.array(["one", text(0), "", "a b c d e f"])), 5)
    assert ((signatures(found, counts, 48) != sketch.EMPTY).all(axis=1) == [True, True, False, True]).all()


def test_band_keys_are_equal_where_bands_are() -> None:
    chance = np.random.default_rng(0)
    some = chance.integers(2**32, size=(50, 128), dtype=np.uint32)
    other = some.copy()
    changed = chance.integers(128, size=50)
    other[np.arange(50), changed] += 1
    same = band_keys(some, 4) == band_keys(other, 4)
    assert same.sum() == 50 * 31
    assert not same[np.arange(50), changed // 4].any()


@pytest.mark.parametrize("permutations", [64, 128, 256])
@pytest.mark.parametrize(("threshold", "link_threshold"), [(0.8, 0.5), (0.9, 0.5), (0.95, 0.3), (0.7, 0.7), (1.0, 0.6)])
def test_bands_find_pairs_at_both_thresholds(permutations: int, threshold: float, link_threshold: float) -> None:
    """Drawn signatures that agree in each value with the probability of the similarity."""
    rows = band_rows(permutations, threshold, link_threshold)
    chance = np.random.default_rng(0)
    for similarity, recall in ((threshold, 0.99), (link_threshold, 0.85)):
        agrees = chance.random((5_000, permutations // rows, rows)) < similarity
        assert agrees.all(axis=2).any(axis=1).mean() > recall - 0.015


def test_equal_words_in_equal_order_have_equal_digests() -> None:
    texts = ["one two three", "ONE\n\ntwo   three", "one three two", "one two", "one two three three", "a b a", "b a a", "", " "]
    digests = sketches(pa.array(texts), SHAPE).digests_T.tolist()
    assert digests[0] == digests[1]
    assert digests[7] == digests[8]
    assert len(set(digests)) == 7


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pa.array(["", *family(0), "short", *family(1), ""])
    whole = sketches(texts, SHAPE)
    monkeypatch.setattr(sketch, "BLOCK_BYTES", 1000)
    for name, each in vars(sketches(texts, SHAPE)).items():
        assert np.array_equal(each, getattr(whole, name)), name
