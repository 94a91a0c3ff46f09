"""Table A1 and appendix A.1.1 of https://arxiv.org/abs/2112.11446, at each threshold and just beyond it."""

from __future__ import annotations

import pytest

from llm.data.config import CleanConfig
from llm.data.quality.config import GopherConfig
from llm.data.quality.judge import GOPHER
from llm.data.quality.text import Text

LETTERS = [character for character in map(chr, range(0x100, 0x180)) if character.isalpha()]  # words of one character, all different


def asked(rule: str, text: str, language: str = "", **settings: object) -> float | None:
    return GOPHER[rule](Text(text, language), CleanConfig(gopher=GopherConfig(**settings)))  # type: ignore[arg-type]


def lines(*counts: tuple[int, str]) -> str:
    """Lines that each stand there a number of times; a `#` becomes the number of the line."""
    made = [line for count, line in counts for _ in range(count)]
    return "\n".join(line.replace("#", chr(ord("A") + number)) for number, line in enumerate(made))


CASES = [
    ("gopher_words", "word " * 49, 49),
    ("gopher_words", "word " * 50, None),
    ("gopher_words", "word " * 100_000, None),
    ("gopher_words", "word " * 100_001, 100_001),
    ("gopher_word_length", "ab abc", 2.5),
    ("gopher_word_length", "ab abcd", None),
    ("gopher_word_length", "abcdefghij", None),
    ("gopher_word_length", "abcdefghij abcdefghijk", 10.5),
    ("gopher_hashes", "a# " + "a " * 9, None),
    ("gopher_hashes", "a# # " + "a " * 8, 0.2),
    ("gopher_ellipses", "a... " + "a " * 9, None),
    ("gopher_ellipses", "a… a... " + "a " * 8, 0.2),
    ("gopher_bullet_lines", lines((5, "• #"), (4, "- #"), (1, "#")), None),
    ("gopher_bullet_lines", lines((5, "• #"), (5, "  - #")), 1.0),
    ("gopher_ellipsis_lines", lines((2, "# ..."), (1, "#…"), (7, "#")), None),
    ("gopher_ellipsis_lines", lines((4, "#... "), (6, "#")), 0.4),
    ("gopher_few_letters", "a1 " * 8 + "17 --", None),
    ("gopher_few_letters", "a1 " * 7 + "17 -- 3.5", 0.7),
    ("gopher_few_stop_words", "to be", None),
    ("gopher_few_stop_words", "The end (of it).", None),
    ("gopher_few_stop_words", "the, the; the!", 1),
    ("gopher_few_stop_words", "Otherwise tobe offer", 0),
    ("gopher_duplicate_lines", lines((4, "same"), (6, "#")), None),  # 3 of 10 stood there before
    ("gopher_duplicate_lines", lines((5, "same"), (5, "#")), 0.4),
    ("gopher_duplicate_line_characters", lines((2, "same"), (3, "abc#")), None),  # 4 of 20
    ("gopher_duplicate_line_characters", lines((2, "same."), (3, "abc#")), 5 / 22),
    ("gopher_duplicate_paragraphs", lines((4, "same"), (6, "#")).replace("\n", "\n\n"), None),
    ("gopher_duplicate_paragraphs", lines((5, "same"), (5, "#")).replace("\n", "\n \n\n"), 0.4),
    ("gopher_duplicate_paragraphs", "same\nx\n\nsame\ny\n\nsame\nz", None),  # equal lines, not equal paragraphs
    ("gopher_duplicate_paragraph_characters", lines((2, "same"), (3, "abc#")).replace("\n", "\n\n"), None),
    ("gopher_duplicate_paragraph_characters", lines((2, "same."), (3, "abc#")).replace("\n", "\n\n"), 5 / 22),
]


@pytest.mark.parametrize(("rule", "text", "score"), CASES)
def test_at_the_threshold_and_beyond(rule: str, text: str, score: float | None) -> None:
    assert asked(rule, text) == (score if score is None else pytest.approx(score))


@pytest.mark.parametrize(("n", "most", "least"), [(2, 20, 19), (3, 34, 33), (4, 50, 49)])
def test_the_most_frequent_run_of_words(n: int, most: int, least: int) -> None:
    """Twice the same n words of one letter each: 2n characters of as many as there are words. 4/20, 6/34 and 8/50 are allowed."""
    run, others = ["a", "b", "c", "d"][:n], LETTERS[:48]
    for words, score in ((most, None), (least, pytest.approx(2 * n / least))):
        text = [*run, "x", *run, *others][:words]
        assert asked("gopher_top_grams", " ".join(text)) == score


@pytest.mark.parametrize(("n", "most", "least"), [(5, 34, 33), (6, 43, 42), (7, 54, 53), (8, 67, 66), (9, 82, 81), (10, 100, 99)])
def test_runs_of_words_that_stood_there_before(n: int, most: int, least: int) -> None:
    """n words stand there again, so n of as many characters as there are words: 5/34 is below 0.15, 5/33 above it."""
    run = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"][:n]
    for words, score in ((most, None), (least, pytest.approx(n / least))):
        text = [*run, *LETTERS[: words - 2 * n], *run]
        assert len(text) == words
        assert asked("gopher_duplicate_grams", " ".join(text)) == score


def test_characters_of_overlapping_runs_count_once() -> None:
    """Seven words again hold three runs of five; they are still seven of 14 + 20 words."""
    run = ["a", "b", "c", "d", "e", "f", "g"]
    text = Text(" ".join([*run, *LETTERS[:20], *run]))
    assert text.repeated_share(5) == text.repeated_share(6) == text.repeated_share(7) == 7 / 34
    assert text.repeated_share(8) == 0


def test_texts_that_another_implementation_rejects() -> None:
    """Texts for which the filters of datatrove, an independent implementation of the paper, name the same reason."""
    father = "I am your father."
    assert asked("gopher_duplicate_lines", f"{father}\n" * 4) == 0.75
    assert asked("gopher_duplicate_paragraphs", f"{father}\n\n" * 4) == 0.75
    unequal = f"I am groot.\nYou are a wizard.\n{father}\n" + f"{'x' * 40}.\n" * 2
    assert asked("gopher_duplicate_lines", unequal) is None
    assert asked("gopher_duplicate_line_characters", unequal) == pytest.approx(41 / (11 + 17 + 17 + 82))
    assert asked("gopher_top_grams", "I am Frank, I am Frank, I am Frank") == pytest.approx(3 * 3 / 26)
    assert asked("gopher_words", "I am too small...") == 4
    assert asked("gopher_word_length", "I am " * 20) == 1.5
    assert asked("gopher_word_length", "interconnection " * 20) == 15
    assert asked("gopher_hashes", "# comment " * 20) == 0.5
    assert asked("gopher_ellipses", "... comment " * 20) == 0.5


def test_thresholds_come_from_the_recipe() -> None:
    assert asked("gopher_words", "word " * 49, min_words=49) is None
    assert asked("gopher_few_stop_words", "cats", min_stop_words=0) is None
    assert asked("gopher_duplicate_grams", "a b c d e f " * 9, max_duplicate_grams_shares=(1, 1, 1, 1, 1, 1)) is None


def test_rules_for_spaces_say_nothing_about_scripts_without() -> None:
    chinese = "海港在那个早晨很安静，黎明前只有两艘船离开。"
    for rule in ("gopher_words", "gopher_word_length", "gopher_few_stop_words", "gopher_top_grams", "gopher_duplicate_grams"):
        assert asked(rule, chinese) is None
    assert asked("gopher_few_stop_words", "Der Hafen lag still.", "de") is None
    assert asked("gopher_few_stop_words", "Der Hafen lag still.", "en") == 0
