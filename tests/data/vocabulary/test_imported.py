"""Vocabularies of others: their ids stay, chat tokens come behind them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer as Theirs
from tokenizers import decoders, models, pre_tokenizers, trainers

from llm.data.config import TokenizeConfig, TokenizerConfig
from llm.data.tokenizer import ASSISTANT, END, USER, Tokenizer, train
from llm.data.vocabulary import converted
from llm.errors import RecipeError, SourceError
from tests.data.vocabulary.conftest import NASTY, TEXTS, learned

PLAIN = [text for text in NASTY if "<" not in text and "\u2581" not in text]


def recipe(path: Path, **given: Any) -> TokenizeConfig:
    return TokenizeConfig(tokenizer=TokenizerConfig(kind="imported", path=str(path), **given))


def like_llama_2(**given: Any) -> bytes:
    """A SentencePiece model with a dummy prefix and without chat tokens."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in TEXTS[:4] for line in text.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **given,
    )
    return model.getvalue()


def like_gpt_2() -> Theirs:
    tokenizer = Theirs(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS[:4], trainers.BpeTrainer(vocab_size=500, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


@pytest.mark.parametrize("prefix", [True, False])
def test_ids_of_a_sentencepiece_model_stay(tmp_path: Path, prefix: bool) -> None:
    (tmp_path / "tokenizer.model").write_bytes(like_llama_2(add_dummy_prefix=prefix))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = Tokenizer.read(train([], recipe(tmp_path)))
    assert (ours.vocab_size, ours.user, ours.assistant, ours.end) == (503, 500, 501, 502)
    assert (ours.bos, ours.eos) == (theirs.bos_id(), theirs.eos_id())
    for text in PLAIN:
        assert ours.encode(text) == theirs.encode(text)
    for text in NASTY:
        assert ours.decode(ours.encode(text)) == text
        assert not {ours.user, ours.assistant, ours.end} & set(ours.encode(text))
    converted.write(ours, tmp_path)


def test_ids_of_a_json_stay(tmp_path: Path) -> None:
    theirs = like_gpt_2()
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.read(train([], recipe(tmp_path / "tokenizer.json")))
    assert (ours.bos, ours.eos) == (0, 0), "one token stands between documents"
    assert [ours.vocabulary.id(symbol) for symbol in (USER, ASSISTANT, END)] == [theirs.get_vocab_size() + n for n in range(3)]
    for text in PLAIN:
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text


def test_a_vocabulary_that_may_not_grow_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(like_llama_2())
    with pytest.raises(RecipeError, match=r"no chat tokens.*<\|user\|>.*tokenize\.tokenizer\.may_grow"):
        train([], recipe(tmp_path, may_grow=False))


def test_one_of_ours_is_taken_over_byte_by_byte(tmp_path: Path) -> None:
    for kind in ("unigram", "byte_bpe"):
        file = learned(kind).save(tmp_path)
        assert train([], recipe(file, may_grow=False)) == file.read_bytes()


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such tokenizer.*tokenize\.tokenizer\.path"):
        train([], recipe(tmp_path / "nowhere"))
    for content in (b"", b"no model", b"{", b"{}"):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(SourceError, match="tokenizer can't be read"):
            train([], recipe(tmp_path))


def test_a_path_belongs_to_imported() -> None:
    with pytest.raises(ValueError, match="kind to imported, and its path"):
        TokenizerConfig(path="tokenizer.model")
    with pytest.raises(ValueError, match="kind to imported, and its path"):
        TokenizerConfig(kind="imported")
