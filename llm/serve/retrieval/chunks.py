"""Documents in passages: whole paragraphs where they fit, else lines, sentences, words."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Count = Callable[[Sequence[str]], list[int]]  # tokens of each text

MAX_TOKEN_CHARACTERS = 64  # a stretch with more characters per token than this is cut before it is counted
BORDERS = tuple(map(re.compile, (r"\n[^\S\n]*\n\s*", r"\n", r"(?<=[.!?])\s+|(?<=[。！？])", r"\s+")))  # a piece ends behind one


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a text, in characters, and its length in tokens."""

    start: int
    end: int
    tokens: int


def passages(text: str, count: Count, *, max_tokens: int, overlap_tokens: int) -> list[tuple[int, int]]:
    """Where each passage starts and ends. A passage repeats the end of the one before it as far as whole pieces of that fit.

    Every character but blanks between passages is in one of them. Tokens add up over pieces, which is exact where a
    vocabulary's pieces end with words.

    Example:
        >>> words = lambda texts: [len(text.split()) for text in texts]
        >>> text = "One two three.\\n\\nFour five. Six seven eight. Nine."
        >>> [text[start:end] for start, end in passages(text, words, max_tokens=5, overlap_tokens=2)]
        ['One two three.\\n\\nFour five.', 'Four five. Six seven eight.', 'Nine.']
    """
    held: deque[Piece] = deque()
    found = list[tuple[int, int]]()
    for piece in _pieces(text, 0, count, max_tokens, 0):
        if held and _tokens(held) + piece.tokens > max_tokens:
            found.append((held[0].start, held[-1].end))
            while held and (_tokens(held) > overlap_tokens or _tokens(held) + piece.tokens > max_tokens):
                held.popleft()
        held.append(piece)
    if held:
        found.append((held[0].start, held[-1].end))
    return _distinct([_stripped(text, *span) for span in found])


def _pieces(text: str, offset: int, count: Count, max_tokens: int, level: int) -> Iterator[Piece]:
    """Stretches that follow each other and hold at most so many tokens, cut at the coarsest borders that do."""
    parts = _parts(text, level)
    short = [part for part in parts if len(part) <= max_tokens * MAX_TOKEN_CHARACTERS]
    lengths = iter(count(short))
    for part in parts:
        tokens = next(lengths) if len(part) <= max_tokens * MAX_TOKEN_CHARACTERS else max_tokens + 1
        if tokens <= max_tokens or len(part) == 1:
            yield Piece(offset, offset + len(part), tokens)
        else:
            yield from _pieces(part, offset, count, max_tokens, level + 1)
        offset += len(part)


def _parts(text: str, level: int) -> list[str]:
    """The text cut behind each border of this level; below the last level in halves."""
    if level >= len(BORDERS):
        middle = len(text) // 2
        return [text[:middle], text[middle:]]
    ends = [found.end() for found in BORDERS[level].finditer(text)]
    return [part for start, end in zip([0, *ends], [*ends, len(text)], strict=True) if (part := text[start:end])]


def _tokens(pieces: deque[Piece]) -> int:
    return sum(piece.tokens for piece in pieces)


def _distinct(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that hold something, without those that stand in their neighbour: nothing but blanks is between the two."""
    found = list[tuple[int, int]]()
    for start, end in spans:
        if found and start <= found[-1][0]:
            found.pop()
        if start < end and (not found or end > found[-1][1]):
            found.append((start, end))
    return found


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    passage = text[start:end]
    return start + len(passage) - len(passage.lstrip()), end - len(passage) + len(passage.rstrip())
