"""The rules that FineWeb adds to those of C4 and Gopher.

Source: Penedo et al. 2024, "The FineWeb datasets", https://arxiv.org/abs/2406.17557, section 3.6. The thresholds
themselves are objected to.
"""

from __future__ import annotations

from llm.data.config import CleanConfig
from llm.data.quality.text import TERMINAL, Text, later_share


def few_ended_lines(text: Text, config: CleanConfig) -> float | None:
    """At most 12 % of the lines end with punctuation."""
    share = sum(line.endswith(TERMINAL) for line in text.lines) / len(text.lines)
    return share if share <= config.fineweb.min_ended_lines_share else None


def duplicate_line_characters(text: Text, config: CleanConfig) -> float | None:
    """At least 10 % of the characters are in lines that repeat an earlier one."""
    share = later_share(text.lines)[1]
    return share if share >= config.fineweb.max_duplicate_line_characters_share else None


def short_lines(text: Text, config: CleanConfig) -> float | None:
    """At least 67 % of the lines are shorter than 30 characters."""
    short = sum(len(line) < config.fineweb.short_line_characters for line in text.lines)
    share = short / len(text.lines)
    return share if share >= config.fineweb.max_short_lines_share else None
