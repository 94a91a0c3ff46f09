"""Texts to look at: a random few that were kept, and a random few of every reason for which others were not.

What clean masks, or would have masked had it not dropped the text before, isn't shown either.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm.data.audit.config import AuditConfig
from llm.data.document import Document, read_shards
from llm.data.filters.config import PrivacyConfig
from llm.data.filters.privacy import FINDERS, mask
from llm.data.hashing import share
from llm.data.split import SPLITS
from llm.data.steps import Edited

ALL_KINDS = PrivacyConfig(mask=tuple(FINDERS))


def kept_samples(deduped: Path, config: AuditConfig) -> list[dict[str, str]]:
    """The kept documents with the smallest hashes of their ids."""
    documents = (document for split in SPLITS for document in read_shards(deduped, split))
    chosen = heapq.nsmallest(config.samples, documents, key=lambda document: share(document.id, "sample"))
    return [{"id": document.id, "text": _shown(document, config.sample_characters)} for document in chosen]


def dropped_samples(collected: Path, cleaned: Path, deduped: Path, config: AuditConfig) -> dict[str, list[dict[str, str]]]:
    """For every reason, the dropped documents with the smallest hashes of their ids, as they were collected."""
    chosen: dict[str, list[tuple[float, str]]] = {}
    for id, reason in _dropped(cleaned, deduped):
        best = chosen.setdefault(reason, [])
        best.append((share(id, "sample"), id))
        if len(best) > 64 + config.samples:
            best[:] = heapq.nsmallest(config.samples, best)
    ids = {reason: [id for _, id in heapq.nsmallest(config.samples, best)] for reason, best in sorted(chosen.items())}
    texts = _texts(collected, {id for each in ids.values() for id in each}, config.sample_characters)
    return {reason: [{"id": id, "text": texts[id]} for id in each] for reason, each in ids.items() if each}


def _dropped(cleaned: Path, deduped: Path) -> Iterator[tuple[str, str]]:
    """(id, reason) of what clean and dedup dropped."""
    for record in _lines(cleaned / "dropped.jsonl"):
        yield record["id"], record["reason"]
    for record in _lines(deduped / "clusters.jsonl"):
        yield from record["dropped"].items()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _texts(collected: Path, ids: Iterable[str], characters: int) -> dict[str, str]:
    wanted = set(ids)
    return {document.id: _shown(document, characters) for document in read_shards(collected) if document.id in wanted}


def _shown(document: Document, characters: int) -> str:
    """The start of the text as it is put on a page: masked first, since half a key is no longer found; programs like prose."""
    outcome = mask(replace(document, domain="text", language=""), ALL_KINDS)
    return (outcome.document if isinstance(outcome, Edited) else document).text[:characters]
