"""Quality rules: each looks at one text and answers with a verdict, a reason and a score.

Prose and code are judged apart, since what marks bad prose (symbols, repeated lines) is how code looks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from ftfy.badness import badness

from llm.data.config import CleanConfig
from llm.data.document import KEEP, Document, Verdict

Rule = Callable[[str, CleanConfig], Verdict]

_letter = re.compile(r"[^\W\d_]")
_encoded = re.compile(r"[A-Za-z0-9+/=]{64,}")
_unspaced = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # Thai, Lao, Burmese, Khmer, kana, Han


def judge(document: Document, config: CleanConfig) -> Verdict:
    """The first objection to the document, or KEEP."""
    rules = CODE_RULES if is_code(document) else PROSE_RULES
    verdicts = (rule(document.text, config) for rule in rules)
    return next((verdict for verdict in verdicts if not verdict.keep), KEEP)


def is_code(document: Document) -> bool:
    """Is this a program, rather than prose about one?"""
    return document.domain == "code" or document.language == "python"


def too_short(text: str, config: CleanConfig) -> Verdict:
    """Fewer than `min_characters`. Source: C4 drops short pages, https://arxiv.org/abs/1910.10683, section 2.2."""
    return _object("too_short", len(text), len(text) < config.min_characters)


def too_long(text: str, config: CleanConfig) -> Verdict:
    """More than `max_characters`: dumps and tables. Source: Gopher bounds them too, https://arxiv.org/abs/2112.11446, A.1.1."""
    return _object("too_long", len(text), len(text) > config.max_characters)


def replacement_characters(text: str, config: CleanConfig) -> Verdict:
    """U+FFFD shows that bytes were lost in a wrong decoding. Source: Unicode 15, section 5.22."""
    share = text.count("\ufffd") / len(text)
    return _object("replacement_characters", share, share > config.max_replacement_share)


def mojibake(text: str, config: CleanConfig) -> Verdict:
    """Sequences such as â€œ that ftfy recognised and could not repair. Source: ftfy's badness, https://ftfy.readthedocs.io."""
    share = badness(text) / len(text)
    return _object("mojibake", share, share > config.max_mojibake_share)


def encoded_data(text: str, config: CleanConfig) -> Verdict:
    """Mostly base64 or hexadecimal. Source: the encoded-data filter of StarCoder 2, https://arxiv.org/abs/2402.19173."""
    share = sum(len(run) for run in _encoded.findall(text)) / len(text)
    return _object("encoded_data", share, share > config.max_encoded_share)


def few_letters(text: str, config: CleanConfig) -> Verdict:
    """Too many words without a letter. Source: Gopher, https://arxiv.org/abs/2112.11446, A.1.1 (there 80 %)."""
    words = text.split()
    share = sum(1 for word in words if _letter.search(word)) / max(1, len(words))
    return _object("few_letters", share, share < config.min_letter_words_share)


def odd_word_length(text: str, config: CleanConfig) -> Verdict:
    """Mean word too short or too long for language. Source: Gopher, A.1.1 (there 3 to 10).

    Says nothing about scripts that are written without spaces.
    """
    words = text.split()
    mean = sum(map(len, words)) / max(1, len(words))
    spaced = len(_unspaced.findall(text)) < 0.1 * len(text)
    return _object("odd_word_length", mean, spaced and not config.min_mean_word_characters <= mean <= config.max_mean_word_characters)


def duplicate_lines(text: str, config: CleanConfig) -> Verdict:
    """Lines that repeat an earlier one. Source: Gopher, table A1, duplicate line fraction 0.30."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    share = 1 - len(set(lines)) / max(1, len(lines))
    return _object("duplicate_lines", share, share > config.max_duplicate_lines_share)


def top_pair(text: str, config: CleanConfig) -> Verdict:
    """Characters taken by the most frequent pair of words. Source: Gopher, table A1, top 2-gram 0.20."""
    pairs = Counter(pairwise(text.split()))
    (pair, count), *_ = pairs.most_common(1) or [(("", ""), 0)]
    share = count * (len(pair[0]) + len(pair[1])) / len(text)
    return _object("top_pair", share, count > 1 and share > config.max_top_pair_share)


def few_alphanumerics(text: str, config: CleanConfig) -> Verdict:
    """Tables of symbols. Source: Codex, https://arxiv.org/abs/2107.03374, section 3.1."""
    share = sum(map(str.isalnum, text)) / len(text)
    return _object("few_alphanumerics", share, share < config.min_alphanumeric_share)


def long_lines(text: str, config: CleanConfig) -> Verdict:
    """Minified or generated code. Source: Codex, section 3.1: mean line above 100 or longest above 1,000."""
    lengths = [len(line) for line in text.splitlines()] or [0]
    mean, longest = sum(lengths) / len(lengths), max(lengths)
    return _object("long_lines", longest, mean > config.max_mean_line_characters or longest > config.max_line_characters)


def _object(reason: str, score: float, objection: bool) -> Verdict:
    return Verdict(False, reason, round(score, 6)) if objection else KEEP


EVERY_TEXT: tuple[Rule, ...] = (too_short, too_long, replacement_characters, encoded_data)
PROSE_RULES: tuple[Rule, ...] = (*EVERY_TEXT, mojibake, few_letters, odd_word_length, duplicate_lines, top_pair)
CODE_RULES: tuple[Rule, ...] = (*EVERY_TEXT, few_alphanumerics, long_lines)
