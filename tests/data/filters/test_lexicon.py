from __future__ import annotations

from pathlib import Path

import pytest

from llm.data.document import Document
from llm.data.filters.config import LexiconConfig
from llm.data.filters.lexicon import judge_words, load
from llm.errors import RecipeError


@pytest.fixture
def words(tmp_path: Path) -> str:
    path = tmp_path / "words.txt"
    path.write_text("# not nice\nbogus\nGrim Tidings\n  \n坏词\nbogus\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "hits", "total"),
    [
        ("A BOGUS claim, bogus.", 2, 4),
        ("bogusly unbogus bog us", 0, 4),
        ("grim  tidings came; grim was the day", 2, 7),
        ("bogus-like", 0, 1),
        ("这是坏词，坏词", 2, 2),
        ("", 0, 0),
    ],
)
def test_whole_words_are_counted_without_case(words: str, text: str, hits: int, total: int) -> None:
    assert load(words).count(text) == (hits, total)


def test_a_document_has_to_exceed_both_limits(words: str) -> None:
    document = Document("a", "bogus " + "fine " * 99, "files")
    for settings, keep in (({}, False), ({"max_words": 1}, True), ({"max_words_share": 0.01}, True), ({"max_words_share": 0.009}, False)):
        config = LexiconConfig(path=words, reason="rude", **settings)
        verdict = judge_words(document, load(words), config)
        assert verdict.keep == keep
        assert keep or (verdict.reason, verdict.score) == ("rude", 0.01)


def test_the_digest_is_that_of_the_entries(words: str, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("坏词\ngrim tidings\nbogus", encoding="utf-8")
    assert load(words).sha256() == load(str(other)).sha256()
    other.write_text("bogus", encoding="utf-8")
    assert load(words).sha256() != load(str(other)).sha256()


def test_a_list_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such list"):
        load(str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(RecipeError, match="empty"):
        load(str(tmp_path / "empty.txt"))
