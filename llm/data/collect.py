"""Stage collect: text from its sources, as documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm.artifact import write_json
from llm.data.config import CollectConfig, FilesSource, HuggingFaceSource, InstalledSource, Source
from llm.data.document import Books, Document, Quarantined, write_json_lines, write_shards
from llm.data.sources import files, huggingface, installed
from llm.errors import DataError


def snapshot(config: CollectConfig) -> dict[str, Any]:
    """What the sources hold now. Changes exactly when a document appears, changes or disappears."""
    return {"sources": [_snapshot(source) for source in config.sources]}


def collect(config: CollectConfig, out: Path) -> dict[str, Any]:
    """Documents of every source, in the recipe's order, into shards; what can't be read goes to `quarantine.jsonl`.

    Raises: DataError if nothing was found, or more than `max_quarantined_share` of it is unreadable.
    """
    books, quarantined = Books(), list[Quarantined]()
    write_shards(out, _readable(config, books, quarantined))
    write_json_lines(out / "quarantine.jsonl", ({"id": each.id, "reason": each.reason} for each in quarantined))
    books.check()
    write_json(out / "books.json", books.to_dict())
    _refuse_dirt(config, books, quarantined)
    return books.to_dict()


def _readable(config: CollectConfig, books: Books, quarantined: list[Quarantined]) -> Iterator[Document]:
    """Documents that can be worked with; the books and the quarantine fill up on the way."""
    seen: set[str] = set()
    for source in config.sources:
        for found in _read(source):
            checked = _check(found, seen)
            if isinstance(checked, Quarantined):
                books.quarantine(checked.reason)
                quarantined.append(checked)
            else:
                books.keep()
                yield checked


def _check(found: Document | Quarantined, seen: set[str]) -> Document | Quarantined:
    """The document, unless its text can't be one."""
    if isinstance(found, Quarantined):
        return found
    if found.id in seen:
        raise DataError("two documents have one id", value=found.id, remedy="give the folders of collect.sources different names")
    seen.add(found.id)
    reason = _defect(found.text)
    return Quarantined(found.id, reason) if reason else found


def _defect(text: str) -> str:
    """Why this can't be text; empty if it can."""
    if not text.strip():
        return "empty"
    if "\0" in text:
        return "binary"
    return "lone_surrogate" if any("\ud800" <= character <= "\udfff" for character in set(text)) else ""


def _refuse_dirt(config: CollectConfig, books: Books, quarantined: list[Quarantined]) -> None:
    if len(quarantined) > config.max_quarantined_share * books.read:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(books.quarantined.items()))
        raise DataError(
            "too much can't be read",
            value=f"{len(quarantined)} of {books.read} ({reasons}), first {quarantined[0].id}",
            remedy="repair these, or raise collect.max_quarantined_share",
        )
    if not books.kept:
        raise DataError("the corpus is empty", value=f"0 of {books.read} readable", remedy="set collect.sources to where the text is")


def _snapshot(source: Source) -> dict[str, Any]:
    match source:
        case FilesSource():
            return files.snapshot(source)
        case HuggingFaceSource():
            return huggingface.snapshot(source)
        case InstalledSource():
            return installed.snapshot(source)


def _read(source: Source) -> Iterator[Document | Quarantined]:
    match source:
        case FilesSource():
            return files.read(source)
        case HuggingFaceSource():
            return huggingface.read(source)
        case InstalledSource():
            return installed.read(source)
