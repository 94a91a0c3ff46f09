"""Stage collect: text from its sources, as documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm.artifact import write_json
from llm.data.config import CollectConfig
from llm.data.document import Books, Document, Quarantined, concatenate, write_json_lines, write_shards
from llm.data.parts import Piece, Workshop, link
from llm.data.sources import files, huggingface, installed, warc
from llm.data.sources.config import Source
from llm.data.sources.crawl import reader as crawl
from llm.errors import DataError

INDEX = pa.schema([("id", pa.string()), ("source", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())])


def snapshot(config: CollectConfig) -> dict[str, Any]:
    """What the sources hold now. Changes exactly when a document appears, changes or disappears."""
    return {"sources": [READERS[source.kind].snapshot(source) for source in config.sources]}


def collect(config: CollectConfig, out: Path, workshop: Workshop) -> dict[str, Any]:
    """Documents of every source, in the recipe's order, into shards; what can't be read goes to `quarantine.jsonl`.

    `index.parquet` has a line per document: its id, its source, and the size and hash of its text.

    Raises: DataError if nothing was found, two documents have one id, or more than `max_quarantined_share` is unreadable.
    """
    pieces = [
        Piece((source, piece.value), {"source": source.model_dump(mode="json"), "piece": piece.identity})
        for source in config.sources
        for piece in READERS[source.kind].pieces(source, workshop.folder.parent)
    ]
    parts = workshop.made("read", read_piece, pieces)
    for number, path in enumerate(path for part in parts for path in part.files("documents-*.parquet")):
        link(path, out / f"documents-{number:05d}.parquet")
    pq.write_table(
        pa.concat_tables([pq.read_table(part.path / "index.parquet") for part in parts] or [INDEX.empty_table()]), out / "index.parquet"
    )
    concatenate((part.path / "quarantine.jsonl" for part in parts), out / "quarantine.jsonl")
    books = Books.sum(part.counts for part in parts)
    books.check()
    write_json(out / "books.json", books.to_dict())
    _refuse_dirt(config, books, out)
    _refuse_twins(out)
    return books.to_dict()


def read_piece(value: tuple[Source, Any], out: Path) -> dict[str, Any]:
    """The documents of one piece of a source, as shards with their index, and its quarantine; its books."""
    source, piece = value
    books, quarantined, index = Books(), list[Quarantined](), list[dict[str, Any]]()
    write_shards(out, _readable(READERS[source.kind].read(source, piece), books, quarantined, index))
    write_json_lines(out / "quarantine.jsonl", ({"id": each.id, "reason": each.reason} for each in quarantined))
    pq.write_table(pa.Table.from_pylist(index, INDEX), out / "index.parquet")
    books.check()
    return books.to_dict()


def _readable(
    found: Iterable[Document | Quarantined], books: Books, quarantined: list[Quarantined], index: list[dict[str, Any]]
) -> Iterator[Document]:
    """Documents that can be worked with; books, quarantine and index fill up on the way."""
    for each in found:
        reason = _defect(each.text) if isinstance(each, Document) else each.reason
        if reason or isinstance(each, Quarantined):
            books.quarantine(reason)
            quarantined.append(Quarantined(each.id, reason))
        else:
            books.keep()
            text = each.text.encode()
            index.append({"id": each.id, "source": each.source, "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()})
            yield each


def _refuse_twins(out: Path) -> None:
    ids = pq.read_table(out / "index.parquet", columns=["id"])["id"]
    if len(pc.unique(ids)) < len(ids):
        twin = next(each["values"] for each in pc.value_counts(ids).to_pylist() if each["counts"] > 1)
        raise DataError("two documents have one id", value=twin, remedy="give the folders of collect.sources different names")


def _defect(text: str) -> str:
    """Why this can't be text; empty if it can."""
    if not text.strip():
        return "empty"
    if "\0" in text:
        return "binary"
    return "lone_surrogate" if any("\ud800" <= character <= "\udfff" for character in set(text)) else ""


def _refuse_dirt(config: CollectConfig, books: Books, out: Path) -> None:
    if (dirt := books.quarantined.total()) > config.max_quarantined_share * books.read:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(books.quarantined.items()))
        with (out / "quarantine.jsonl").open(encoding="utf-8") as lines:
            first = json.loads(next(lines))["id"]
        raise DataError(
            "too much can't be read",
            value=f"{dirt} of {books.read} ({reasons}), first {first}",
            remedy="repair these, or raise collect.max_quarantined_share",
        )
    if not books.kept:
        raise DataError("the corpus is empty", value=f"0 of {books.read} readable", remedy="set collect.sources to where the text is")


class Reader(Protocol):
    """What the module of a kind of source offers."""

    def snapshot(self, source: Any, /) -> dict[str, Any]:
        """What the source holds now."""

    def pieces(self, source: Any, home: Path, /) -> list[Piece]:
        """The source in pieces that can be read apart; what must survive between runs goes below `home`."""

    def read(self, source: Any, piece: Any, /) -> Iterator[Document | Quarantined]:
        """The documents of the piece with this value."""


READERS: dict[str, Reader] = {"crawl": crawl, "files": files, "huggingface": huggingface, "installed": installed, "warc": warc}
