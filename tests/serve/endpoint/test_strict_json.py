"""Strict JSON reads what the json package writes, and nothing that parsers disagree on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.serve.endpoint.strict_json import MAX_DEPTH, loads

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=30)


@given(VALUES, st.booleans())
def test_what_json_writes_is_read_back(value: Any, ascii: bool) -> None:
    assert loads(json.dumps(value, ensure_ascii=ascii).encode()) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_an_error_that_repeats_nothing(data: bytes) -> None:
    message = ""
    try:
        loads(data)
    except ValueError as error:
        message = str(error)
    assert len(message) < 100


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"a": 1, "a": 1}', "twice"),
        (b'[{"a": {"b": 1, "b": 2}}]', "twice"),
        (b"NaN", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"1e400", "64-bit"),
        (b"9223372036854775808", "64 bits"),
        (b"1" * 100_000, "64 bits"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b"\xff", "UTF-8"),
        (b"\xef\xbb\xbf1", "not JSON"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "deeper"),
        (b"[" * 200_000, "deeper"),
        (b"{'a': 1}", "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_what_parsers_disagree_on_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loads(body)


def test_the_deepest_that_is_allowed() -> None:
    assert loads(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert loads(b'"\\ud83d\\ude42"') == "🙂"
