"""Words that a text may not hold, or not many of: a list that the user gives. None is bundled, since what is harmful depends on use."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llm.artifact import sha256_of
from llm.data.document import KEEP, Document, Verdict
from llm.data.filters.config import LexiconConfig
from llm.errors import RecipeError

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"  # Thai, Lao, Burmese, Khmer, kana, Han

_word = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_unspaced = re.compile(f"[{UNSPACED}]")


@dataclass(frozen=True)
class Lexicon:
    """The entries of a list: phrases by their first word, those of scripts without spaces and emoji, which stand anywhere, and
    those with other symbols (a$$), which stand between the borders of words as they are written."""

    phrases: Mapping[str, tuple[tuple[str, ...], ...]]
    anywhere: tuple[str, ...]
    literal: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Changes when the list does, whatever its order and comments."""
        return sha256_of([sorted(self.phrases.items()), self.anywhere, self.literal])

    def count(self, text: str) -> tuple[int, int]:
        """How many words belong to entries, and how many there are."""
        folded = text.casefold()
        words = _word.findall(folded)
        hits = sum(self._at(words, place) for place, word in enumerate(words) if word in self.phrases)
        hits += sum(len(found[0].split()) for found in self._literal.finditer(folded)) if self.literal else 0
        return hits + sum(map(folded.count, self.anywhere)), len(words)

    @cached_property
    def _literal(self) -> re.Pattern[str]:
        """Any entry with symbols; the longest first, since the first that fits counts."""
        spaced = (r"\s+".join(map(re.escape, entry.split())) for entry in sorted(self.literal, key=len, reverse=True))
        return re.compile(rf"(?<!\w)(?:{'|'.join(spaced)})(?!\w)")

    def _at(self, words: list[str], place: int) -> int:
        """Words of the longest entry that starts here."""
        fitting = (len(phrase) for phrase in self.phrases[words[place]] if tuple(words[place : place + len(phrase)]) == phrase)
        return max(fitting, default=0)


def judge_words(document: Document, lexicon: Lexicon, config: LexiconConfig) -> Verdict:
    """Drops what holds more words of the list than may stand in any text and, relative to its length, in a long one.

    Source: with both limits 0 this is the bad words rule of C4, https://arxiv.org/abs/1910.10683, section 2.2. Words are compared
    whole and without case; in scripts without spaces an entry counts wherever it stands.
    """
    hits, words = lexicon.count(document.text)
    share = hits / max(1, words)
    return Verdict(False, config.reason, round(share, 6)) if hits > config.max_words and share > config.max_words_share else KEEP


def load(path: str) -> Lexicon:
    """The list in a file.

    Raises: RecipeError if there is no such file, no word in it, or a line of it that isn't UTF-8 or names nothing.
    """
    if not Path(path).is_file():
        raise RecipeError("no such list of words", value=path, remedy="set path in clean.lexicons to a text file")
    entries = sorted(set(_entries(path)))
    if not entries:
        raise RecipeError("list of words is empty", value=path, remedy="write one word or phrase per line")
    phrases: dict[str, tuple[tuple[str, ...], ...]] = {}
    anywhere, literal = list[str](), list[str]()
    for entry in entries:
        words = tuple(_word.findall(entry))
        if _unspaced.search(entry) or not words:
            anywhere.append(entry)
        elif " ".join(words) == " ".join(entry.split()):
            phrases[words[0]] = (*phrases.get(words[0], ()), words)
        else:
            literal.append(entry)
    return Lexicon(phrases, tuple(anywhere), tuple(literal))


def _entries(path: str) -> Iterator[str]:
    """The lines that aren't empty and no comments, without case."""
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        try:
            entry = line.decode("utf-8-sig").strip().casefold()
        except UnicodeDecodeError:
            raise RecipeError("list of words is not UTF-8", value=f"{path}, line {number}", remedy="save the list as UTF-8") from None
        if not entry or entry.startswith("#"):
            continue
        if not _is_usable(entry):
            raise RecipeError("entry names nothing", value=f"{path}, line {number}", remedy="write a word, a phrase or an emoji per line")
        yield entry


def _is_usable(entry: str) -> bool:
    """Whether it has a letter, a digit or an emoji, and nothing that no text is written with."""
    kinds = {unicodedata.category(character) for character in entry if not character.isspace()}
    return "Cc" not in kinds and bool(_word.search(entry) or "So" in kinds)
