"""Stage audit: what the corpus is made of, as figures, as a page and as a data card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llm.artifact import write_json
from llm.data.audit.association import associations, vectors
from llm.data.audit.card import write_card
from llm.data.audit.config import AuditConfig
from llm.data.audit.page import write_page
from llm.data.audit.samples import dropped_samples, kept_samples
from llm.data.audit.tally import tally_shard, total
from llm.data.audit.topics import topics
from llm.data.audit.words import TESTS
from llm.data.document import read_shards
from llm.data.parts import Workshop, shards
from llm.data.split import SPLITS

STAGES = ("collect", "clean", "dedup")
TESTED = frozenset(word for sets in TESTS.values() for words in sets for word in words)


def audit(parents: Mapping[str, Path], out: Path, config: AuditConfig, name: str, workshop: Workshop) -> dict[str, Any]:
    """`audit.json`, `audit.html` and `README.md`, the data card, from the folders of the data stages by role.

    Counts are of every kept document, of all splits. Topics and word vectors come from a sample by the hash of the ids.
    """
    deduped = parents["deduped"]
    pieces = [piece for split in SPLITS for piece in shards(deduped, f"{split}-*.parquet")]
    parts = workshop.made("tally", partial(tally_shard, config), pieces, settings=config.model_dump(mode="json"))
    found = total((json.loads((part.path / "tally.json").read_text()) for part in parts), config.close_documents)
    close = [text[: config.close_characters] for text in _texts(deduped, {id for _, id in found.pop("close")})]
    books = {stage: _json(parents[role] / "books.json") for stage, role in zip(STAGES, ("collected", "cleaned", "deduped"), strict=True)}
    result = {
        "name": config.name or name,
        "license": config.license,
        **found,
        "books": books,
        "rows": _json(parents["tokenized"] / "rows.json"),
        "looked_at_closely": len(close),
        "topics": topics(close, config.topics),
        "associations": associations(vectors(close, TESTED)),
        "kept_samples": kept_samples(deduped, config),
        "dropped_samples": dropped_samples(parents["collected"], parents["cleaned"], deduped, config),
    }
    write_json(out / "audit.json", result)
    write_page(result, out / "audit.html")
    write_card(result, out / "README.md")
    return {"documents": found["count"]["documents"], "bytes": found["count"]["bytes"]}


def _texts(deduped: Path, ids: set[str]) -> Iterator[str]:
    return (document.text for split in SPLITS for document in read_shards(deduped, split) if document.id in ids)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
