"""Words that a text may not hold, or not many of: a list that the user gives. None is bundled, since what is harmful depends on use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
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
    """The entries of a list: phrases by their first word, and those of scripts without spaces, which stand anywhere."""

    phrases: Mapping[str, tuple[tuple[str, ...], ...]]
    anywhere: tuple[str, ...]

    def sha256(self) -> str:
        """Changes when the list does, whatever its order and comments."""
        return sha256_of([sorted(self.phrases.items()), self.anywhere])

    def count(self, text: str) -> tuple[int, int]:
        """How many words belong to entries, and how many there are."""
        folded = text.casefold()
        words = _word.findall(folded)
        hits = sum(self._at(words, place) for place, word in enumerate(words) if word in self.phrases)
        return hits + sum(map(folded.count, self.anywhere)), len(words)

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

    Raises: RecipeError if there is no such file, or no word in it.
    """
    if not Path(path).is_file():
        raise RecipeError("no such list of words", value=path, remedy="set path in clean.lexicons to a text file")
    lines = [line.strip().casefold() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    entries = sorted({line for line in lines if line and not line.startswith("#")})
    phrases: dict[str, tuple[tuple[str, ...], ...]] = {}
    for entry in entries:
        words = tuple(_word.findall(entry))
        if words and not _unspaced.search(entry):
            phrases[words[0]] = (*phrases.get(words[0], ()), words)
    anywhere = tuple(entry for entry in entries if _unspaced.search(entry))
    if not phrases and not anywhere:
        raise RecipeError("list of words is empty", value=path, remedy="write one word or phrase per line")
    return Lexicon(phrases, anywhere)
