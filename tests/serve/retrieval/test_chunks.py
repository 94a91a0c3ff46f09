from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.tokenizer import Tokenizer
from llm.serve.retrieval.chunks import passages

TEXTS = st.lists(st.sampled_from(["word", "a", "Ünï", "日本", "end.", "!", " ", "  ", "\n", "\n\n", "\n \n", "x" * 40]), max_size=80).map(
    "".join
)


def characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


@given(text=TEXTS, max_tokens=st.integers(4, 40), overlap=st.integers(0, 10))
@settings(max_examples=300, deadline=None)
def test_passages_hold_every_word_in_order_and_no_more_than_allowed(text: str, max_tokens: int, overlap: int) -> None:
    found = passages(text, characters, max_tokens=max_tokens, overlap_tokens=min(overlap, max_tokens // 2))
    covered = {place for start, end in found for place in range(start, end)}
    assert {place for place, character in enumerate(text) if not character.isspace()} <= covered
    assert all(0 < end - start <= max_tokens for start, end in found)
    assert all(first[0] < second[0] and first[1] < second[1] for first, second in pairwise(found))
    assert all(first[1] - second[0] <= overlap for first, second in pairwise(found))
    assert all(text[start:end] == text[start:end].strip() for start, end in found)


def test_neighbours_share_the_end_of_the_first() -> None:
    text = " ".join(f"Sentence number {number}." for number in range(30))
    found = passages(text, characters, max_tokens=100, overlap_tokens=40)
    for first, second in pairwise(found):
        shared = text[second[0] : first[1]]
        assert shared.startswith("Sentence number")
        assert shared.endswith(".")


def test_paragraphs_stay_whole_where_they_fit() -> None:
    paragraphs = [f"{letter} " * 10 + "end." for letter in "abcdef"]
    found = passages("\n\n".join(paragraphs), characters, max_tokens=60, overlap_tokens=0)
    text = "\n\n".join(paragraphs)
    assert [text[start:end] for start, end in found] == ["\n\n".join(paragraphs[place : place + 2]) for place in (0, 2, 4)]


def test_a_real_vocabulary_counts_as_it_encodes(tokenizer: Tokenizer) -> None:
    text = "\n\n".join(f"Option {number}: returns the parser, or raises an error. " * 3 for number in range(40))

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer.vocabulary.encode_all(texts)]

    found = passages(text, count, max_tokens=64, overlap_tokens=16)
    assert len(found) > 20
    assert all(len(tokenizer.encode(text[start:end])) <= 64 for start, end in found)


def test_a_text_without_borders_is_cut_all_the_same() -> None:
    longest = 0

    def count(texts: Sequence[str]) -> list[int]:
        nonlocal longest
        longest = max([longest, *map(len, texts)])
        return [len(text) for text in texts]

    found = passages("x" * 1_000_000, count, max_tokens=100, overlap_tokens=0)
    assert sum(end - start for start, end in found) == 1_000_000
    assert longest <= 6_400  # a tokenizer never meets a word of a megabyte
