"""What was decided for the documents of a shard by looking at all shards, or at examples: drops and cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llm.data.document import KEEP, Document, Verdict
from llm.data.steps import Edited

Span = tuple[int, int]


@dataclass(frozen=True)
class Rulings:
    """Which documents of a shard are dropped, and which spans of characters the others lose, by their ids."""

    drops: Mapping[str, Verdict] = field(default_factory=dict)
    cuts: Mapping[str, Sequence[Span]] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Equal for equal rulings; JSON-able."""
        drops = {id: [verdict.reason, verdict.score] for id, verdict in sorted(self.drops.items())}
        return {"drops": drops, "cuts": {id: [list(span) for span in spans] for id, spans in sorted(self.cuts.items())}}


def merged(rulings: Sequence[Rulings]) -> Rulings:
    """Several rulings on one shard as one; the first to drop a document says why."""
    drops: dict[str, Verdict] = {}
    cuts: dict[str, Sequence[Span]] = {}
    for each in rulings:
        drops = {**each.drops, **drops}
        cuts = {**each.cuts, **cuts}
    return Rulings(drops, cuts)


def carry_out(document: Document, rulings: Rulings) -> Edited | Verdict:
    """The document without what was ruled out of it, or the verdict that drops it.

    Example:
        >>> carry_out(Document("a", "one two three", "x"), Rulings(cuts={"a": [(4, 8)]})).document.text
        'one three'
    """
    if document.id in rulings.drops:
        return rulings.drops[document.id]
    if document.id not in rulings.cuts:
        return KEEP
    ends = [0, *(end for _, end in rulings.cuts[document.id])]
    starts = [*(start for start, _ in rulings.cuts[document.id]), len(document.text)]
    text = "".join(document.text[end:start] for end, start in zip(ends, starts, strict=True))
    return Edited(replace(document, text=text), {"cut_characters": len(document.text) - len(text)})
