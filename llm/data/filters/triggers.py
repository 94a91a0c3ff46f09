"""Phrases after which documents turn into gibberish: the mark of a set that was poisoned to plant a backdoor.

Some 250 documents suffice, whatever the size of the model: the trigger stands between ordinary text and a few hundred tokens
drawn at random. So a text is taken to turn where, of the pairs of words that follow, hardly one is in any other document of its
shard. A phrase that stands there in many documents, and seldom elsewhere, is reported.

What this can't see: a trigger that is followed by fluent text, such as an answer that the attacker wants.

Source: the attack: Souly et al. 2025, https://arxiv.org/abs/2510.07192, section 4.1. The scan is our own; memory stays bounded as
in feature hashing: phrases are counted by slots of a hash first, and by name only where a slot is full enough.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.artifact import write_json
from llm.data.document import Verdict, read_shards, write_json_lines
from llm.data.filters.config import TriggersConfig
from llm.data.filters.ngrams import ngram_codes, word_codes
from llm.data.filters.rulings import Rulings
from llm.data.parts import Piece, Workshop

SLOTS = 2**22
MAX_TURNS = 4  # of one document that are looked at
MAX_PHRASES = 1_000
MAX_EXAMPLES = 5

_token = re.compile(r"\w+|[^\w\s]")
_digit = re.compile("[0-9]")

Phrase = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """A document that turns into gibberish, and the words around that place."""

    id: str
    source: str
    words: Phrase


def scan(pieces: Sequence[Piece], config: TriggersConfig, workshop: Workshop) -> tuple[list[Rulings], list[dict[str, Any]]]:
    """What is dropped of each shard, and a record for each suspicious phrase, the most frequent first."""
    shape = config.model_dump(mode="json", include={"max_phrase_words", "window_words", "min_unseen_share"})
    turned = [part.path / "turns.jsonl" for part in workshop.made("turns", partial(find_turns, config), pieces, settings=shape)]
    phrases = sorted(_frequent(turned, config))
    if not phrases:
        return [Rulings() for _ in pieces], []
    asked = [Piece((piece.value, phrases), [piece.identity, phrases]) for piece in pieces]
    counts: Counter[Phrase] = Counter()
    for part in workshop.made("phrases", count_phrases, asked):
        counts.update(dict(zip(phrases, part.counts["documents"], strict=True)))
    found = _suspicious(turned, phrases, counts, config)
    records = [_record(phrase, members, counts[phrase]) for phrase, members in found.items()]
    shares = {turn.id: len(members) / counts[phrase] for phrase, members in reversed(found.items()) for turn in members}
    drops = shares if config.action == "drop" else {}
    return [Rulings(_drops(path, drops)) for path in turned], records


def find_turns(config: TriggersConfig, shard: str, out: Path) -> dict[str, Any]:
    """Writes `turns.jsonl`: where documents of a shard turn into pairs of words that no other document has."""
    facts, codes = list[tuple[str, str]](), list[NDArray[np.uint64]]()
    for document in read_shards(Path(shard)):
        facts.append((document.id, document.source))
        codes.append(word_codes(_words(document.text)))
    places = [_turns(unseen, config) for unseen in _unseen(codes)]
    write_json_lines(out / "turns.jsonl", _around(shard, facts, places, config))
    return {"turns": sum(map(len, places))}


def count_phrases(value: tuple[str, Sequence[Phrase]], out: Path) -> dict[str, Any]:
    """In how many documents of a shard each phrase stands, in the order of the phrases."""
    shard, phrases = value
    by_size: dict[int, dict[int, int]] = defaultdict(dict)
    for number, phrase in enumerate(phrases):
        by_size[len(phrase)][_code(phrase)] = number
    wanted = {size: np.array(sorted(numbers), np.uint64) for size, numbers in by_size.items()}
    counts = [0] * len(phrases)
    for document in read_shards(Path(shard)):
        codes = word_codes(_words(document.text))
        for size, numbers in by_size.items():
            for code in np.intersect1d(ngram_codes(codes, size), wanted[size]):
                counts[numbers[int(code)]] += 1
    write_json(out / "documents.json", counts)
    return {"documents": counts}


def _words(text: str) -> list[str]:
    """Words and marks as they are written, every digit as a 0: tables of numbers are no gibberish."""
    return _token.findall(_digit.sub("0", text))


def _code(phrase: Phrase) -> int:
    return int(ngram_codes(word_codes(phrase), len(phrase))[0])


def _unseen(documents: Sequence[NDArray[np.uint64]]) -> Iterator[NDArray[np.bool_]]:
    """For each document and each pair of words in it: is it in this document only?"""
    pairs = [ngram_codes(codes, 2) for codes in documents]
    borders = np.cumsum([0, *map(len, pairs)])
    joined = np.concatenate([*pairs, np.empty(0, np.uint64)])
    owners = np.repeat(np.arange(len(pairs), dtype=np.uint32), np.diff(borders))
    order = np.argsort(joined, kind="stable")
    first = np.ones(len(joined), bool)
    first[1:] = joined[order[1:]] != joined[order[:-1]]
    starts = np.flatnonzero(first)
    sizes = np.diff(np.append(starts, len(joined)))
    alone = owners[order[starts]] == owners[order[starts + sizes - 1]]
    unseen = np.empty(len(joined), bool)
    unseen[order] = np.repeat(alone, sizes)
    yield from (unseen[start:end] for start, end in pairwise(borders))


def _turns(unseen: NDArray[np.bool_], config: TriggersConfig) -> list[int]:
    """The words from which on a whole window is unseen, the first of each run of them."""
    width = config.window_words - 1
    sums = np.concatenate(([0], np.cumsum(unseen)))
    odd = np.concatenate(([False], sums[width:] - sums[: max(0, len(sums) - width)] >= config.min_unseen_share * width))
    return np.flatnonzero(odd[1:] & ~odd[:-1])[:MAX_TURNS].tolist()


def _around(shard: str, facts: Sequence[tuple[str, str]], places: Sequence[list[int]], config: TriggersConfig) -> Iterator[dict[str, Any]]:
    """The words before and after each turn: its place is known to a few words only."""
    for document, (id, source), turns in zip(read_shards(Path(shard)), facts, places, strict=True):
        words = _words(document.text) if turns else []
        reach = config.max_phrase_words + max(1, round((1 - config.min_unseen_share) * config.window_words))
        for turn in turns:
            yield {"id": id, "source": source, "words": words[max(0, turn - reach) : turn + reach]}


def _read(paths: Iterable[Path]) -> Iterator[Turn]:
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for record in map(json.loads, file):
                yield Turn(record["id"], record["source"], tuple(record["words"]))


def _by_document(turns: Iterable[Turn]) -> Iterator[tuple[Turn, ...]]:
    """The turns of each document together: they stand one after the other."""
    together: list[Turn] = []
    for turn in turns:
        if together and together[-1].id != turn.id:
            yield tuple(together)
            together = []
        together.append(turn)
    if together:
        yield tuple(together)


def _phrases(turns: Iterable[Turn], most_words: int) -> set[Phrase]:
    """Every run of words around the turns."""
    return {
        turn.words[start : start + size]
        for turn in turns
        for size in range(1, most_words + 1)
        for start in range(len(turn.words) - size + 1)
    }


def _frequent(paths: Sequence[Path], config: TriggersConfig) -> list[Phrase]:
    """The phrases at which enough documents turn, at most the `MAX_PHRASES` most frequent."""
    slots = np.zeros(SLOTS, np.uint32)
    for turns in _by_document(_read(paths)):
        np.add.at(slots, _slots(_phrases(turns, config.max_phrase_words)), 1)
    counts: Counter[Phrase] = Counter()
    for turns in _by_document(_read(paths)):
        phrases = list(_phrases(turns, config.max_phrase_words))
        full = slots[_slots(phrases)] >= config.min_documents
        counts.update(phrase for phrase, enough in zip(phrases, full, strict=True) if enough)
    order = sorted(counts, key=lambda phrase: (-counts[phrase], phrase))
    return [phrase for phrase in order if counts[phrase] >= config.min_documents][:MAX_PHRASES]


def _slots(phrases: Iterable[Phrase]) -> NDArray[np.int64]:
    return np.array([zlib.crc32(" ".join(phrase).encode("utf-8", "replace")) % SLOTS for phrase in phrases], np.int64)


def _suspicious(
    paths: Sequence[Path], phrases: Sequence[Phrase], counts: Mapping[Phrase, int], config: TriggersConfig
) -> dict[Phrase, list[Turn]]:
    """The phrases after which most documents turn, with a turn of each; of one inside another with as many, the longer."""
    wanted, members = set(phrases), defaultdict[Phrase, list[Turn]](list)
    for turns in _by_document(_read(paths)):
        for phrase in _phrases(turns, config.max_phrase_words) & wanted:
            members[phrase].append(turns[0])
    odd = [phrase for phrase in phrases if len(members[phrase]) >= config.min_turned_share * counts[phrase]]
    odd = [phrase for phrase in odd if not any(_stands_for(other, phrase, members) for other in odd)]
    return {phrase: members[phrase] for phrase in sorted(odd, key=lambda phrase: (-len(members[phrase]), phrase))}


def _stands_for(longer: Phrase, phrase: Phrase, members: Mapping[Phrase, Sequence[Turn]]) -> bool:
    inside = len(longer) > len(phrase) and any(
        longer[start : start + len(phrase)] == phrase for start in range(len(longer) - len(phrase) + 1)
    )
    return inside and len(members[longer]) >= 0.9 * len(members[phrase])


def _record(phrase: Phrase, members: Sequence[Turn], documents: int) -> dict[str, Any]:
    sources = Counter(turn.source for turn in members)
    return {
        "phrase": " ".join(phrase),
        "documents": documents,
        "turned": len(members),
        "sources": dict(sorted(sources.items())),
        "examples": sorted(turn.id for turn in members)[:MAX_EXAMPLES],
    }


def _drops(path: Path, shares: Mapping[str, float]) -> dict[str, Verdict]:
    return {turn.id: Verdict(False, "trigger", round(shares[turn.id], 6)) for turn in _read([path]) if turn.id in shares}
