"""Rules for programs."""

from __future__ import annotations

import re
import string

from llm.data.config import CleanConfig
from llm.data.document import Document
from llm.data.quality.rule import below
from llm.data.quality.text import Text

ASCII = (string.ascii_letters + string.digits).encode()

_alphanumerics = re.compile(r"[^\W_]+")


def is_code(document: Document) -> bool:
    """Is this a program, rather than prose about one?"""
    return document.domain == "code" or document.language == "python" or document.meta.get("format") == "code"


def few_alphanumerics(text: Text, config: CleanConfig) -> float | None:
    """Tables of symbols. Source: Codex, https://arxiv.org/abs/2107.03374, section 3.1."""
    return below(_alphanumeric_characters(text.text) / len(text), config.min_alphanumeric_share)


def long_lines(text: Text, config: CleanConfig) -> float | None:
    """Minified or generated code. Source: Codex, section 3.1: mean line above 100 or longest above 1,000."""
    lengths = list(map(len, text.text.split("\n")))
    mean, longest = sum(lengths) / len(lengths), max(lengths)
    return longest if mean > config.max_mean_line_characters or longest > config.max_line_characters else None


def _alphanumeric_characters(text: str) -> int:
    if text.isascii():
        return len(text) - len(text.encode().translate(None, ASCII))
    return sum(map(len, _alphanumerics.findall(text)))
