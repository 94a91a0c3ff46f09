from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from llm.data.similarity import words as module
from llm.data.similarity.words import hashes, words
from tests.data.similarity import slow

TEXTS = [
    "Hello, world! It's 3.14 o'clock_now (really?)",
    "",
    " \t\n\x00\x1f\x7f",
    "same" * 40,  # longer than a word may be
    "ÄÖÜ straße ÉTÉ Привет МИР Ελλάδα",
    "我们今天去公园玩。今日は公園に行きます！",
    "ภาษาไทยไม่มีช่องว่าง ພາສາລາວ မြန်မာ ខ្មែរ",
    "한국어는 띄어쓰기를 한다",
    "emoji 😀😃 word😀word “quoted” — dash… «guillemets»",
    "a中b 中a文b ab中文cd",
    "x",
    "中",
    "tail-",
    "é" * 100,
]


def hash_of(token: bytes) -> int:
    """The hash of one word in Python's numbers."""
    found = 0
    for start in range(0, len(token), 8):
        found ^= int.from_bytes(token[start : start + 8], "little")
        found = found * 0x9E3779B97F4A7C15 % 2**64
        found ^= found >> 29
        found = found * 0xBF58476D1CE4E5B9 % 2**64
        found ^= found >> 32
    return found


def found(texts: list[str]) -> list[list[int]]:
    result = words(pa.array(texts, pa.string()))
    return [result.hashes[start:end].tolist() for start, end in zip(result.borders[:-1], result.borders[1:], strict=True)]


def expected(texts: list[str]) -> list[list[int]]:
    return [[hash_of(token) for token in slow.words(text)] for text in texts]


def test_words_are_those_of_the_slow_definition() -> None:
    assert found(TEXTS) == expected(TEXTS)


def test_words_of_random_characters_are_those_of_the_slow_definition() -> None:
    chance = random.Random(0)
    alphabet = "aZ9_ \n.,-é\u00a0ßжЖ中。ไ😀\u1000\u1080\u10d0\u1780\u1fff\u2000\u2fff\u3000\u9fff\ua000\ud7ff\ue000\uf000\uffff"
    texts = ["".join(chance.choices(alphabet, k=chance.randrange(60))) for _ in range(2000)]
    assert found(texts) == expected(texts)


def test_neighbours_change_nothing() -> None:
    """A text's words are the same alone, in a slice of an array, and whoever stands before and behind it."""
    whole = found(TEXTS)
    assert [found([text])[0] for text in TEXTS] == whole
    part = words(pa.array(TEXTS).slice(3, 5))
    assert part.hashes.tolist() == [each for text in whole[3:8] for each in text]


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*TEXTS, " ".join(TEXTS), "solid" * 500, "blank" + " " * 500]
    whole = found(texts)
    for size in (1, 7, 100):
        monkeypatch.setattr(module, "PIECE_BYTES", size)
        assert found(texts) == whole


def test_no_texts_have_no_words() -> None:
    assert found([]) == []


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 63, 64])
def test_every_byte_of_a_word_counts(length: int) -> None:
    word = bytes(range(1, length + 1))
    changed = [word[:place] + b"\xff" + word[place + 1 :] for place in range(length)] + [word[:-1], word]
    data = np.frombuffer(b"".join(changed), np.uint8)
    lengths = np.array([len(each) for each in changed])
    assert len(set(hashes(data, np.cumsum(lengths) - lengths, lengths).tolist())) == len(changed)
