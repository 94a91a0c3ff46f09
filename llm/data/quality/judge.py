"""Every quality rule by name, in the order in which they are asked; a text is dropped at the first objection.

Prose and code are judged apart, since what marks bad prose (symbols, repeated lines) is how code looks.
"""

from __future__ import annotations

from collections.abc import Mapping

from llm.data.config import CleanConfig
from llm.data.document import KEEP, Document, Verdict
from llm.data.quality import c4, characters, code, fineweb, gopher
from llm.data.quality.code import is_code
from llm.data.quality.rule import Rule
from llm.data.quality.text import Text

ANY_TEXT: dict[str, Rule] = {
    "too_short": characters.too_short,
    "too_long": characters.too_long,
    "replacement_characters": characters.replacement_characters,
    "encoded_data": characters.encoded_data,
}
CODE: dict[str, Rule] = {
    "few_alphanumerics": code.few_alphanumerics,
    "long_lines": code.long_lines,
}
BASIC: dict[str, Rule] = {
    "mojibake": characters.mojibake,
    "few_letters": characters.few_letters,
    "odd_word_length": characters.odd_word_length,
    "duplicate_lines": characters.duplicate_lines,
    "top_pair": characters.top_pair,
}
GOPHER: dict[str, Rule] = {
    "gopher_words": gopher.words,
    "gopher_word_length": gopher.word_length,
    "gopher_hashes": gopher.hashes,
    "gopher_ellipses": gopher.ellipses,
    "gopher_bullet_lines": gopher.bullet_lines,
    "gopher_ellipsis_lines": gopher.ellipsis_lines,
    "gopher_few_letters": gopher.few_letters,
    "gopher_few_stop_words": gopher.few_stop_words,
    "gopher_duplicate_lines": gopher.duplicate_lines,
    "gopher_duplicate_line_characters": gopher.duplicate_line_characters,
    "gopher_duplicate_paragraphs": gopher.duplicate_paragraphs,
    "gopher_duplicate_paragraph_characters": gopher.duplicate_paragraph_characters,
    "gopher_top_grams": gopher.top_grams,
    "gopher_duplicate_grams": gopher.duplicate_grams,
}
C4: dict[str, Rule] = {
    "c4_few_sentences": c4.few_sentences,
}
FINEWEB: dict[str, Rule] = {
    "fineweb_few_ended_lines": fineweb.few_ended_lines,
    "fineweb_duplicate_line_characters": fineweb.duplicate_line_characters,
    "fineweb_short_lines": fineweb.short_lines,
}
FAMILIES = {"basic": BASIC, "gopher": GOPHER, "c4": C4, "fineweb": FINEWEB}
PAGES: dict[str, Rule] = {  # asked before lines are taken out of a text
    "c4_lorem_ipsum": c4.lorem_ipsum,
    "c4_curly_bracket": c4.curly_bracket,
}
EVERY = {**ANY_TEXT, **CODE, **PAGES, **BASIC, **GOPHER, **C4, **FINEWEB}


def judge_page(document: Document, config: CleanConfig) -> Verdict:
    """The first objection to the text as its source had it, or KEEP."""
    return KEEP if is_code(document) or "c4" not in config.rules else _first(document, config, PAGES)


def judge(document: Document, config: CleanConfig) -> Verdict:
    """The first objection to the document, or KEEP."""
    if is_code(document):
        return _first(document, config, ANY_TEXT | CODE)
    return _first(document, config, ANY_TEXT | {name: rule for family in config.rules for name, rule in FAMILIES[family].items()})


def _first(document: Document, config: CleanConfig, rules: Mapping[str, Rule]) -> Verdict:
    text = Text(document.text, document.language)
    if not text.text:
        return Verdict(False, "empty")
    for name, rule in rules.items():
        if name not in config.off and (score := rule(text, config)) is not None:
            return Verdict(False, name, round(score, 6))
    return KEEP
