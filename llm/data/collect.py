"""Stage collect: text from its sources, as documents."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm.artifact import write_json
from llm.data.config import CollectConfig
from llm.data.document import Books, Document, Dropped, Quarantined, concatenate, defect, json_line, write_shards
from llm.data.news import news
from llm.data.parts import Part, Piece, Workshop, link, one_by_one
from llm.data.selection import INDEX, Batch, all_of, chosen_shards, gone_since, joined, within_quota
from llm.data.sources import files, huggingface, installed, sql, warc
from llm.data.sources.config import Source
from llm.data.sources.crawl import reader as crawl
from llm.errors import DataError

CAPPED_WHILE_READING = ("huggingface", "installed")  # their caps end the reading, or count by domain
ANYWHERE = {"files", "warc"}  # the others need what this machine has: variables, packages, a folder to work in, one place to be polite from
APART = {  # how two sources of a kind come to hold different documents
    "crawl": "make them one entry with several seeds, or keep their sites apart by include and exclude",
    "files": "give their folders different names",
    "huggingface": "give their folders different names, or name each split in one of them",
    "installed": "name each domain in one of them",
    "sql": "let their `only` choose different rows",
    "warc": "give their folders different names",
}
INDEX_LINES = 10_000  # held at a time


def snapshot(config: CollectConfig) -> dict[str, Any]:
    """What the sources hold now. Changes exactly when a document appears, changes or disappears."""
    return {"sources": [READERS[source.kind].snapshot(source) for source in config.sources]}


def collect(config: CollectConfig, out: Path, workshop: Workshop, previous: Path | None = None) -> dict[str, Any]:
    """Documents of every source, in the recipe's order, into shards; what can't be read goes to `quarantine.jsonl`.

    `index.parquet` has a line per document: its id, its source, and the size and hash of its text. What is no document of a
    source, such as a dead link of a crawl, goes to `dropped.jsonl`, and so does what the quotas leave out. With `keep_seen`,
    the documents of the `previous` collection that are gone from the sources come last. `log/news.json` says what has changed
    since then, and how many files of which kinds are read by no source.

    Raises: DataError if nothing was found, two documents have one id, or more than `max_quarantined_share` is unreadable.
    """
    by_source, books = _read(config, out, workshop)
    found = joined(batch.index for batches in by_source for batch in batches)
    _refuse_twins(config, by_source, found)
    kept = [batch for source, batches in zip(config.sources, by_source, strict=True) for batch in _within_quota(source, batches)]
    seen = gone_since(previous, _known(found, out), _partly_known(config)) if config.keep_seen and previous else []
    for number, path in enumerate(chosen_shards([*kept, *seen], workshop)):
        link(path, out / f"documents-{number:05d}.parquet")
    index, added = joined(batch.chosen_index for batch in kept), joined(batch.chosen_index for batch in seen)
    pq.write_table(joined([index, added]), out / "index.parquet")
    with (out / "dropped.jsonl").open("a", encoding="utf-8", newline="\n") as dropped:
        dropped.writelines(json_line(over) for batch in kept for over in _over_quota(batch))
    (out / "log").mkdir()
    unread = {"kept_though_gone": len(added), "skipped_files": _skipped(config)}
    write_json(out / "log" / "news.json", news(previous, index) | unread)
    books = _account(books, over_quota=len(found) - len(index), seen=len(added))
    write_json(out / "books.json", books.to_dict())
    if not books.kept:
        reasons = f" ({_listed(books.dropped + books.quarantined)})" if books.read else ""
        remedy = "set collect.sources to where the text is"
        raise DataError("the corpus is empty", value=f"0 of {books.read} readable{reasons}", remedy=remedy)
    return books.to_dict()


def _read(config: CollectConfig, out: Path, workshop: Workshop) -> tuple[list[list[Batch]], Books]:
    """The documents of each source, and the books of all of them.

    Raises: DataError if more than `max_quarantined_share` is unreadable.
    """
    pieces = [[_piece(source, piece) for piece in READERS[source.kind].pieces(source, workshop.folder.parent)] for source in config.sources]
    by_source = _made(config.sources, pieces, workshop)
    parts = [part for each in by_source for part in each]
    for name in ("dropped.jsonl", "quarantine.jsonl"):
        concatenate((part.path / name for part in parts), out / name)
    books = Books.sum(part.counts for part in parts)
    _refuse_dirt(config, books, out)
    return [[all_of(part) for part in each] for each in by_source], books


def _made(sources: Sequence[Source], pieces: Sequence[Sequence[Piece]], workshop: Workshop) -> list[list[Part]]:
    """The pieces of each source, read: those that any machine can read on all of them, the others by this process."""
    made: dict[int, list[Part]] = {}
    for shop, chosen in ((workshop, ANYWHERE), (replace(workshop, spread=one_by_one), READERS.keys() - ANYWHERE)):
        here = [number for number, source in enumerate(sources) if source.kind in chosen]
        waiting = iter(shop.made("read", read_piece, [piece for number in here for piece in pieces[number]]))
        made |= {number: list(islice(waiting, len(pieces[number]))) for number in here}
    return [made[number] for number in range(len(sources))]


def _piece(source: Source, piece: Piece) -> Piece:
    """A piece with its source; a quota that is applied later doesn't shape it."""
    settings = source.model_dump(mode="json", exclude=set() if source.kind in CAPPED_WHILE_READING else {"max_documents", "max_bytes"})
    return Piece((source, piece.value), {"source": settings, "piece": piece.identity})


def _within_quota(source: Source, batches: list[Batch]) -> list[Batch]:
    return batches if source.kind in CAPPED_WHILE_READING else within_quota(batches, source.max_documents, source.max_bytes)


def _over_quota(batch: Batch) -> Iterator[dict[str, str]]:
    """A line for each document that a quota leaves out."""
    for id in batch.index.filter(pa.array(~batch.chosen))["id"].to_pylist():
        yield {"id": id, "reason": "over_quota"}


def _skipped(config: CollectConfig) -> dict[str, int]:
    """Files that no source reads, by suffix."""
    total = sum((files.skipped(source) for source in config.sources if source.kind == "files"), Counter[str]())
    return dict(sorted(total.items()))


def _known(found: pa.Table, out: Path) -> pa.Array:
    """Ids of all that the sources hold, readable or not; behind what is dropped, such as a dead link, they hold nothing."""
    with (out / "quarantine.jsonl").open(encoding="utf-8") as lines:
        return pa.array([*found["id"].to_pylist(), *(json.loads(line)["id"] for line in lines)], pa.string())


def _partly_known(config: CollectConfig) -> set[str]:
    """Kinds of sources of which a cap hides documents, so that one that isn't found need not be gone."""
    capped = [source for source in config.sources if source.kind in CAPPED_WHILE_READING and (source.max_documents or source.max_bytes)]
    capped += [source for source in config.sources if source.kind == "warc" and source.max_files]
    return {source.kind for source in capped}


def _account(books: Books, *, over_quota: int, seen: int) -> Books:
    """The books after quotas, and with what is kept though it is gone from the sources."""
    dropped = Counter({"over_quota": over_quota} if over_quota else {})
    books = Books(books.read + seen, books.kept - over_quota + seen, books.dropped + dropped, books.quarantined)
    books.check()
    return books


def read_piece(value: tuple[Source, Any], out: Path) -> dict[str, Any]:
    """The documents of one piece of a source, as shards with their index, and what it drops and quarantines; its books."""
    source, piece = value
    books = Books()
    with (
        (out / "dropped.jsonl").open("w", encoding="utf-8", newline="\n") as dropped,
        (out / "quarantine.jsonl").open("w", encoding="utf-8", newline="\n") as quarantine,
        pq.ParquetWriter(out / "index.parquet", INDEX) as index,
    ):
        found = _without_drops(READERS[source.kind].read(source, piece), books, dropped)
        write_shards(out, _readable(found, books, quarantine, index))
    books.check()
    return books.to_dict()


def _without_drops(found: Iterable[Document | Dropped | Quarantined], books: Books, dropped: TextIO) -> Iterator[Document | Quarantined]:
    """What is left to be judged; books and the list of drops fill up on the way."""
    for each in found:
        if isinstance(each, Dropped):
            books.drop(each.reason)
            dropped.write(json_line({"id": each.id, "reason": each.reason}))
        else:
            yield each


def _readable(found: Iterable[Document | Quarantined], books: Books, quarantine: TextIO, index: pq.ParquetWriter) -> Iterator[Document]:
    """Documents that can be worked with; books, quarantine and index fill up on the way."""
    lines: list[dict[str, Any]] = []
    for each in found:
        reason = defect(each.text) if isinstance(each, Document) else each.reason
        if reason or isinstance(each, Quarantined):
            books.quarantine(reason)
            quarantine.write(json_line({"id": each.id, "reason": reason}))
        else:
            books.keep()
            text = each.text.encode()
            lines.append({"id": each.id, "source": each.source, "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()})
            if len(lines) == INDEX_LINES:
                index.write_table(pa.Table.from_pylist(lines, INDEX))
                lines.clear()
            yield each
    index.write_table(pa.Table.from_pylist(lines, INDEX))


def _refuse_twins(config: CollectConfig, by_source: list[list[Batch]], found: pa.Table) -> None:
    ids = found["id"]
    if len(pc.unique(ids)) < len(ids):
        twin = next(each["values"] for each in pc.value_counts(ids).to_pylist() if each["counts"] > 1)
        holding = [
            number for number, batches in enumerate(by_source) if any(pc.index(batch.index["id"], twin).as_py() >= 0 for batch in batches)
        ]
        kind = config.sources[holding[0]].kind
        places = " and ".join(f"collect.sources.{number} ({kind})" for number in holding)
        remedy = APART[kind] if len(holding) > 1 else "leave one of them out there"
        raise DataError("two documents have one id", value=f"{twin}, in {places}", remedy=remedy)


def _refuse_dirt(config: CollectConfig, books: Books, out: Path) -> None:
    """The share is of what could have been documents, so drops don't hide damage."""
    held = books.read - books.dropped.total()
    if (dirt := books.quarantined.total()) > config.max_quarantined_share * held:
        with (out / "quarantine.jsonl").open(encoding="utf-8") as lines:
            first = json.loads(next(lines))["id"]
        raise DataError(
            "too much can't be read",
            value=f"{dirt} of {held} ({_listed(books.quarantined)}), first {first}",
            remedy="repair these, or raise collect.max_quarantined_share",
        )


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))


class Reader(Protocol):
    """What the module of a kind of source offers."""

    def snapshot(self, source: Any, /) -> dict[str, Any]:
        """What the source holds now."""

    def pieces(self, source: Any, home: Path, /) -> list[Piece]:
        """The source in pieces that can be read apart; what must survive between runs goes below `home`."""

    def read(self, source: Any, piece: Any, /) -> Iterator[Document | Dropped | Quarantined]:
        """The documents of the piece with this value, and what there is no document of."""


READERS: dict[str, Reader] = {
    "crawl": crawl,
    "files": files,
    "huggingface": huggingface,
    "installed": installed,
    "sql": sql,
    "warc": warc,
}
