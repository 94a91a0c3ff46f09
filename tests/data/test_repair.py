from __future__ import annotations

import time

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.config import CleanConfig
from llm.data.document import Document
from llm.data.quality.c4 import whole_lines
from llm.data.quality.config import RepairConfig
from llm.data.quality.judge import EVERY
from llm.data.quality.text import Text
from llm.data.repair import MAX_TAG_CHARACTERS, REPAIRS, _decoded, main_text, normalise, repair, without_long_tags
from llm.data.steps import Edited

SENTENCE = "The harbour lay quiet that morning, and only two boats had left before dawn. "


def page(html: str, **settings: int) -> tuple[str, str]:
    """The main text of a page, and the reason if it has none."""
    outcome = main_text(Document("a", html, "files", meta={"format": "html"}), RepairConfig(**settings))
    return (outcome.document.text, "") if isinstance(outcome, Edited) else ("", outcome.reason)


def article(body: str) -> str:
    return f"<html><body><article><h1>Harbour</h1>{body}</article></body></html>"


PARAGRAPH = f"<p>{SENTENCE * 3}</p>"
HOSTILE = {
    "deep": "<div>" * 20_000 + SENTENCE + "</div>" * 20_000,
    "unclosed": "<p><b><i><a href=x>" * 20_000,
    "attributes": f"<p {' '.join(f'a{number}=x' for number in range(300_000))}>{SENTENCE}",
    "tables": "<table><tr><td>" * 5_000 + SENTENCE,
    "comments": "<!-- x -->" * 50_000 + PARAGRAPH,
    "never closed": "<" * 70_000,
    "nothing but a name": "<a" * 40_000,
    "entities": "&amp;" * 500_000 + "&#x110000;" * 10_000,
    "controls": article("<p>\x00\x01\ud800\ufffe\x85" * 1_000),
    "no page": "\x89PNG\r\n\x1a\n" * 1_000,
    "empty": "",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pages_end_in_text_or_a_reason(kind: str) -> None:
    started = time.process_time()
    text, reason = page(HOSTILE[kind])
    assert bool(text) != bool(reason)
    assert time.process_time() - started < 60, "a hang, not a slow machine: each takes about a second"


def test_pages_beyond_the_limits_are_dropped_unread() -> None:
    assert page(article(PARAGRAPH), max_page_characters=100) == ("", "page_too_large")
    assert page(article(PARAGRAPH * 10), max_page_tags=27) == ("", "page_too_large")
    assert page(article(PARAGRAPH * 10), max_page_tags=28)[1] == ""
    assert page("<p>" + "x" * 100_000_000) == ("", "page_too_large")


def test_a_highlighted_program_does_not_make_a_page_too_large() -> None:
    plain = page(article(PARAGRAPH * 3))
    assert page(article(PARAGRAPH * 3).replace("the", "<span class='k'>the</span>"), max_page_tags=20) == plain


def test_long_tags_lose_their_attributes_and_nothing_else() -> None:
    picture = f"<img alt='x' src='data:image/png;base64,{'A' * 90_000}'>"
    plain, reason = page(article(PARAGRAPH))
    assert page(article(picture + PARAGRAPH)) == (plain, reason)
    long_text = article(f"<p>{SENTENCE * 100}</p>")
    assert without_long_tags(long_text) == long_text
    script = f"<script>if (a <b && {'x' * MAX_TAG_CHARACTERS})</script>{PARAGRAPH}"
    assert without_long_tags(script).endswith(f"</script>{PARAGRAPH}")
    assert max(map(len, without_long_tags(HOSTILE["attributes"]).split(">"))) <= MAX_TAG_CHARACTERS


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["plain ascii", "cafÃ©", "“ok”", "â€œquoted", "\x1b[31mred", "Ã¼ber ", "\n", "\n\n", "é"]), max_size=15).map(
        "".join
    )
)
def test_decoding_line_by_line_is_ftfys_own(text: str) -> None:
    assert _decoded(text) == ftfy.fix_text(text, REPAIRS)


def test_windows_line_ends_are_line_ends() -> None:
    outcome = repair(Document("a", "é \r\nb\t\r\n\r\nc", "files"), RepairConfig())
    assert isinstance(outcome, Edited)
    assert outcome.document.text == "é\nb\n\nc\n"


@pytest.mark.parametrize("text", [" " * 1_000_000 + "é", "." * 1_000_000 + "é", "\n " * 500_000 + "é", "[" * 1_000_000, "é" * 1_000_000])
def test_long_runs_of_one_character_take_no_longer(text: str) -> None:
    started = time.process_time()
    document = Document("a", text, "files")
    assert isinstance(repair(document, RepairConfig()), Edited)
    everything = CleanConfig(rules=("basic", "gopher", "c4", "fineweb"), off=("too_long", "too_short"))
    for rule in EVERY.values():
        rule(Text(text), everything)
    whole_lines(document, everything)
    assert time.process_time() - started < 60, "a hang, not a slow machine: each takes about a second"


@pytest.mark.parametrize(("form", "same"), [("NFC", "ﬁve ２４ ½ é\n"), ("NFKC", "five 24 1⁄2 é\n")])
def test_unicode_forms(form: str, same: str) -> None:
    assert normalise("ﬁve ２４ ½ e\u0301", form) == same  # type: ignore[arg-type]
