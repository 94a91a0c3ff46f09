"""Rules for any text, and the mildest ones for prose: length, wrong decoding, data that is no language."""

from __future__ import annotations

import re

from ftfy.badness import badness

from llm.data.config import CleanConfig
from llm.data.quality.rule import above, below, outside
from llm.data.quality.text import Text, later_share

RUN_CHARACTERS = 64  # no word of a language is as long

_encoded = re.compile(rf"[A-Za-z0-9+/=]{{{RUN_CHARACTERS},}}")


def too_short(text: Text, config: CleanConfig) -> float | None:
    """Fewer than `min_characters`. Source: C4 drops short pages, https://arxiv.org/abs/1910.10683, section 2.2."""
    return below(len(text), config.min_characters)


def too_long(text: Text, config: CleanConfig) -> float | None:
    """More than `max_characters`: dumps and tables. Source: Gopher bounds them too, https://arxiv.org/abs/2112.11446, A.1.1."""
    return above(len(text), config.max_characters)


def replacement_characters(text: Text, config: CleanConfig) -> float | None:
    """U+FFFD shows that bytes were lost in a wrong decoding. Source: Unicode 15, section 5.22."""
    return above(text.text.count("\ufffd") / len(text), config.max_replacement_share)


def mojibake(text: Text, config: CleanConfig) -> float | None:
    """Sequences such as â€œ that ftfy recognised and could not repair. Source: ftfy's badness, https://ftfy.readthedocs.io."""
    found = sum(badness(line) for line in text.lines if not line.isascii())
    return above(found / len(text), config.max_mojibake_share)


def encoded_data(text: Text, config: CleanConfig) -> float | None:
    """Mostly base64 or hexadecimal. Source: the encoded-data filter of StarCoder 2, https://arxiv.org/abs/2402.19173."""
    if max(text.word_lengths, default=0) < RUN_CHARACTERS:
        return None
    runs = sum(len(run) for word in text.words if len(word) >= RUN_CHARACTERS for run in _encoded.findall(word))
    return above(runs / len(text), config.max_encoded_share)


def few_letters(text: Text, config: CleanConfig) -> float | None:
    """Too many words without a letter. Source: Gopher, https://arxiv.org/abs/2112.11446, A.1.1 (there 80 %)."""
    return below(text.letter_words_share, config.min_letter_words_share)


def odd_word_length(text: Text, config: CleanConfig) -> float | None:
    """Mean word too short or too long for language. Source: Gopher, A.1.1 (there 3 to 10).

    Says nothing about scripts that are written without spaces.
    """
    return outside(text.mean_word_characters, config.min_mean_word_characters, config.max_mean_word_characters) if text.spaced else None


def duplicate_lines(text: Text, config: CleanConfig) -> float | None:
    """Lines that repeat an earlier one. Source: Gopher, table A1, duplicate line fraction 0.30."""
    return above(later_share(text.lines)[0], config.max_duplicate_lines_share)


def top_pair(text: Text, config: CleanConfig) -> float | None:
    """Characters taken by the most frequent pair of words. Source: Gopher, table A1, top 2-gram 0.20."""
    limit = config.max_top_pair_share
    return above(text.top_share(2), limit) if text.top_bound(2) > limit else None
