from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llm.data.config import CleanConfig
from llm.data.document import Document
from llm.data.quality.config import Family, RuleName
from llm.data.quality.judge import ANY_TEXT, CODE, EVERY, FAMILIES, PAGES, judge, judge_page
from llm.data.quality.text import Text

EVERYTHING = CleanConfig(rules=("basic", "gopher", "c4", "fineweb"))
PIECES = ["word", "The", "and", "…", "...", "#", "- ", "17", "\n", "\n\n", ". ", "{", "ab" * 40, "海港", "é", "\ufffd", "Ã©"]


def test_the_recipe_knows_every_rule_and_family() -> None:
    assert set(get_args(RuleName)) == set(EVERY)
    assert set(get_args(Family)) == set(FAMILIES)
    assert sum(map(len, (ANY_TEXT, CODE, PAGES, *FAMILIES.values()))) == len(EVERY), "two rules have one name"
    with pytest.raises(ValidationError, match="gopher_few_stop_words"):
        CleanConfig(off=("gopher_stopwords",))  # type: ignore[arg-type]


def test_every_rule_says_what_it_objects_to() -> None:
    assert [name for name, rule in EVERY.items() if not rule.__doc__] == []


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=60).map(" ".join), st.sampled_from(list(EVERY)), st.integers(0, 3))
def test_blanks_at_the_end_change_no_verdict(text: str, name: str, blanks: int) -> None:
    config = CleanConfig(min_characters=1)
    if text.strip():
        trailing = (
            "".join(f"{line}{' ' * blanks}\n" for line in text.split("\n")) if name not in ("too_short", "too_long") else text + "\n \n"
        )
        scores = EVERY[name](Text(text), config), EVERY[name](Text(trailing), config)
        assert (scores[0] is None) == (scores[1] is None) or name in BLANKS_COUNT


BLANKS_COUNT = {
    "replacement_characters",
    "encoded_data",
    "mojibake",
    "few_alphanumerics",
    "long_lines",
}  # within a text they are characters too


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(min_size=1, max_size=300), st.sampled_from(["text", "code"]))
def test_any_text_has_a_verdict(text: str, domain: str) -> None:
    document = Document("a", text, "files", domain=domain)
    for config in (EVERYTHING, EVERYTHING.model_copy(update={"off": tuple(ANY_TEXT)})):
        for verdict in (judge(document, config), judge_page(document, config)):
            assert verdict.keep or verdict.reason in {*EVERY, "empty"}


def test_a_family_can_be_chosen_and_a_rule_switched_off() -> None:
    list_page = Document("a", "\n".join(f"- {letter * 5} " + "and the harbour lay quiet " * 2 for letter in "abcdefgh"), "files")
    assert judge(list_page, CleanConfig(off=("top_pair", "duplicate_lines"))).keep
    assert judge(list_page, CleanConfig(rules=("gopher",))).reason == "gopher_bullet_lines"
    assert judge(list_page, CleanConfig(rules=("gopher",), off=("gopher_bullet_lines",))).reason == "gopher_top_grams"
    assert judge(list_page, CleanConfig(rules=())).keep


def test_code_is_judged_by_rules_for_code_alone() -> None:
    code = Document("a", "def area(width, height):\n    return {width: height}\n" * 9, "files", domain="code")
    assert judge(code, EVERYTHING).keep
    assert judge_page(code, EVERYTHING).keep
