"""tokenizer.json, as transformers reads it, against the tokenizer that it was written from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from llm.data.tokenizer import Tokenizer
from llm.data.vocabulary import converted
from tests.data.conftest import MODULES
from tests.data.vocabulary.conftest import KINDS, LOSSLESS, NASTY, SPECIAL

SPELLED_ALIKE = [text for text in NASTY if "\u2581" not in text and not any(special in text for special in SPECIAL)]


@pytest.fixture(params=KINDS)
def both(request: pytest.FixtureRequest, of_kind: Callable[[str], Tokenizer], tmp_path: Path) -> tuple[Tokenizer, Any]:
    ours = of_kind(request.param)
    converted.write(ours, tmp_path)
    return ours, transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))


def test_transformers_splits_every_text_alike(both: tuple[Tokenizer, Any]) -> None:
    ours, theirs = both
    for text in [*SPELLED_ALIKE, *(path.read_text(encoding="utf-8") for path in MODULES[-6:])]:
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ids == ours.encode(text), text[:100]
        if ours.vocabulary.lossless:
            assert theirs.decode(ids) == text


def test_special_tokens_have_the_same_ids(both: tuple[Tokenizer, Any]) -> None:
    ours, theirs = both
    assert theirs("a").input_ids[0] == ours.bos
    assert len(theirs) == ours.vocab_size
    for symbol, id in (("<|user|>", ours.user), ("<|assistant|>", ours.assistant), ("<|end|>", ours.end), ("</s>", ours.eos)):
        assert theirs.convert_tokens_to_ids(symbol) == id
        assert theirs(symbol, add_special_tokens=False).input_ids == [id]
        assert id not in ours.encode(f"a{symbol} {symbol}"), "what someone types is no special token"


def test_kinds_say_whether_texts_come_back(of_kind: Callable[[str], Tokenizer]) -> None:
    assert [kind for kind in KINDS if of_kind(kind).vocabulary.lossless] == list(LOSSLESS)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_spelled_as_they_are_decoded(kind: str, of_kind: Callable[[str], Tokenizer]) -> None:
    tokenizer = of_kind(kind)
    for text in NASTY[2:8]:
        ids = tokenizer.encode(text)
        spelled = b"".join(tokenizer.vocabulary.spelled(id) or b"" for id in ids).decode()
        if tokenizer.vocabulary.lossless:
            assert spelled == tokenizer.decode(ids) == text
