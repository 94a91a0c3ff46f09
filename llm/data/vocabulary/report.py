"""What a vocabulary makes of texts: how many bytes a token holds, how many tokens a word takes, and what it doesn't know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm.data.document import Document
from llm.data.tokenizer import Tokenizer
from llm.data.vocabulary.words import Encoded

LONGEST = 20
Counts = dict[str, int]


@dataclass
class Sizes:
    """Counts by domain and language, as `domain/language`."""

    groups: dict[str, Counts] = field(default_factory=dict)

    def add(self, documents: Sequence[Document], encoded: Encoded) -> None:
        """Count a batch."""
        columns = (encoded.text_bytes, encoded.tokens, encoded.words, encoded.unknown, ~encoded.comes_back)
        for document, *counts in zip(documents, *(column.tolist() for column in columns), strict=True):
            group = self.groups.setdefault(f"{document.domain}/{document.language}", dict.fromkeys(NAMES, 0))
            for name, count in zip(NAMES, (1, *counts), strict=True):
                group[name] += int(count)


NAMES = ("documents", "bytes", "tokens", "words", "unknown", "round_trip_failures")


def joined(shards: Iterable[dict[str, Counts]]) -> dict[str, Counts]:
    """The counts of several shards as one."""
    total: dict[str, Counts] = {}
    for shard in shards:
        for group, counts in shard.items():
            _add(total, group, counts)
    return total


def figures(groups: dict[str, Counts]) -> dict[str, Any]:
    """By domain, and by language: bytes per token, fertility (tokens per word between whitespace), share of unknown tokens.

    Source: fertility as in How Good is Your Tokenizer?, https://arxiv.org/abs/2012.15613, section 3.
    """
    domains: dict[str, Counts] = {}
    languages: dict[str, Counts] = {}
    for group, counts in groups.items():
        domain, _, language = group.rpartition("/")
        _add(domains, domain, counts)
        _add(languages, language or "unknown", counts)
    kinds = {"by_domain": domains, "by_language": languages}
    return {kind: {name: _ratios(kept[name]) for name in sorted(kept)} for kind, kept in kinds.items()}


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """The vocabulary alone: kind, size, and its longest tokens."""
    vocabulary = tokenizer.vocabulary
    spelled = {vocabulary.spelled(id) for id in range(tokenizer.vocab_size)} - {None}
    texts = sorted((spelling.decode("utf-8", "replace") for spelling in spelled if spelling), key=lambda text: (-len(text), text))
    return {
        "kind": vocabulary.kind,
        "size": tokenizer.vocab_size,
        "gives_back_every_text": vocabulary.lossless,
        "longest_tokens": texts[:LONGEST],
    }


def _add(total: dict[str, Counts], name: str, counts: Counts) -> None:
    group = total.setdefault(name, dict.fromkeys(NAMES, 0))
    for each in NAMES:
        group[each] += counts[each]


def _ratios(counts: Counts) -> dict[str, float]:
    return counts | {
        "bytes_per_token": round(counts["bytes"] / max(1, counts["tokens"]), 4),
        "fertility": round(counts["tokens"] / max(1, counts["words"]), 4),
        "unknown_share": round(counts["unknown"] / max(1, counts["tokens"]), 6),
    }
