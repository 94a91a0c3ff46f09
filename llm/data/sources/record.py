"""A document from one record of a table, whatever holds the table."""

from __future__ import annotations

from datetime import date
from typing import Any

from llm.data.document import Document, Quarantined
from llm.data.sources.config import FilesSource, HuggingFaceSource, SqlSource

TableSource = FilesSource | SqlSource | HuggingFaceSource
FACTS = ("url", "domain", "language", "license", "created")


def record_document(
    source: TableSource, id: str, record: dict[str, Any], *, text_field: str, meta: dict[str, Any] | None = None
) -> Document | Quarantined:
    """A document from one record of a table, or what is wrong with it. The record's own facts go before the source's."""
    text = record.get(text_field)
    if not isinstance(text, str):
        return Quarantined(id, "no_text_field")
    facts = {name: fact for name in FACTS if (fact := _fact(record.get(name)))}
    if sum(len(each.encode("utf-8", "surrogatepass")) for each in (text, *facts.values())) > _max_bytes(source):
        return Quarantined(id, "too_large")
    if not all(map(_writable, facts.values())):
        return Quarantined(id, "lone_surrogate")
    meta = (meta or {}) | ({"format": "html"} if source.text_format == "html" else {})
    told = {"domain": source.domain, "language": source.language, "license": source.license}
    return Document(id=id, text=text, source=source.kind, meta=meta, **told | facts)


def _max_bytes(source: TableSource) -> int:
    return source.limits.max_document_bytes if isinstance(source, FilesSource) else source.max_document_bytes


def _fact(value: object) -> str:
    """Text as it is, a time in ISO 8601; empty for anything else."""
    if isinstance(value, date):
        return value.isoformat()
    return value if isinstance(value, str) else ""


def _writable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
