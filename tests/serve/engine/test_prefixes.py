"""The texts that are kept for prompts that begin alike, against a search through all of them."""

from __future__ import annotations

import numpy as np
import pytest

from llm.serve.engine import prefixes as prefixes_module
from llm.serve.engine.prefixes import Prefix, Prefixes, common

NOTHING = np.zeros(0)


def text(client: str, *tokens: int) -> Prefix:
    return Prefix(client, np.array(tokens, np.int32), NOTHING)


def kept(prefixes: Prefixes) -> list[list[int]]:
    return sorted(prefix.tokens.tolist() for prefix in prefixes._texts.values())


@pytest.mark.parametrize("seed", range(20))
def test_the_neighbour_in_order_is_the_longest_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prefixes = Prefixes(most_tokens=400)
    for _ in range(300):
        tokens = rng.choice([0, 1, 255, 256, 70_000], size=rng.integers(1, 12)).astype(np.int32)
        client = "ab"[rng.integers(2)]
        texts = list(prefixes._texts.values())
        best = max((common(each.tokens, tokens) for each in texts if each.client == client), default=0)
        found, shared = prefixes.longest(client, tokens)
        assert shared == best
        assert (found is None) == (best == 0)
        assert found is None or (found.client == client and common(found.tokens, tokens) == best)
        prefixes.add(Prefix(client, tokens, NOTHING))
        texts = list(prefixes._texts.values())
        assert prefixes.tokens == sum(len(each.tokens) for each in texts) <= 400
        assert prefixes._in_order == sorted(prefixes._texts)
        assert any(each.client == client and common(each.tokens, tokens) == len(tokens) for each in texts)
        for each in texts:
            assert not any(
                other is not each and other.client == each.client and common(each.tokens, other.tokens) == len(each.tokens)
                for other in texts
            )


def test_a_longer_text_takes_the_place_of_its_beginning() -> None:
    prefixes = Prefixes(most_tokens=100)
    for tokens in ((1, 2), (1, 2, 3), (1,), (2, 2)):
        prefixes.add(text("a", *tokens))
    prefixes.add(text("b", 1))
    assert kept(prefixes) == [[1], [1, 2, 3], [2, 2]]


def test_the_longest_unused_goes_first() -> None:
    prefixes = Prefixes(most_tokens=6)
    for first in (1, 2, 3):
        prefixes.add(text("a", first, first))
    found, _ = prefixes.longest("a", np.array([1, 1]))
    assert found
    prefixes.use(found)
    prefixes.longest("a", np.array([2, 5]))  # to begin alike is no use yet
    prefixes.add(text("a", 4, 4))
    assert kept(prefixes) == [[1, 1], [3, 3], [4, 4]]
    prefixes.add(text("a", *range(7)))
    assert kept(prefixes) == [[1, 1], [3, 3], [4, 4]]


def test_the_number_of_texts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes_module, "MOST_TEXTS", 2)
    prefixes = Prefixes(most_tokens=100)
    for token in (1, 2, 3):
        prefixes.add(text("a", token))
    assert (kept(prefixes), prefixes.tokens) == ([[2], [3]], 2)


def test_a_text_that_is_kept_already_is_used() -> None:
    prefixes = Prefixes(most_tokens=6)
    for first in (1, 2, 3, 1):
        prefixes.add(text("a", first, first))
    prefixes.add(text("a", 4, 4))
    assert kept(prefixes) == [[1, 1], [3, 3], [4, 4]]
