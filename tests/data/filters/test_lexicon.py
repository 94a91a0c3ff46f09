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


@pytest.mark.parametrize(
    ("entry", "text", "hits"),
    [
        ("a$$", "a day, a night", 0),
        ("a$$", "What an A$$! a$$, a$$hole, ba$$", 2),
        ("f*ck off", "f*ck  off; f ck off; f*ck", 2),
        ("$hit", "$hit hit a$hit", 1),
        ("c++", "c++ (c++) c c+", 2),
        ("foo_bar", "foo bar foo_bar", 1),
        ("o'neil", "O'Neil o neil", 1),
        ("🖕", "oh🖕🖕", 2),
    ],
)
def test_an_entry_with_symbols_counts_as_it_is_written(tmp_path: Path, entry: str, text: str, hits: int) -> None:
    path = tmp_path / "words.txt"
    path.write_text(f"\ufeff{entry}\n", encoding="utf-8")
    assert load(str(path)).count(text)[0] == hits


def test_the_longest_entry_with_symbols_counts(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("a$$\na$$ hat\n", encoding="utf-8")
    assert load(str(path)).count("a$$ hat")[0] == 2


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"fine\n\n***\n", 3), (b"---", 1), ("naïve\n".encode("latin-1"), 1), ("fine\nbogus\n".encode("utf-16"), 1), (b"a\0b", 1)],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, line: int) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=rf"words\.txt, line {line}\b"):
        load(str(path))


def test_the_digest_covers_entries_with_symbols(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("fine\na$$")
    two.write_text("fine\nb$$")
    assert load(str(one)).sha256() != load(str(two)).sha256()
