"""Counts over the documents of one shard, and their sum."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llm.artifact import write_json
from llm.data.audit.config import AuditConfig
from llm.data.audit.words import WORD
from llm.data.document import Document, read_documents
from llm.data.hashing import share
from llm.data.quality.code import is_code

DIMENSIONS = ("language", "domain", "license", "year", "source")

_sentence = re.compile(r"[^.!?\n]+[.!?]?")


def tally_shard(config: AuditConfig, shard: str, out: Path) -> dict[str, Any]:
    """What can be counted document by document: lengths, origins, groups of people and the sentiment of sentences about them."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    groups = {word: name for name, words in config.groups.items() for word in words}
    analyzer = SentimentIntensityAnalyzer()
    count = Counter[str]()
    sizes: dict[str, Counter[str]] = {name: Counter() for name in DIMENSIONS}
    lengths, named, said = Counter[str](), Counter[str](), Counter[str]()
    feelings: dict[str, list[float]] = {name: [] for name in config.groups}
    for document in read_documents(Path(shard)):
        size = len(document.text.encode())
        count.update({"documents": 1, "bytes": size, "characters": len(document.text)})
        lengths[str(len(document.text).bit_length() - 1)] += 1
        for name, value in facts(document).items():
            sizes[name][value] += size
        words = Counter(groups[word] for word in WORD.findall(document.text.lower()) if word in groups)
        named.update(words.keys())
        said.update(words)
        if words and not is_code(document):
            for name, sentence in about(document.text, groups):
                if len(feelings[name]) < config.sentences_per_group:
                    feelings[name].append(analyzer.polarity_scores(sentence)["compound"])
    close = sorted((share(document.id, "audit"), document.id) for document in read_documents(Path(shard)))[: config.close_documents]
    result = {
        "count": count,
        "lengths": lengths,
        "sizes": sizes,
        "documents_naming": named,
        "mentions": said,
        "sentiment": {name: {"sentences": len(values), "sum": round(sum(values), 6)} for name, values in feelings.items()},
        "close": close,
    }
    write_json(out / "tally.json", result)
    return {}


def facts(document: Document) -> dict[str, str]:
    """Where the document comes from, by dimension; `unknown` where nobody said."""
    found = {name: getattr(document, name) for name in ("language", "domain", "license", "source")} | {"year": document.created[:4]}
    return {name: value or "unknown" for name, value in found.items()}


def about(text: str, groups: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(group, sentence) for every sentence that names a group."""
    for sentence in _sentence.findall(text):
        for name in sorted({groups[word] for word in WORD.findall(sentence.lower()) if word in groups}):
            yield name, sentence.strip()[:500]


def total(tallies: Iterable[Mapping[str, Any]], close_documents: int) -> dict[str, Any]:
    """The tallies of all shards as one."""
    summed: dict[str, Any] = {"sizes": {name: Counter() for name in DIMENSIONS}, "sentiment": {}, "close": []}
    for name in ("count", "lengths", "documents_naming", "mentions"):
        summed[name] = Counter()
    for tally in tallies:
        for name in ("count", "lengths", "documents_naming", "mentions"):
            summed[name].update(tally[name])
        for name, sizes in tally["sizes"].items():
            summed["sizes"][name].update(sizes)
        for group, part in tally["sentiment"].items():
            whole = summed["sentiment"].setdefault(group, {"sentences": 0, "sum": 0.0})
            whole["sentences"] += part["sentences"]
            whole["sum"] += part["sum"]
        summed["close"] = sorted([*summed["close"], *(tuple(each) for each in tally["close"])])[:close_documents]
    return summed
