"""The rules of the Colossal Clean Crawled Corpus: on pages, on lines, and on what is left of a page.

Source: Raffel et al. 2020, "Exploring the limits of transfer learning with a unified text-to-text transformer",
https://arxiv.org/abs/1910.10683, section 2.2.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import islice

from llm.data.config import CleanConfig
from llm.data.document import KEEP, Document, Verdict
from llm.data.quality.code import is_code
from llm.data.quality.config import C4Config
from llm.data.quality.rule import above, below
from llm.data.quality.text import TERMINAL, Text
from llm.data.steps import Edited

POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")

_citations = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_sentence_ends = re.compile(r"(?<![.?!…])[.?!…]++[\"'”’»)\]]*+(?=\s|$)|[。！？．؟۔।॥։።]+")
_spare_lines = re.compile(r"\n{3,}")


def lorem_ipsum(text: Text, config: CleanConfig) -> float | None:
    """Filler text on the page."""
    return above(text.text.lower().count("lorem ipsum"), 0)


def curly_bracket(text: Text, config: CleanConfig) -> float | None:
    """A curly bracket on the page: there is more code than prose."""
    return above(text.text.count("{"), 0)


def few_sentences(text: Text, config: CleanConfig) -> float | None:
    """Fewer than three sentences."""
    least = config.c4.min_sentences
    return below(sum(1 for _ in islice(_sentence_ends.finditer(text.text), least)), least)


def whole_lines(document: Document, config: CleanConfig) -> Edited | Verdict:
    """The document without citation marks, and without lines that are no sentences or speak of the page itself."""
    if is_code(document) or "c4" not in config.rules:
        return KEEP
    cut = _citations.sub("", document.text) if config.c4.citations else document.text
    lines, edits = list[str](), Counter[str]()
    for line in cut.split("\n"):
        if reason := line and not line.isspace() and _objection(line.strip(), config.c4):
            edits[f"c4_{reason}_lines"] += 1
        else:
            lines.append(line)
    if not edits and cut == document.text:
        return KEEP
    edits["c4_citations_characters"] += len(document.text) - len(cut)
    text = _spare_lines.sub("\n\n", "\n".join(lines)).strip("\n")
    return Edited(replace(document, text=text + "\n"), edits) if text.strip() else NOTHING_LEFT


def _objection(line: str, config: C4Config) -> str:
    """Why C4 leaves a line out: no mark ends it, it has too few words, a word is no word, it is about JavaScript or policies."""
    if config.terminal_punctuation and (not line.endswith(TERMINAL) or line.endswith(("...", "…"))):
        return "unended"
    if len(words := line.split()) < config.min_line_words and not any(line.endswith(mark) for mark in "。！？"):
        return "short"
    if len(line) > config.max_word_characters and max(map(len, words)) > config.max_word_characters and Text(line).spaced:
        return "long_word"
    lower = line.lower()
    if config.javascript and "javascript" in lower:
        return "javascript"
    return "policy" if config.policies and any(policy in lower for policy in POLICIES) else ""


NOTHING_LEFT = Verdict(False, "c4_nothing_left")
