from __future__ import annotations

import math
import random

import bm25s
import numpy as np
import pytest

from llm.serve.retrieval.bm25 import K1, B, Vocabulary, best, counted, scores, terms, weighted


def corpus(documents: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    words = [f"w{number}" for number in range(60)]
    weights = [1 / (number + 1) for number in range(60)]
    return [" ".join(draw.choices(words, weights, k=draw.randint(0, 80))) for _ in range(documents)]


def slow(texts: list[str], question: str) -> list[float]:
    """The formula as the paper writes it, a text and a term at a time."""
    split = [terms(text) for text in texts]
    mean = sum(map(len, split)) / len(split)
    total = []
    for words in split:
        score = 0.0
        for term in terms(question):
            frequency, documents = words.count(term), sum(term in each for each in split)
            if documents:
                rarity = math.log(1 + (len(split) - documents + 0.5) / (documents + 0.5))
                score += rarity * frequency / (frequency + K1 * (1 - B + B * len(words) / mean))
        total.append(score)
    return total


@pytest.mark.parametrize("question", ["w0 w3 w17", "w59", "w1 w1 w1 w40", "unknown", "w2 unknown w5"])
def test_scores_equal_the_formula(question: str) -> None:
    texts, vocabulary = corpus(120, seed=1), Vocabulary()
    found = scores(weighted(counted(texts, vocabulary)), vocabulary, question)
    np.testing.assert_allclose(found, slow(texts, question), rtol=1e-5, atol=1e-6)


def test_scores_equal_another_library() -> None:
    texts, vocabulary = [text + " w0" for text in corpus(200, seed=2)], Vocabulary()
    weights = weighted(counted(texts, vocabulary))
    reference = bm25s.BM25(method="lucene", k1=K1, b=B)
    reference.index([terms(text) for text in texts], show_progress=False)
    for question in ("w3 w9 w20", "w50 w51"):
        np.testing.assert_allclose(scores(weights, vocabulary, question), reference.get_scores(terms(question)), rtol=1e-4, atol=1e-6)


def test_an_index_without_texts_or_words_answers() -> None:
    vocabulary = Vocabulary()
    assert scores(weighted(counted([], vocabulary)), vocabulary, "w").tolist() == []
    assert scores(weighted(counted(["", "!"], vocabulary)), vocabulary, "w").tolist() == [0.0, 0.0]


def test_best_equals_a_whole_sort() -> None:
    draw = np.random.default_rng(3)
    for _ in range(50):
        values = draw.integers(-2, 6, size=40).astype(np.float32)
        expected = sorted((place for place in range(40) if values[place] > 0), key=lambda place: (-values[place], place))
        for top in (1, 3, 40, 100):
            assert best(values, top).tolist() == expected[:top]


def test_words_of_unspaced_scripts_are_found_one_by_one() -> None:
    assert terms("東京タワー 330m") == ["東", "京", "タ", "ワ", "ー", "330m"]
    vocabulary = Vocabulary()
    weights = weighted(counted(["東京は首都です", "大阪は西です"], vocabulary))
    assert best(scores(weights, vocabulary, "首都"), 1).tolist() == [0]
