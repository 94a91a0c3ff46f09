"""Phrases after which documents turn into gibberish: the mark of a set that was poisoned to plant a backdoor.

Some 250 documents suffice, whatever the size of the model: the trigger stands between ordinary text and a few hundred tokens
drawn at random. So a text is taken to turn where, of the pairs of words that follow, hardly one is in any other document of the
corpus. A phrase that stands there in many documents, and seldom elsewhere, is reported.

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
from hashlib import sha256
from itertools import compress, pairwise
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
RANGE_PAIRS = 16_000_000  # of all shards together, looked at at a time: some 200 MB
MAX_TURNS = 4  # of one document that are looked at
MAX_PHRASES = 1_000
MAX_EXAMPLES = 5

_token = re.compile(r"\w+|[^\w\s]")
_digit = re.compile("[0-9]")

Phrase = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """A document that may turn into gibberish, and its words; or that does, and the words around that place."""

    id: str
    source: str
    words: Phrase


def scan(pieces: Sequence[Piece], config: TriggersConfig, workshop: Workshop) -> tuple[list[Rulings], list[dict[str, Any]]]:
    """What is dropped of each shard, and a record for each suspicious phrase, the most frequent first."""
    shape = config.model_dump(mode="json", include={"max_phrase_words", "window_words", "min_unseen_share"})
    paired = workshop.made("pairs", partial(find_pairs, config), pieces, settings=shape)
    judged = [
        Piece((str(part.path), unseen), [piece.identity, sha256(unseen.tobytes()).hexdigest()])
        for piece, part, unseen in zip(pieces, paired, _unseen([part.path for part in paired]), strict=True)
    ]
    turned = [part.path / "turns.jsonl" for part in workshop.made("turns", partial(find_turns, config), judged, settings=shape)]
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


def find_pairs(config: TriggersConfig, shard: str, out: Path) -> dict[str, Any]:
    """Writes `pairs.npy`, all of a shard, and what may turn: those documents' words, and `lonely.npy`, their pairs that no other has.

    Other shards can only make fewer pairs unseen, so no other document of this one turns.
    """
    documents = [_pairs(_words(document.text)) for document in read_shards(Path(shard))]
    lonely = list(_lonely(documents))
    chosen = [bool(_turns(each, config)) for each in lonely]
    np.save(out / "pairs.npy", np.unique(_joined(documents)))
    np.save(out / "lonely.npy", np.unique(_joined([each[mask] for each, mask in compress(zip(documents, lonely, strict=True), chosen)])))
    candidates = compress(read_shards(Path(shard)), chosen)
    records = ({"id": each.id, "source": each.source, "words": _words(each.text)} for each in candidates)
    write_json_lines(out / "candidates.jsonl", records)
    return {"candidates": sum(chosen)}


def find_turns(config: TriggersConfig, value: tuple[str, NDArray[np.uint32]], out: Path) -> dict[str, Any]:
    """Writes `turns.jsonl`: where the candidates of a shard turn into pairs of words that no other document of the corpus has."""
    folder, unseen = value
    turns = [
        {"id": candidate.id, "source": candidate.source, "words": around}
        for candidate in _read([Path(folder) / "candidates.jsonl"])
        for around in _around(candidate.words, unseen, config)
    ]
    write_json_lines(out / "turns.jsonl", turns)
    return {"turns": len(turns)}


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


def _pairs(words: Sequence[str]) -> NDArray[np.uint32]:
    """A number for each pair of words; half of its bits do, since one in fifty is taken for seen only among 10^8 different pairs."""
    return ngram_codes(word_codes(words), 2).astype(np.uint32)


def _joined(pairs: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
    return np.concatenate([*pairs, np.empty(0, np.uint32)])


def _lonely(documents: Sequence[NDArray[np.uint32]]) -> Iterator[NDArray[np.bool_]]:
    """For each document and each pair of words in it: is it in this document only?"""
    borders = np.cumsum([0, *map(len, documents)])
    joined = _joined(documents)
    owners = np.repeat(np.arange(len(documents), dtype=np.uint32), np.diff(borders))
    order = np.argsort(joined, kind="stable")
    first = np.ones(len(joined), bool)
    first[1:] = joined[order[1:]] != joined[order[:-1]]
    starts = np.flatnonzero(first)
    sizes = np.diff(np.append(starts, len(joined)))
    alone = owners[order[starts]] == owners[order[starts + sizes - 1]]
    lonely = np.empty(len(joined), bool)
    lonely[order] = np.repeat(alone, sizes)
    yield from (lonely[start:end] for start, end in pairwise(borders))


def _unseen(folders: Sequence[Path]) -> list[NDArray[np.uint32]]:
    """Of each shard's lonely pairs those that no other shard has; looks at the pairs of all shards range by range of their numbers."""
    pairs = [np.load(folder / "pairs.npy", mmap_mode="r") for folder in folders]
    lonely = [np.load(folder / "lonely.npy") for folder in folders]
    borders = np.linspace(0, 2**32, 2 + sum(map(len, pairs)) // RANGE_PAIRS)[1:-1].astype(np.uint32)
    asked = [np.split(table, np.searchsorted(table, borders)) for table in lonely]
    unseen: list[list[NDArray[np.uint32]]] = [[] for _ in folders]
    for number, slices in enumerate(zip(*(np.split(table, np.searchsorted(table, borders)) for table in pairs), strict=True)):
        together = np.sort(np.concatenate(slices))
        several = together[1:][together[1:] == together[:-1]]
        for found, ranges in zip(unseen, asked, strict=True):
            found.append(np.setdiff1d(ranges[number], several))
    return [np.concatenate(found) for found in unseen]


def _turns(unseen: NDArray[np.bool_], config: TriggersConfig) -> list[int]:
    """The words from which on a whole window is unseen, the first of each run of them."""
    width = config.window_words - 1
    sums = np.concatenate(([0], np.cumsum(unseen)))
    odd = np.concatenate(([False], sums[width:] - sums[: max(0, len(sums) - width)] >= config.min_unseen_share * width))
    return np.flatnonzero(odd[1:] & ~odd[:-1])[:MAX_TURNS].tolist()


def _around(words: Phrase, unseen: NDArray[np.uint32], config: TriggersConfig) -> Iterator[Phrase]:
    """The words before and after each turn: its place is known to a few words only."""
    reach = config.max_phrase_words + max(1, round((1 - config.min_unseen_share) * config.window_words))
    for turn in _turns(np.isin(_pairs(words), unseen), config):
        yield words[max(0, turn - reach) : turn + reach]


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
