"""Which words a corpus puts close to which: vectors trained from it, and the word-embedding association test.

W words of the vocabulary, D dimensions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.utils.extmath import randomized_svd

from llm.data.audit.words import TESTS

VOCABULARY, WINDOW, DIMENSIONS = 5_000, 5, 64
FEWEST_WORDS = 3  # of each set, below which the test says nothing
PERMUTATIONS = 2_000

_word = re.compile(r"[^\W\d_]+")

Vectors = Mapping[str, NDArray[np.float64]]


def vectors(texts: Sequence[str], keep: frozenset[str]) -> Vectors:
    """A vector of length 1 for each frequent word, and for those of `keep` that occur at least five times.

    Source: singular vectors of positive pointwise mutual information, Levy & Goldberg 2014, Neural word embedding as implicit
    matrix factorization, section 4; context counts to the power of 3/4 as in Levy, Goldberg & Dagan 2015, 3.2.
    """
    documents = [_word.findall(text.lower()) for text in texts]
    counts = Counter(word for words in documents for word in words)
    frequent = {word for word, count in counts.most_common(VOCABULARY) if count >= 5}
    names = sorted(frequent | {word for word in keep if counts[word] >= 5})
    if len(names) < 2 * FEWEST_WORDS:
        return {}
    pairs_WW = cooccurrences(documents, {name: place for place, name in enumerate(names)})
    information_WW = positive_information(pairs_WW)
    size = min(DIMENSIONS, len(names) - 1)
    left_WD, values_D, _ = randomized_svd(information_WW, size, random_state=0)
    vectors_WD = left_WD * np.sqrt(values_D)
    lengths_W = np.linalg.norm(vectors_WD, axis=1)
    return {name: vectors_WD[place] / lengths_W[place] for place, name in enumerate(names) if lengths_W[place] > 0}


def cooccurrences(documents: Sequence[Sequence[str]], places: Mapping[str, int]) -> csr_matrix:
    """How often two words stand within `WINDOW` known words of each other, W × W."""
    near, far = list[NDArray[np.int32]](), list[NDArray[np.int32]]()
    for words in documents:
        ids = np.array([places[word] for word in words if word in places], dtype=np.int32)
        near += [ids[:-distance] for distance in range(1, WINDOW + 1)]
        far += [ids[distance:] for distance in range(1, WINDOW + 1)]
    rows, columns = np.concatenate(near), np.concatenate(far)
    pairs = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(places), len(places)))
    return pairs + pairs.T


def positive_information(pairs_WW: csr_matrix) -> csr_matrix:
    """max(0, log p(w, c) / (p(w) p(c)^0.75…)) of the pairs that occur."""
    found = pairs_WW.tocoo()
    words_W = np.asarray(pairs_WW.sum(axis=1)).ravel()
    contexts_W = words_W**0.75
    expected = words_W[found.row] / words_W.sum() * contexts_W[found.col] / contexts_W.sum()
    values = np.log(found.data / found.data.sum() / expected)
    return csr_matrix((np.maximum(values, 0.0), (found.row, found.col)), shape=pairs_WW.shape)


def associations(found: Vectors) -> list[dict[str, Any]]:
    """Effect size and p-value of each test whose words the corpus knows well enough; the words that were used."""
    results: list[dict[str, Any]] = []
    for name, sets in TESTS.items():
        known = [[word for word in words if word in found] for words in sets]
        if min(map(len, known)) < FEWEST_WORDS:
            results.append({"name": name, "effect": None, "p": None, "words": known})
            continue
        first, second, *attributes = (np.array([found[word] for word in words]) for words in known)
        effect, p = weat(first, second, *attributes)
        results.append({"name": name, "effect": effect, "p": p, "words": known})
    return results


def weat(
    first_XD: NDArray[np.float64], second_YD: NDArray[np.float64], one_AD: NDArray[np.float64], other_BD: NDArray[np.float64]
) -> tuple[float, float]:
    """How much closer the first targets are to the one attribute than the second targets are, and how likely that is by chance.

    The effect is in standard deviations, between -2 and 2; the p-value counts the splits of all targets into two sets of these
    sizes whose difference is at least as large: every split where there are few, else a fixed draw of them.

    Source: Caliskan, Bryson & Narayanan 2017, https://arxiv.org/abs/1608.07187, WEAT.
    """
    targets = np.concatenate([first_XD, second_YD])
    leanings = (targets @ one_AD.T).mean(axis=1) - (targets @ other_BD.T).mean(axis=1)
    size = len(first_XD)
    deviation = leanings.std(ddof=1)
    effect = (leanings[:size].mean() - leanings[size:].mean()) / deviation if deviation else 0.0
    sums = leanings[_splits(len(leanings), size)].sum(axis=1)
    return float(effect), float((sums >= leanings[:size].sum() - 1e-12).mean())


def _splits(count: int, size: int) -> NDArray[np.int64]:
    """Sets of `size` out of `count` places."""
    draw = np.random.default_rng(0)
    if count <= 14:
        return np.array(list(combinations(range(count), size)))
    return np.array([draw.permutation(count)[:size] for _ in range(PERMUTATIONS)])
