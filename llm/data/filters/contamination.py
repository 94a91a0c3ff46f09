"""Texts that share long runs of words with an evaluation set: what a model would be asked, it must not have read.

Source: GPT-3, https://arxiv.org/abs/2005.14165, appendix C: runs of 13 words in lower case without punctuation, at least 8 where an
item is shorter; a run goes with 200 characters on either side, a text that would lose more than 10 goes whole.
Unlike there, a run that many documents hold is no common phrase by default: copies of a test are not removed before dedup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.artifact import write_json
from llm.data.config import LabelledSet
from llm.data.document import Verdict, read_shards
from llm.data.filters.config import ContaminationConfig
from llm.data.filters.lexicon import UNSPACED
from llm.data.filters.ngrams import ngram_codes, word_codes
from llm.data.filters.rulings import Rulings, Span
from llm.data.labelled import snapshot, texts
from llm.data.parts import Part, Piece, Workshop

HIT = np.dtype([("document", "<u4"), ("code", "<u8"), ("start", "<u4"), ("end", "<u4")])  # place in ids.json; characters
ENTRY = np.dtype([("code", "<u8"), ("item", "<u4")])

_word = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")  # in a script without spaces, every character

Hits = NDArray[np.void]


@dataclass(frozen=True)
class Overlaps:
    """The runs of words that each shard shares with the sets."""

    index: Part
    shards: list[tuple[list[str], Hits]]  # ids of the documents, and their hits in order


def scan(pieces: Sequence[Piece], sets: Sequence[LabelledSet], config: ContaminationConfig, workshop: Workshop) -> Overlaps:
    """Looks for every item of the sets in every shard; a run in too many documents counts as none."""
    shape = config.model_dump(mode="json", include={"min_ngram_words", "max_ngram_words"})
    fields = [each.model_dump(mode="json", exclude={"path"}) for each in sets]
    asked = Piece(None, [snapshot(each) for each in sets])
    (index,) = workshop.made("benchmarks", partial(index_sets, config, sets), [asked], settings=[shape, fields])
    parts = workshop.made(
        "overlaps",
        scan_shard,
        [Piece((piece.value, str(index.path)), [piece.identity, index.sha256("index.npy"), index.sha256("sets.json")]) for piece in pieces],
    )
    found = [(json.loads((part.path / "ids.json").read_text(encoding="utf-8")), np.load(part.path / "hits.npy")) for part in parts]
    common = _common([hits for _, hits in found], config.max_documents)
    return Overlaps(index, [(ids, hits[~np.isin(hits["code"], common)]) for ids, hits in found])


def rulings(overlaps: Overlaps, config: ContaminationConfig) -> list[Rulings]:
    """What becomes of the documents of each shard that share a run."""
    return [_rulings(ids, hits, config) for ids, hits in overlaps.shards]


def report(before: Overlaps, after: Overlaps) -> dict[str, dict[str, int]]:
    """Of each set: its items, those too short to be looked for, and those that share a run with a document before and after."""
    facts = json.loads((before.index.path / "sets.json").read_text(encoding="utf-8"))["sets"]
    counted = [_items_found(each, [fact["items"] for fact in facts]) for each in (before, after)]
    return {
        fact["name"]: {"items": fact["items"], "too_short": fact["too_short"], "overlapping_before": old, "overlapping_after": new}
        for fact, old, new in zip(facts, *counted, strict=True)
    }


def finder(sets: Sequence[LabelledSet], config: ContaminationConfig) -> Callable[[str], bool]:
    """Whether a text shares a run with an item of the sets: what the corpus may not hold, conversations may not either.

    No text does where contamination is merely reported. Whether many others hold the run, as `max_documents` asks, isn't looked at.

    Raises: what reading the sets raises.
    """
    if config.action not in ("drop", "cut"):
        return lambda text: False
    entries, _, sizes = _index(sets, config)
    wanted = np.unique(entries["code"])
    return lambda text: len(_hits(text, wanted, sizes, 0)) > 0


def index_sets(config: ContaminationConfig, sets: Sequence[LabelledSet], _: None, out: Path) -> dict[str, Any]:
    """Writes `index.npy`, every run of words with its item, and `sets.json`."""
    entries, facts, sizes = _index(sets, config)
    np.save(out / "index.npy", entries)
    write_json(out / "sets.json", {"sets": facts, "sizes": sizes})
    return {"items": sum(fact["items"] for fact in facts)}


def _index(sets: Sequence[LabelledSet], config: ContaminationConfig) -> tuple[NDArray[np.void], list[dict[str, Any]], list[int]]:
    """Every run of words with its item, in order, items being numbered through all sets; facts of each set; lengths of runs in words."""
    entries, facts, sizes, item = list[NDArray[np.void]](), list[dict[str, Any]](), set[int](), 0
    for each in sets:
        first, too_short = item, 0
        for text in texts(each):
            words = _words(text)
            size = min(len(words), config.max_ngram_words)
            if size >= config.min_ngram_words:
                sizes.add(size)
                codes = np.unique(ngram_codes(word_codes(words), size))
                entries.append(np.array([(code, item) for code in codes], ENTRY))
            else:
                too_short += 1
            item += 1
        facts.append({"name": each.name, "items": item - first, "too_short": too_short})
    return np.sort(np.concatenate(entries or [np.empty(0, ENTRY)]), order=["code", "item"]), facts, sorted(sizes)


def scan_shard(value: tuple[str, str], out: Path) -> dict[str, Any]:
    """Writes `hits.npy`, the runs that a shard's documents share with the sets, and `ids.json`, which documents those are."""
    shard, index = value
    wanted = np.unique(np.load(Path(index) / "index.npy")["code"])
    sizes = json.loads((Path(index) / "sets.json").read_text(encoding="utf-8"))["sizes"]
    ids, hits = list[str](), list[Hits]()
    for document in read_shards(Path(shard)):
        found = _hits(document.text, wanted, sizes, len(ids))
        if len(found):
            ids.append(document.id)
            hits.append(found)
    np.save(out / "hits.npy", np.concatenate(hits or [np.empty(0, HIT)]))
    write_json(out / "ids.json", ids)
    return {"documents": len(ids)}


def _words(text: str) -> list[str]:
    return _word.findall(_lower(text))


def _lower(text: str) -> str:
    """In lower case and as long as before: one capital has a small letter of two characters."""
    return text.replace("İ", "i").lower()


def _hits(text: str, wanted: NDArray[np.uint64], sizes: Sequence[int], document: int) -> Hits:
    """The runs of a text that are wanted, by where they start."""
    lower = _lower(text)
    words = _word.findall(lower)
    codes = word_codes(words)
    found = [(place, code, size) for size in sizes for place, code in _wanted(ngram_codes(codes, size), wanted)]
    if not found:
        return np.empty(0, HIT)
    spans = [match.span() for match in _word.finditer(lower)]
    return np.array([(document, code, spans[place][0], spans[place + size - 1][1]) for place, code, size in sorted(found)], HIT)


def _wanted(codes: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> list[tuple[int, int]]:
    if not len(wanted) or not len(codes):
        return []
    known = wanted[np.minimum(np.searchsorted(wanted, codes), len(wanted) - 1)] == codes
    return [(int(place), int(codes[place])) for place in np.flatnonzero(known)]


def _common(shards: Sequence[Hits], max_documents: int | None) -> NDArray[np.uint64]:
    """Runs in more documents than may share one."""
    if max_documents is None:
        return np.empty(0, np.uint64)
    codes = [np.unique(hits[["document", "code"]])["code"] for hits in shards]
    runs, documents = np.unique(np.concatenate(codes or [np.empty(0, np.uint64)]), return_counts=True)
    return runs[documents > max_documents]


def _rulings(ids: Sequence[str], hits: Hits, config: ContaminationConfig) -> Rulings:
    drops, cuts = dict[str, Verdict](), dict[str, Sequence[Span]]()
    borders = np.searchsorted(hits["document"], np.arange(len(ids) + 1))
    for id, first, last in zip(ids, borders[:-1], borders[1:], strict=True):
        spans = _joined([(int(hit["start"]), int(hit["end"])) for hit in hits[first:last]])
        widened = _joined([(start - config.cut_characters, end + config.cut_characters) for start, end in spans], config.cut_characters)
        if config.action == "cut" and len(widened) <= config.max_cuts:
            cuts[id] = [(max(0, start), end) for start, end in widened]
        elif spans and config.action in ("drop", "cut"):
            drops[id] = Verdict(False, "contaminated", float(sum(end - start for start, end in spans)))
    return Rulings(drops, {id: spans for id, spans in cuts.items() if spans})


def _joined(spans: Sequence[Span], gap: int = 0) -> list[Span]:
    """Spans in order; those with no more than a gap between them become one."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _items_found(overlaps: Overlaps, sizes: Sequence[int]) -> list[int]:
    """How many items of each set share a run with some document."""
    index = np.load(overlaps.index.path / "index.npy")
    codes = np.unique(np.concatenate([hits["code"] for _, hits in overlaps.shards] or [np.empty(0, np.uint64)]))
    items = np.unique(index["item"][np.isin(index["code"], codes)])
    borders = np.cumsum([0, *sizes])
    return np.diff(np.searchsorted(items, borders)).tolist()
