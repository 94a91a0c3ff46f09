from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.data.config import TokenizeConfig
from llm.data.document import read_shards
from llm.data.tokenizer import ASSISTANT, BOS, END, EOS, SPACE_MARK, UNKNOWN, USER, Tokenizer, round_trip, train
from llm.errors import DataError, RecipeError

from .conftest import MODULES, TOKENIZE

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
SPELLINGS = st.lists(st.sampled_from([USER, ASSISTANT, END, SPACE_MARK, "<|", "|>", "<", " ", "\n    ", "a", "<s>", "<0x0A>"])).map("".join)


@pytest.fixture(scope="module")
def tokenizer(stages: dict[str, Path]) -> Tokenizer:
    return Tokenizer.load(stages["tokenize"])


def test_ids_are_where_everyone_expects_them(tokenizer: Tokenizer) -> None:
    assert (tokenizer.unknown, tokenizer.bos, tokenizer.eos) == (UNKNOWN, BOS, EOS)
    assert (tokenizer.user, tokenizer.assistant, tokenizer.end) == (3, 4, 5)
    assert tokenizer.vocab_size == 1000


@settings(deadline=None)
@given(ANY_TEXT | SPELLINGS)
@example(" \n\t  leading and trailing  ")
@example(f"{USER}{SPACE_MARK}{SPACE_MARK} <|{END}|>")
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {UNKNOWN, BOS, EOS, tokenizer.user, tokenizer.assistant, tokenizer.end} & set(ids)


def test_ordinary_text_is_encoded_as_sentencepiece_does(tokenizer: Tokenizer, stages: dict[str, Path]) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(stages["tokenize"] / "tokenizer.model"))
    for document in itertools.islice(read_shards(stages["dedup"], "test"), 5):
        assert tokenizer.document_ids(document.text) == [BOS, *processor.encode(document.text), EOS]


def test_indentation_is_cheap(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(" " * 8)) <= 2


def test_the_gate_names_the_document_and_the_place(tokenizer: Tokenizer) -> None:
    round_trip(tokenizer, "good", "a text", tokenizer.document_ids("a text"))
    with pytest.raises(DataError, match=r"document bad: at character 4, 'xt' became 'st'"):
        round_trip(tokenizer, "bad", "a text", tokenizer.document_ids("a test"))


def test_the_same_texts_give_the_same_bytes() -> None:
    texts = [path.read_text(encoding="utf-8") for path in MODULES[:10]]
    assert train(texts, TOKENIZE) == train(iter(texts), TOKENIZE)


def test_long_lines_are_learned_from_too(tmp_path: Path) -> None:
    """SentencePiece silently skips a training line above 4,192 bytes."""
    words = " ".join(f"{a}{b}{c}" for a in "zqx" for b in "aeiou" for c in "bdfg")
    (tmp_path / "tokenizer.model").write_bytes(train([(words + " ") * 100], TokenizeConfig(vocab_size=330)))
    assert len(Tokenizer.load(tmp_path).encode(words)) < 0.6 * len(words)


def test_a_vocabulary_that_does_not_fit_names_the_limit() -> None:
    texts = ["only a few words here, no more than that"] * 20
    with pytest.raises(
        RecipeError, match=r"larger than the text supports: tokenize\.vocab_size 20000; set tokenize\.vocab_size to \d+"
    ) as caught:
        train(texts, TokenizeConfig(vocab_size=20_000))
    limit = int(caught.value.remedy.split(" to ")[1].split()[0])
    train(texts, TokenizeConfig(vocab_size=limit))
    alphabet = "".join(map(chr, range(0x4E00, 0x4E00 + 400)))
    with pytest.raises(RecipeError, match=r"smaller than the alphabet.*set tokenize\.vocab_size above \d+"):
        train([alphabet] * 3, TokenizeConfig(vocab_size=310))
