"""Section 3.6 of https://arxiv.org/abs/2406.17557; the thresholds themselves are objected to."""

from __future__ import annotations

import pytest

from llm.data.config import CleanConfig
from llm.data.quality.judge import FINEWEB
from llm.data.quality.text import Text

ENDS = ("This line has an end.", "Has this one?", "“So it has.”", "它有。")


def numbered(count: int, line: str) -> list[str]:
    return [f"{line} {chr(0x100 + number)}" for number in range(count)]


@pytest.mark.parametrize(
    ("rule", "lines", "score"),
    [
        ("fineweb_few_ended_lines", [*numbered(88, "open"), *("Ended." for _ in range(12))], 0.12),
        ("fineweb_few_ended_lines", [*numbered(87, "open"), *("Ended." for _ in range(13))], None),
        ("fineweb_few_ended_lines", ["", *numbered(22, "open"), "", *ENDS], None),  # 4 of 26 are more than 0.12
        ("fineweb_few_ended_lines", ["open"], 0.0),
        ("fineweb_duplicate_line_characters", ["abc", "abc", "x" * 24], 0.1),
        ("fineweb_duplicate_line_characters", ["abc", "abc", "x" * 25], None),
        ("fineweb_short_lines", [*("x" * 29 for _ in range(67)), *("x" * 30 for _ in range(33))], 0.67),
        ("fineweb_short_lines", [*("x" * 29 for _ in range(66)), *("x" * 30 for _ in range(34))], None),
    ],
)
def test_at_the_threshold_and_beyond(rule: str, lines: list[str], score: float | None) -> None:
    found = FINEWEB[rule](Text("\n".join(lines)), CleanConfig())
    assert found == (score if score is None else pytest.approx(score))
