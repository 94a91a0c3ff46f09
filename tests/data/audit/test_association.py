from __future__ import annotations

import itertools
import random
from statistics import mean, stdev

import numpy as np
import pytest

from llm.data.audit.association import WINDOW, associations, cooccurrences, positive_information, vectors, weat
from llm.data.audit.words import CAREER, FAMILY, FEMALE, MALE

FILLER = [f"filler{letter}{other}" for letter in "abcdefgh" for other in "abcdefgh"]


def test_effect_and_p_are_the_papers_by_a_slow_obvious_version() -> None:
    draw = np.random.default_rng(1)
    sets = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in draw.normal(size=(4, 5, 7))]
    X, Y, A, B = sets

    def leaning(word: np.ndarray) -> float:
        return mean(float(word @ a) for a in A) - mean(float(word @ b) for b in B)

    everyone = [leaning(word) for word in (*X, *Y)]
    effect = (mean(everyone[:5]) - mean(everyone[5:])) / stdev(everyone)
    splits = [
        sum(everyone[i] for i in chosen) - sum(everyone[i] for i in set(range(10)) - set(chosen))
        for chosen in itertools.combinations(range(10), 5)
    ]
    observed = sum(everyone[:5]) - sum(everyone[5:])
    found = weat(X, Y, A, B)
    assert found[0] == pytest.approx(effect)
    assert found[1] == pytest.approx(sum(split >= observed - 1e-12 for split in splits) / len(splits))


def test_pairs_and_their_information_by_hand() -> None:
    pairs = cooccurrences([["a", "b", "a"]], {"a": 0, "b": 1}).toarray()
    assert pairs.tolist() == [[2, 2], [2, 0]], "a-b twice at distance 1, a-a once at distance 2, each seen from both sides"
    information = positive_information(cooccurrences([["a", "b", "a"]], {"a": 0, "b": 1})).toarray()
    contexts = [4**0.75, 2**0.75]
    assert information[0, 1] == pytest.approx(np.log((2 / 6) / (4 / 6 * contexts[1] / sum(contexts))))
    assert WINDOW >= 2


def planted(lean: bool) -> list[str]:
    """Texts in which men work and women keep house, or either does either."""
    chance, texts = random.Random(0), []
    for number in range(1500):
        people, places = (MALE, CAREER) if number % 2 else (FEMALE, FAMILY)
        if not lean and number % 4 < 2:
            places = FAMILY if places is CAREER else CAREER
        words = [chance.choice(people), chance.choice(places), chance.choice(people), chance.choice(places), *chance.choices(FILLER, k=12)]
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize("lean", [True, False])
def test_a_planted_leaning_is_found_and_an_even_hand_is_not_accused(lean: bool) -> None:
    found = {result["name"]: result for result in associations(vectors(planted(lean), frozenset()))}
    people = found["men and women, career and family"]
    assert people["effect"] is not None
    assert (people["effect"] > 1.5 and people["p"] < 0.01) if lean else abs(people["effect"]) < 1.0
    assert found["flowers and insects, pleasant and unpleasant"]["effect"] is None, "words that the corpus lacks"


def test_equal_texts_give_equal_vectors() -> None:
    first, second = (vectors(planted(True), frozenset()) for _ in range(2))
    assert all(np.array_equal(first[word], second[word]) for word in first)
