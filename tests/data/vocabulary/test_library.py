"""Vocabularies that the tokenizers library learns."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from llm.data.config import TokenizeConfig, TokenizerConfig
from llm.data.tokenizer import BOS, EOS, UNKNOWN, Tokenizer, train
from llm.data.vocabulary.library import BYTE_OF
from tests.data.vocabulary.conftest import KINDS, TEXTS, config, learned

LEARN = """
import hashlib, sys
from tests.data.vocabulary.conftest import TEXTS, config, train
print(hashlib.sha256(train(TEXTS[:6], config(sys.argv[1]))).hexdigest())
"""


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe"])
def test_another_process_learns_the_same_bytes(kind: str) -> None:
    """Hash tables of another order must not show."""
    root = Path(__file__).parents[3]
    answer = subprocess.run([sys.executable, "-c", LEARN, kind], cwd=root, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == hashlib.sha256(train(TEXTS[:6], config(kind))).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_give_the_same_bytes(kind: str) -> None:
    assert train(iter(TEXTS[:6]), config(kind)) == learned(kind).vocabulary.content


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_where_everyone_expects_them(kind: str) -> None:
    tokenizer = learned(kind)
    assert (tokenizer.unknown, tokenizer.bos, tokenizer.eos) == (UNKNOWN, BOS, EOS)
    assert tokenizer.vocab_size <= 600
    if kind != "word":
        assert (tokenizer.user, tokenizer.assistant, tokenizer.end) == (3, 4, 5)


def test_every_byte_has_a_character_of_its_own() -> None:
    """Source of the layout: bytes_to_unicode of GPT-2, https://github.com/openai/gpt-2/blob/master/src/encoder.py."""
    assert sorted(BYTE_OF.values()) == list(range(256))
    assert (BYTE_OF["Ġ"], BYTE_OF["Ċ"], BYTE_OF["A"], BYTE_OF["Ń"]) == (ord(" "), ord("\n"), ord("A"), 0xAD)


def test_a_foreign_word_is_unknown_to_words_and_pieces_of_words() -> None:
    for kind in ("word", "wordpiece"):
        tokenizer = learned(kind)
        assert tokenizer.encode("日本語日本語") == [UNKNOWN]
        assert tokenizer.vocabulary.stands_for_unknown(UNKNOWN)
    assert UNKNOWN not in learned("byte_bpe").encode("日本語日本語")


def test_pieces_are_no_longer_than_asked_for() -> None:
    given = TokenizeConfig(vocab_size=600, max_piece_characters=4, tokenizer=TokenizerConfig(kind="byte_bpe"))
    tokenizer = Tokenizer.read(train(TEXTS[:6], given))
    assert max(len(tokenizer.vocabulary.spelled(id) or b"") for id in range(tokenizer.vocab_size) if id > tokenizer.end) <= 4
