"""Log-probabilities as they are answered: places in the text, and numbers that JSON has."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest

from llm.serve.endpoint.reply import LEAST_LOGPROB, Offsets, chat_logprobs, completion_logprobs, event
from llm.serve.engine.engine import Engine
from llm.serve.engine.generation import Scored


def spelled(engine: Engine, text: str) -> list[int]:
    """Tokens of single bytes."""
    return [engine.pieces.index(bytes([byte])) for byte in text.encode()]


def test_tokens_of_one_character_begin_where_it_does(engine: Engine) -> None:
    ids = [engine.tokenizer.bos, *spelled(engine, "aé🙂b")]
    offsets = completion_logprobs(engine, [Scored(id) for id in ids], Offsets(engine))["text_offset"]
    assert offsets == [0, 0, 1, 1, 2, 2, 2, 2, 3]
    assert engine.text(ids) == "aé🙂b"


def test_offsets_are_lengths_of_the_text_before(engine: Engine) -> None:
    ids = engine.tokenizer.encode("def f():\n    return 'é🙂 naïve ∑'")
    offsets = Offsets(engine).of([Scored(id) for id in ids])
    text = engine.text(ids)
    assert offsets == [len(engine.text(ids[:place]).rstrip("\ufffd")) for place in range(len(ids))]
    assert all(text[start:end] in engine.text([id]) for id, (start, end) in zip(ids, pairwise(offsets), strict=False) if start < end - 1)


def test_offsets_go_on_over_the_parts_of_a_stream(engine: Engine) -> None:
    tokens = [Scored(id) for id in spelled(engine, "é🙂é")]
    whole, parts = Offsets(engine).of(tokens), Offsets(engine)
    assert [place for token in tokens for place in parts.of([token])] == whole


def test_half_a_character_at_the_end_of_a_prompt_is_one(engine: Engine) -> None:
    first, second = (Scored(id) for id in spelled(engine, "é"))
    offsets = Offsets(engine)
    assert offsets.of([first]) == [0]
    offsets.end()
    assert offsets.of([second, second]) == [1, 2]


@pytest.mark.parametrize(("logprob", "shown"), [(math.nan, None), (-math.inf, LEAST_LOGPROB), (math.inf, 0.0), (None, None), (-1.5, -1.5)])
def test_what_json_has_no_number_for_is_not_written(engine: Engine, logprob: float | None, shown: float | None) -> None:
    token = Scored(7, logprob, {} if logprob is None else {7: logprob, 8: -2.0})
    completion: Any = completion_logprobs(engine, [token], Offsets(engine))
    assert completion["token_logprobs"] == [shown]
    top = {} if shown is None else {engine.token_name(7): shown}
    assert completion["top_logprobs"] == [(top | {engine.token_name(8): -2.0}) if logprob is not None else None]
    chat = chat_logprobs(engine, [token])["content"][0]
    assert chat["logprob"] == shown
    json.dumps([completion, chat], allow_nan=False)


def test_an_event_never_carries_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        event({"score": math.nan})
