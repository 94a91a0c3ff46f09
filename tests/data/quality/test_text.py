from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.quality.text import Text, later_share

few_words = st.lists(st.sampled_from(["a", "bc", "def", "ghij", "k"]), max_size=60)


def slow_top_share(words: list[str], n: int) -> float:
    """The definition, word for word."""
    counts = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    most = max(counts.values(), default=0)
    if most < 2:
        return 0.0
    longest = max(sum(map(len, gram)) for gram, count in counts.items() if count == most)
    return min(1.0, most * longest / sum(map(len, words)))


def slow_repeated_share(words: list[str], n: int) -> float:
    """Every character position of every later occurrence, in a set."""
    seen: set[tuple[str, ...]] = set()
    covered: set[int] = set()
    for start in range(len(words) - n + 1):
        gram = tuple(words[start : start + n])
        if gram in seen:
            covered |= set(range(start, start + n))
        seen.add(gram)
    return sum(len(words[place]) for place in covered) / max(1, sum(map(len, words)))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(few_words, st.integers(2, 10))
def test_runs_of_words_as_in_their_definition(words: list[str], n: int) -> None:
    text = Text(" ".join(words))
    assert text.top_share(n) == slow_top_share(words, n)
    assert text.top_share(n) <= text.top_bound(n) or text.top_share(n) == 1
    assert text.repeated_share(n) == slow_repeated_share(words, n)
    assert text.repeated_share(n + 1) <= text.repeated_share(n)


def test_long_texts_too() -> None:
    draw = random.Random(1)
    words = [draw.choice("abcdefghijklmnopqrstuvwxyz") * draw.randint(1, 3) for _ in range(5000)]
    words[3000:3400] = words[100:500]
    for n in (2, 3, 5, 10):
        assert Text(" ".join(words)).top_share(n) == slow_top_share(words, n)
        assert Text(" ".join(words)).repeated_share(n) == slow_repeated_share(words, n)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["same", "another line", "x", "y y"]), max_size=12))
def test_later_parts_as_in_their_definition(parts: list[str]) -> None:
    later = [part for place, part in enumerate(parts) if part in parts[:place]]
    characters = sum(map(len, parts))
    assert later_share(parts) == (len(later) / max(1, len(parts)), sum(map(len, later)) / max(1, characters))


def test_lines_paragraphs_and_words() -> None:
    text = Text("\n one two \n three\n \n\t\nfour\n\n")
    assert text.lines == ["one two", "three", "four"]
    assert text.paragraphs == ["one two\nthree", "four"]
    assert text.words == ["one", "two", "three", "four"]
    assert text.mean_word_characters == 3.75
    assert Text("4 x1 -- ,").letter_words_share == 0.25
    assert Text("English words and 中文 beside them").spaced
    assert not Text("全部都是中文, really").spaced
