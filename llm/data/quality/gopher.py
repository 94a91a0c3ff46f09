"""The quality and repetition rules of MassiveText.

Source: Rae et al. 2021, "Scaling language models: methods, analysis & insights from training Gopher",
https://arxiv.org/abs/2112.11446, appendix A.1.1 and table A1.

Where the paper leaves a choice: words are what stands between blanks; of lines, paragraphs and runs of words that are
equal, all but the first are duplicates; characters of runs are counted without blanks, as are those of the whole text.
"""

from __future__ import annotations

import re

from llm.data.config import CleanConfig
from llm.data.quality.rule import above, below, outside
from llm.data.quality.text import Text, later_share

BULLETS = ("•", "‣", "◦", "-", "*")
ELLIPSES = ("...", "…")
STOP_WORDS = re.compile(r"(?<!\w)(?:the|be|to|of|and|that|have|with)(?!\w)", re.IGNORECASE)


def words(text: Text, config: CleanConfig) -> float | None:
    """Not between 50 and 100,000 words."""
    return outside(len(text.words), config.gopher.min_words, config.gopher.max_words) if text.spaced else None


def word_length(text: Text, config: CleanConfig) -> float | None:
    """A mean word not between 3 and 10 characters."""
    limits = config.gopher.min_mean_word_characters, config.gopher.max_mean_word_characters
    return outside(text.mean_word_characters, *limits) if text.spaced else None


def hashes(text: Text, config: CleanConfig) -> float | None:
    """More than 0.1 hash symbols per word."""
    return _per_word(text, text.text.count("#"), config.gopher.max_symbols_per_word)


def ellipses(text: Text, config: CleanConfig) -> float | None:
    """More than 0.1 ellipses per word."""
    return _per_word(text, sum(map(text.text.count, ELLIPSES)), config.gopher.max_symbols_per_word)


def bullet_lines(text: Text, config: CleanConfig) -> float | None:
    """More than 90 % of the lines start with a bullet point."""
    return above(sum(line.startswith(BULLETS) for line in text.lines) / len(text.lines), config.gopher.max_bullet_lines_share)


def ellipsis_lines(text: Text, config: CleanConfig) -> float | None:
    """More than 30 % of the lines end with an ellipsis."""
    return above(sum(line.endswith(ELLIPSES) for line in text.lines) / len(text.lines), config.gopher.max_ellipsis_lines_share)


def few_letters(text: Text, config: CleanConfig) -> float | None:
    """Fewer than 80 % of the words hold a letter."""
    return below(text.letter_words_share, config.gopher.min_letter_words_share)


def few_stop_words(text: Text, config: CleanConfig) -> float | None:
    """Fewer than two of eight English stop words. Says nothing about a text that is known to be in another language."""
    if text.language not in ("", "en") or not text.spaced:
        return None
    found: set[str] = set()
    for match in STOP_WORDS.finditer(text.text):
        found.add(match.group().lower())
        if len(found) >= config.gopher.min_stop_words:
            return None
    return below(len(found), config.gopher.min_stop_words)


def duplicate_lines(text: Text, config: CleanConfig) -> float | None:
    """Lines that repeat an earlier one, among all lines; table A1: 0.30."""
    return above(later_share(text.lines)[0], config.gopher.max_duplicate_lines_share)


def duplicate_line_characters(text: Text, config: CleanConfig) -> float | None:
    """Characters in lines that repeat an earlier one; table A1: 0.20."""
    return above(later_share(text.lines)[1], config.gopher.max_duplicate_line_characters_share)


def duplicate_paragraphs(text: Text, config: CleanConfig) -> float | None:
    """Paragraphs that repeat an earlier one, among all paragraphs; table A1: 0.30."""
    return above(later_share(text.paragraphs)[0], config.gopher.max_duplicate_paragraphs_share)


def duplicate_paragraph_characters(text: Text, config: CleanConfig) -> float | None:
    """Characters in paragraphs that repeat an earlier one; table A1: 0.20."""
    return above(later_share(text.paragraphs)[1], config.gopher.max_duplicate_paragraph_characters_share)


def top_grams(text: Text, config: CleanConfig) -> float | None:
    """Characters in the most frequent 2, 3 or 4 words in a row; table A1: 0.20, 0.18, 0.16."""
    if not text.spaced:
        return None
    limits = enumerate(config.gopher.max_top_grams_shares, start=2)
    return next((share for n, limit in limits if text.top_bound(n) > limit and (share := text.top_share(n)) > limit), None)


def duplicate_grams(text: Text, config: CleanConfig) -> float | None:
    """Characters in 5 to 10 words in a row that stood there before; table A1: 0.15, 0.14 … 0.10."""
    limits = config.gopher.max_duplicate_grams_shares
    if not text.spaced or text.repeated_share(5) <= min(limits):  # longer runs cover no more than that
        return None
    return next((share for n, limit in enumerate(limits, start=5) if (share := text.repeated_share(n)) > limit), None)


def _per_word(text: Text, symbols: int, limit: float) -> float | None:
    return above(symbols / len(text.words), limit) if text.spaced else None
