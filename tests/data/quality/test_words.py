from __future__ import annotations

import pytest

from llm.data.document import KEEP, Document, Verdict
from llm.data.quality.config import WordsConfig
from llm.data.quality.words import STOP_WORDS, plain_words
from llm.data.steps import Edited


def test_off_by_default() -> None:
    assert plain_words(Document("a", "The Harbour", "files"), WordsConfig()) == KEEP


@pytest.mark.parametrize(
    ("language", "text", "plain"),
    [
        ("", "The harbour, and THE sea.\nIt is quiet there.\n", "harbour, sea.\nquiet .\n"),
        ("en", "They don't theorise about it.\n", "don't theorise .\n"),
        ("de", "Der Hafen und das Meer.\n", "Hafen Meer.\n"),
        ("nl", "Het is de haven.\n", "Het is de haven.\n"),  # no list for it
    ],
)
def test_stop_words_of_the_texts_language(language: str, text: str, plain: str) -> None:
    outcome = plain_words(Document("a", text, "files", language=language), WordsConfig(remove_stop_words=True))
    assert (outcome.document.text if isinstance(outcome, Edited) else text) == plain


def test_your_own_words_and_small_letters() -> None:
    config = WordsConfig(lower_case=True, remove_stop_words=True, stop_words=("harbour",))
    outcome = plain_words(Document("a", "The HARBOUR Sea\n", "files"), config)
    assert isinstance(outcome, Edited)
    assert outcome.document.text == "the sea\n"
    assert outcome.edits == {"lower_case_documents": 1, "stop_words": 1}
    assert plain_words(Document("a", "Harbour\n", "files"), config) == Verdict(False, "only_stop_words")
    assert plain_words(Document("a", "The = 1", "files", domain="code"), config) == KEEP


def test_the_lists_are_sorted_sets_of_lower_case_words() -> None:
    for words in map(str.split, STOP_WORDS.values()):
        assert len(words) == len(set(words))
        assert all(word == word.lower() for word in words)
