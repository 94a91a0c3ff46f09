"""Passages ranked by the words that they share with a question, as sparse matrices.

Source: BM25 as in Lucene, Kamphuis et al. 2020, Which BM25 do you mean?, https://doi.org/10.1007/978-3-030-45442-5_4.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

K1, B = 1.2, 0.75  # Lucene's
MAX_TERM_CHARACTERS = 64
MAX_QUESTION_TERMS = 1_000

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"  # Thai, Lao, Burmese, Khmer, kana, Han
_term = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}_])\w)+")

Vocabulary = dict[str, int]


def terms(text: str) -> list[str]:
    """Words without regard to case, parts of names between `_`, and single characters of scripts that put no spaces.

    Example:
        >>> terms("Set max_bytes; 日本 GmbH's")
        ['set', 'max', 'bytes', '日', '本', 'gmbh', 's']
    """
    return [term[:MAX_TERM_CHARACTERS] for term in _term.findall(text.casefold())]


def counted(texts: Iterable[str], vocabulary: Vocabulary) -> sparse.csr_array:
    """How often each term stands in each text [texts, terms]; terms that are met first join the vocabulary."""
    values, columns, borders = array("i"), array("i"), [0]
    for text in texts:
        counts = Counter(terms(text))
        values.extend(counts.values())
        columns.extend(vocabulary.setdefault(term, len(vocabulary)) for term in counts)
        borders.append(len(values))
    parts = (np.array(values, np.int32), np.array(columns, np.int32), np.array(borders))
    return sparse.csr_array(parts, shape=(len(borders) - 1, len(vocabulary)))


def weighted(counts: sparse.csr_array) -> sparse.csr_array:
    """What each term adds to the score of each text [terms, texts]."""
    texts, number = counts.shape
    counts = counts.tocoo()
    lengths = np.bincount(counts.row, counts.data, texts)
    frequency = np.bincount(counts.col, minlength=number)
    rarity = np.log1p((texts - frequency + 0.5) / (frequency + 0.5))
    damping = K1 * (1 - B + B * lengths / max(lengths.mean() if texts else 0.0, 1e-9))
    weights = rarity[counts.col] * counts.data / (counts.data + damping[counts.row])
    return sparse.coo_array((weights.astype(np.float32), (counts.col, counts.row)), shape=(number, texts)).tocsr()


def scores(weights: sparse.csr_array, vocabulary: Vocabulary, question: str) -> NDArray[np.float32]:
    """The score of every text; a term that the question repeats counts again."""
    asked = Counter(vocabulary[term] for term in terms(question)[:MAX_QUESTION_TERMS] if term in vocabulary)
    if not asked:
        return np.zeros(weights.shape[1], np.float32)
    found: NDArray[np.float32] = np.array(list(asked.values()), np.float32) @ weights[list(asked)]
    return found


def best(scores: NDArray[np.float32], top: int) -> NDArray[np.int64]:
    """Places of the highest scores above 0, the highest first; of equal ones the earliest."""
    candidates = np.flatnonzero(scores > 0)
    if len(candidates) > top:
        threshold = np.partition(scores[candidates], -top)[-top]
        candidates = candidates[scores[candidates] >= threshold]
    return candidates[np.argsort(-scores[candidates], kind="stable")][:top]
