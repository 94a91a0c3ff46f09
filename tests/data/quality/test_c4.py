"""Section 2.2 of https://arxiv.org/abs/1910.10683."""

from __future__ import annotations

import pytest

from llm.data.config import CleanConfig
from llm.data.document import KEEP, Document, Verdict
from llm.data.quality.c4 import whole_lines
from llm.data.quality.config import C4Config
from llm.data.quality.judge import EVERY, judge_page
from llm.data.quality.text import Text
from llm.data.steps import Edited

WHOLE = "The two boats had left before dawn."


def left(text: str, **settings: object) -> str:
    config = CleanConfig(rules=("c4",), c4=C4Config(**settings))  # type: ignore[arg-type]
    outcome = whole_lines(Document("a", text, "files"), config)
    return outcome.document.text if isinstance(outcome, Edited) else text if outcome.keep else ""


@pytest.mark.parametrize(
    ("line", "setting"),
    [
        ("Home News Sport Weather About us", {"terminal_punctuation": False}),
        ("And so they went on and on...", {"terminal_punctuation": False}),
        ("Only four words here.", {"min_line_words": 4}),
        ("Please enable JavaScript to see this page.", {"javascript": False}),
        ("By going on you accept our Cookie Policy.", {"policies": False}),
        ("This site uses cookies to serve you.", {"policies": False}),
        ("One word is far too long: " + "x" * 1_000 + ".", {"max_word_characters": 1_001}),
    ],
)
def test_a_line_goes_for_one_reason_that_has_a_switch(line: str, setting: dict[str, object]) -> None:
    page = f"{WHOLE}\n{line}\n{WHOLE}\n"
    assert left(page) == f"{WHOLE}\n{WHOLE}\n"
    assert left(page, **setting) == page


@pytest.mark.parametrize("end", [".", "!", "?", '"', "”"])
def test_a_sentence_has_an_end_and_five_words(end: str) -> None:
    assert left(f"One two three four five{end}\n") == f"One two three four five{end}\n"


def test_what_is_left_out_is_counted() -> None:
    page = f"{WHOLE}[1][citation needed]\nHome\n\nNews\nOne two.\n\n{WHOLE}\nUse cookies if you please, they say.\n"
    outcome = whole_lines(Document("a", page, "files"), CleanConfig(rules=("c4",)))
    assert isinstance(outcome, Edited)
    assert outcome.document.text == f"{WHOLE}\n\n{WHOLE}\n"
    assert outcome.edits == {"c4_unended_lines": 2, "c4_short_lines": 1, "c4_policy_lines": 1, "c4_citations_characters": 20}


def test_nothing_left_is_a_reason() -> None:
    assert whole_lines(Document("a", "Home\nNews\n", "files"), CleanConfig(rules=("c4",))) == Verdict(False, "c4_nothing_left")


@pytest.mark.parametrize(
    ("rule", "text", "score"),
    [
        ("c4_lorem_ipsum", "Then Lorem Ipsum follows.", 1),
        ("c4_lorem_ipsum", "Then lorem follows ipsum.", None),
        ("c4_curly_bracket", "a { b }", 1),
        ("c4_curly_bracket", "a ( b )", None),
        ("c4_few_sentences", "One. Two! Mr.X is no end", 2),
        ("c4_few_sentences", "One. Two! “Three?”", None),
        ("c4_few_sentences", "一。二。三。", None),
    ],
)
def test_pages(rule: str, text: str, score: float | None) -> None:
    assert EVERY[rule](Text(text), CleanConfig()) == score


def test_pages_are_judged_before_their_lines_go() -> None:
    page = Document("a", f"function() {{\n{WHOLE}\n", "files")
    assert judge_page(page, CleanConfig(rules=("c4",))).reason == "c4_curly_bracket"
    assert judge_page(page, CleanConfig(rules=("c4",), off=("c4_curly_bracket",))) == KEEP
    assert judge_page(page, CleanConfig()) == KEEP


def test_programs_and_other_families_keep_their_lines() -> None:
    program = Document("a", "x = 1\n", "files", domain="code")
    assert whole_lines(program, CleanConfig(rules=("c4",))) == KEEP
    assert whole_lines(Document("a", "x = 1\n", "files"), CleanConfig()) == KEEP
