from __future__ import annotations

import pytest

from llm.data.document import KEEP, Document
from llm.data.quality.config import LanguageConfig
from llm.data.quality.language import identify
from llm.data.steps import Edited

TEXTS = {  # article 1 of the Universal Declaration of Human Rights
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y conciencia.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di coscienza.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
}


@pytest.mark.parametrize("language", TEXTS)
def test_languages_are_told_apart(language: str) -> None:
    outcome = identify(Document("a", TEXTS[language], "files"), LanguageConfig())
    assert isinstance(outcome, Edited)
    assert outcome.document.language == language


def test_the_source_knows_better() -> None:
    assert identify(Document("a", TEXTS["de"], "files", language="gsw"), LanguageConfig()) == KEEP
    assert identify(Document("a", TEXTS["de"], "files", domain="code"), LanguageConfig(allowed=("en",))) == KEEP


@pytest.mark.parametrize("tag", ["en", "en-US", "EN", "eng", "en_GB", " En-Latn-US "])
def test_a_source_may_write_a_language_in_any_way(tag: str) -> None:
    for allowed in ((), ("en",), ("eng",), ("de", "en-GB")):
        outcome = identify(Document("a", TEXTS["en"], "files", language=tag), LanguageConfig(allowed=allowed))
        assert outcome == KEEP if tag == "en" else isinstance(outcome, Edited) and outcome.document.language == "en"
    verdict = identify(Document("a", TEXTS["en"], "files", language=tag), LanguageConfig(allowed=("de",)))
    assert (verdict.reason if not isinstance(verdict, Edited) else "") == "other_language"


def test_a_source_that_leaves_the_language_open_is_not_believed() -> None:
    outcome = identify(Document("a", TEXTS["de"], "files", language="und"), LanguageConfig(allowed=("de",)))
    assert isinstance(outcome, Edited)
    assert (outcome.document.language, outcome.edits) == ("de", {"identified_documents": 1})


def test_what_is_unsure_has_no_language() -> None:
    numbers = Document("a", "12 34 5 67", "files")
    assert identify(numbers, LanguageConfig()) == KEEP
    verdict = identify(numbers, LanguageConfig(allowed=("en",)))
    assert not isinstance(verdict, Edited)
    assert (verdict.reason, verdict.score < 0.5) == ("unknown_language", True)


def test_only_languages_that_are_asked_for() -> None:
    config = LanguageConfig(allowed=("en", "de"))
    kept = [name for name, text in TEXTS.items() if isinstance(identify(Document("a", text, "files"), config), Edited)]
    assert kept == ["en", "de"]
    verdict = identify(Document("a", TEXTS["fr"], "files"), config)
    assert not isinstance(verdict, Edited)
    assert (verdict.reason, verdict.score > 0.9) == ("other_language", True)
    assert identify(Document("a", TEXTS["en"], "files", language="fr"), config) != KEEP


def test_the_middle_of_a_text_is_looked_at() -> None:
    framed = TEXTS["en"] * 5 + TEXTS["fr"] * 20 + TEXTS["en"] * 5
    outcome = identify(Document("a", framed, "files"), LanguageConfig())
    assert isinstance(outcome, Edited)
    assert outcome.document.language == "fr"
