"""tokenizer.json against SentencePiece itself, as transformers and the tokenizers library read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data import template
from llm.data.tokenizer import Tokenizer
from llm.errors import ArtifactError
from llm.export.tokenizer import write_tokenizer
from llm.model.config import DecoderConfig

CONFIG = DecoderConfig(width=8, num_layers=1, num_heads=1, num_kv_heads=1, ffn_width=8, max_positions=8)

TEXTS = [
    "",
    " ",
    "plain words",
    " leading and trailing  ",
    "tab\tnew\nline\r\n\n\nend",
    "def f(x):\n        return  x[0]   # note\n",
    "naïve café – “quotes” ½ ﬁ Å Ａ",
    "日本語の文 한국어 русский",
    "🙂 👩‍👩‍👧 e\u0301 \u200b \ufeff \x00 \x7f",
    "x<|end|>y <|user|>",
    *(" " * n + "x" + "\n" * n for n in range(1, 40)),
]


@pytest.fixture(scope="module")
def theirs(exported: Any) -> Any:
    return transformers.AutoTokenizer.from_pretrained(exported.folder / "huggingface")


@pytest.fixture(scope="module")
def pieces(exported: Any) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(exported.folder / "huggingface" / "tokenizer.model"))


@pytest.mark.parametrize("text", TEXTS)
def test_transformers_splits_as_sentencepiece_does(theirs: Any, pieces: Any, text: str) -> None:
    ids = pieces.encode(text)
    assert theirs(text, add_special_tokens=False).input_ids == ids
    assert theirs.decode(ids) == pieces.decode(ids)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from(" \n\tabcdefself._()=:#019é日🙂"), max_size=60))
def test_any_mixture_of_runs_and_words_agrees(theirs: Any, pieces: Any, text: str) -> None:
    assert theirs(text, add_special_tokens=False).input_ids == pieces.encode(text)


def test_special_tokens_keep_their_ids(theirs: Any) -> None:
    assert (theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2, 2)
    assert len(theirs) == 700
    assert theirs("a").input_ids[0] == 1, "text begins with the token that documents begin with"
    assert theirs.padding_side == "left"


def test_the_chat_template_gives_the_ids_of_training(exported: Any, theirs: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " what\n is it?"},
        {"role": "assistant", "content": "A list. "},
        {"role": "user", "content": "more"},
    ]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == template.prompt_ids(exported.tokenizer, template.turns(messages))
    without_system = theirs.apply_chat_template(messages[1:3], return_dict=False)
    assert without_system == template.encode(exported.tokenizer, template.turns(messages[1:3]))[0]


def a_model(path: Path, **given: Any) -> Path:
    """A SentencePiece model with other settings than ours."""
    right = {"model_type": "bpe", "normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some text with words, some words with text"] * 20),
        model_prefix=str(path / "tokenizer"),
        vocab_size=300,
        byte_fallback=True,
        pad_id=-1,
        user_defined_symbols=["<|user|>", "<|assistant|>", "<|end|>"],
        minloglevel=2,
        hard_vocab_limit=False,
        **(right | given),
    )
    (path / "out").mkdir()
    return path / "tokenizer.model"


@pytest.mark.parametrize("other", [{"add_dummy_prefix": True}, {"model_type": "unigram"}, {"model_type": "char"}])
def test_other_kinds_travel_too(tmp_path: Path, other: dict[str, Any]) -> None:
    file = a_model(tmp_path, **other)
    write_tokenizer(file, tmp_path / "out", CONFIG, 300)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
    for text in TEXTS[1:9]:
        ids = pieces.encode(text)
        assert theirs(text, add_special_tokens=False).input_ids == ids
        assert theirs.decode(ids) == pieces.decode(ids) == text


def test_a_tokenizer_that_cannot_be_said_is_refused(tmp_path: Path) -> None:
    file = a_model(tmp_path, normalization_rule_name="nmt_nfkc")
    with pytest.raises(ArtifactError, match=r"tokenizer can't be exported.*identity normalisation"):
        write_tokenizer(file, tmp_path / "out", CONFIG, 300)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer can't be read.*run tokenize again"):
        write_tokenizer(tmp_path / "tokenizer.model", tmp_path, CONFIG, 300)


def test_the_tokenizer_travels_unchanged(exported: Any) -> None:
    original = (exported.tokenized / "tokenizer.model").read_bytes()
    for folder in ("huggingface", "onnx"):
        assert (exported.folder / folder / "tokenizer.model").read_bytes() == original
        assert isinstance(Tokenizer.load(exported.folder / folder), Tokenizer)
