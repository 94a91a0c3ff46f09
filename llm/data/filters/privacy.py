"""Personal data and secrets give way to placeholders; a program still parses."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from llm.data.document import KEEP, Document, Verdict
from llm.data.filters.accounts import cards, ibans
from llm.data.filters.config import PersonalKind, PrivacyConfig
from llm.data.filters.personal import Span, addresses, emails, phones
from llm.data.filters.secrets import keys
from llm.data.steps import Edited

FINDERS: Mapping[PersonalKind, Callable[[str], Iterator[Span]]] = {
    "key": keys,
    "email": emails,
    "iban": ibans,
    "card": cards,
    "phone": phones,
    "ip": addresses,
}
PLACEHOLDERS: Mapping[PersonalKind, str] = {kind: f"<{kind.upper()}>" for kind in FINDERS}

ANYWHERE: tuple[PersonalKind, ...] = ("email", "key")  # a block comment or a file of settings marks no line

Found = tuple[int, int, PersonalKind]

_quoted = re.compile(r"""["'`#*]|//|--""")


def mask(document: Document, config: PrivacyConfig) -> Edited | Verdict:
    """The document with a placeholder for each finding, and how many there were of each kind.

    In Python only strings and comments change, and numbers that a card's takes whole, which become 0. In other languages, which
    aren't parsed, mail and keys change anywhere.

    Source: e-mail and IP addresses as in FineWeb, https://arxiv.org/abs/2406.17557, section 3; keys as in StarCoder,
    https://arxiv.org/abs/2305.06161, section 4; the other kinds: each finder names its own.
    """
    found = find(document.text, config.mask)
    if not found:
        return KEEP
    if document.language == "python":
        text, found = _in_python(document.text, found)
    else:
        found = _in_strings(document.text, found) if document.domain == "code" else found
        text = _masked(document.text, found, PLACEHOLDERS)
    edits = Counter(f"masked_{kind}" for _, _, kind in found)
    return Edited(replace(document, text=text), edits) if edits else KEEP


def find(text: str, kinds: Sequence[PersonalKind]) -> list[Found]:
    """Spans of these kinds, in order; of those that overlap the first, and the longest.

    Example:
        >>> find("ask jo@example.org", ["email", "card"])
        [(4, 18, 'email')]
    """
    spans = sorted((start, -end, kind) for kind, finder in FINDERS.items() if kind in kinds for start, end in finder(text))
    found: list[Found] = []
    for start, end, kind in spans:
        if not found or start >= found[-1][1]:
            found.append((start, -end, kind))
    return found


def _masked(text: str, found: Sequence[Found], placeholders: Mapping[PersonalKind, str], numbers: Container[Span] = ()) -> str:
    pieces, position = list[str](), 0
    for start, end, kind in found:
        pieces += (text[position:start], "0" if (start, end) in numbers else placeholders[kind])
        position = end
    return "".join((*pieces, text[position:]))


def _in_strings(text: str, found: Sequence[Found]) -> list[Found]:
    """Mail and keys, which no program computes with, and numbers before which a quote or a comment opens on their line."""
    return [each for each in found if each[2] in ANYWHERE or _quoted.search(text, text.rfind("\n", 0, each[0]) + 1, each[0])]


def _in_python(text: str, found: list[Found]) -> tuple[str, list[Found]]:
    """A masked program, and what was masked in it. What doesn't parse to begin with is masked like prose."""
    if not _parses(text):
        return _masked(text, found, PLACEHOLDERS), found
    literals, numbers = _literals(text)
    kept = [(_start(text, each[0]), *each[1:]) for each in found if _within(each, literals) or each[:2] in numbers]
    masked = _masked(text, kept, PLACEHOLDERS, numbers)
    if not _parses(masked):  # one stands among the expressions of an f-string, where a name can
        masked = _masked(text, kept, {kind: kind.upper() for kind in FINDERS}, numbers)
    return masked, kept


def _parses(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


STRINGS = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def _literals(text: str) -> tuple[list[Span], set[Span]]:
    """Spans of the strings and comments of a program, in order, and of its numbers."""
    starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    strings, numbers = list[Span](), set[Span]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        span = starts[token.start[0] - 1] + token.start[1], starts[token.end[0] - 1] + token.end[1]
        if token.type in STRINGS:
            strings.append(span)
        elif token.type == tokenize.NUMBER:
            numbers.add(span)
    return strings, numbers


def _within(found: Found, spans: Sequence[Span]) -> bool:
    """Whether one of the ordered spans holds the finding."""
    place = bisect_right(spans, found[0], key=lambda span: span[0]) - 1
    return place >= 0 and found[1] <= spans[place][1]


def _start(text: str, start: int) -> int:
    """Where a finding in a string really starts: the n of an escape \\n is none of its letters, and no escape may be cut in two."""
    before = text[max(0, start - 64) : start]
    backslashes = len(before) - len(before.rstrip("\\"))
    if backslashes % 2 == 0:
        return start
    return start + 1 if text[start] in "nrt" else start - 1
