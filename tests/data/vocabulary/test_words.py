"""Encoding by distinct words against the tokenizers that encode a text from its beginning."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.data.tokenizer import Tokenizer
from llm.data.vocabulary import words
from llm.data.vocabulary.words import Encoder
from tests.data.conftest import MODULES
from tests.data.vocabulary.conftest import KINDS, LOSSLESS, NASTY, SPECIAL, TEXTS, learned

FRAGMENTS = st.sampled_from(
    [*SPECIAL, "<|", "|>", "\u2581", " ", "  ", "\n", "\t", "self", ".", "(", "==", "import", "0", "12", "é", "日", "🙂", "\x00"]
)
TEXT = st.lists(FRAGMENTS | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=30).map("".join)


def split(encoder: Encoder, texts: list[str]) -> list[list[int]]:
    encoded = encoder(texts)
    return [each.tolist() for each in np.split(encoded.ids, np.cumsum(encoded.tokens)[:-1])]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=4))
@example(texts=NASTY)
@example(texts=["", "", " "])
def test_many_texts_at_once_have_the_ids_of_each_alone(kind: str, texts: list[str]) -> None:
    tokenizer = learned(kind)
    encoder = Encoder(tokenizer)
    for _ in range(2):  # words that are met for the first time, and known ones
        assert split(encoder, texts) == [tokenizer.encode(text) for text in texts]
    encoded = encoder(texts)
    assert encoded.text_bytes.tolist() == [len(text.encode()) for text in texts]
    assert encoded.words.tolist() == [len(text.encode().split()) for text in texts]
    assert encoded.comes_back.tolist() == [tokenizer.decode(tokenizer.encode(text)) == text for text in texts]
    if kind in LOSSLESS:
        assert encoded.comes_back.all()


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
def test_long_real_texts_have_sentencepieces_own_ids(kind: str) -> None:
    tokenizer = learned(kind)
    texts = [path.read_text(encoding="utf-8").replace("<|", "") for path in MODULES[-40:]]
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.vocabulary.content)
    assert split(Encoder(tokenizer), texts) == processor.encode(texts)


def test_forgotten_words_are_learned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "KNOWN_WORDS", 50)
    tokenizer = learned("bpe")
    encoder = Encoder(tokenizer)
    for text in TEXTS[:3]:
        assert split(encoder, [text]) == [tokenizer.encode(text)]


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
def test_no_piece_lies_across_a_cut(kind: str) -> None:
    vocabulary = learned(kind).vocabulary
    cuts = vocabulary.cuts()
    assert cuts is not None
    assert cuts[ord("a"), ord(" ")]
    for id in range(vocabulary.vocab_size):
        spelling = vocabulary.spelled(id) or b""
        assert not any(cuts[a, b] for a, b in itertools.pairwise(spelling))


def test_a_unigram_with_any_scores_is_not_cut() -> None:
    """Its sums in float32 depend on what stands before a word."""
    tokenizer = learned("unigram")
    proto = tokenizer.vocabulary.proto()  # type: ignore[attr-defined]
    for piece in proto.pieces:
        piece.score *= 1.0001
    assert Tokenizer.read(proto.SerializeToString()).vocabulary.cuts() is None
