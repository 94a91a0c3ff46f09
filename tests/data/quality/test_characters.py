"""The mildest rules, and those for programs, at each threshold and beyond it."""

from __future__ import annotations

import pytest

from llm.data.config import CleanConfig
from llm.data.quality.judge import EVERY
from llm.data.quality.text import Text

RUN = "QUJD" * 16  # 64 characters


@pytest.mark.parametrize(
    ("rule", "text", "score"),
    [
        ("too_short", "x" * 200, None),
        ("too_short", "x" * 199 + " " * 9, 199),
        ("too_long", "x" * 1_000_000, None),
        ("too_long", "x" * 1_000_001, 1_000_001),
        ("replacement_characters", "\ufffd" + "x" * 999, None),
        ("replacement_characters", "\ufffd" + "x" * 998, 1 / 999),
        ("encoded_data", f"{RUN} {'x y ' * 15}end", None),  # 64 of 128
        ("encoded_data", f"{RUN} {'x y ' * 15}en", 64 / 127),
        ("encoded_data", f"{RUN[1:]} x", None),  # a run of 63 is no data
        ("mojibake", "Ã© " + "x" * 97, None),
        ("mojibake", "Ã© " + "x" * 47, 0.02),
        ("mojibake", "Ã¢â‚¬ÅžÃ©Ã¯Â¿Â½", True),
        ("few_letters", "a1 " * 7 + "1 2 3", None),
        ("few_letters", "a1 " * 6 + "1 2 3 4", 0.6),
        ("odd_word_length", "a abc", None),
        ("odd_word_length", "a ab", 1.5),
        ("odd_word_length", "x" * 12, None),
        ("odd_word_length", "x" * 13, 13),
        ("duplicate_lines", "same\n" * 4 + "a\nb\nc\nd\ne\nf", None),
        ("duplicate_lines", "same\n" * 5 + "a\nb\nc\nd\ne", 0.4),
        ("top_pair", "a b a b " + " ".join("cdefghijklmnopqr"), None),  # 4 of 20
        ("top_pair", "a b a b " + " ".join("cdefghijklmnopq"), 4 / 19),
        ("few_alphanumerics", "ab" + "-" * 6, None),
        ("few_alphanumerics", "ab" + "-" * 7, 2 / 9),
        ("few_alphanumerics", "é中" + "_" * 7, 2 / 9),
        ("long_lines", "x" * 100 + "\n" + "y" * 100, None),
        ("long_lines", "x" * 101 + "\n" + "y" * 100, 101),
        ("long_lines", "x" * 1_000 + "\nx" * 20, None),
        ("long_lines", "x" * 1_001 + "\nx" * 20, 1_001),
    ],
)
def test_at_the_threshold_and_beyond(rule: str, text: str, score: float | bool | None) -> None:
    found = EVERY[rule](Text(text), CleanConfig())
    assert (found is not None) if score is True else found == (score if score is None else pytest.approx(score))
