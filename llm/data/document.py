"""The data contract: documents, verdicts on them, and books that balance."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm.errors import DataError

SHARD_BYTES = 32_000_000  # what one core works on for a few seconds, and holds at a time
GROUP_BYTES = 16_000_000
DOCUMENT_BYTES = 1_000  # that a document takes in memory beside its text


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from. `id` is stable: it holds no path of a machine."""

    id: str
    text: str
    source: str
    url: str = ""
    domain: str = "text"
    language: str = ""
    license: str = ""
    created: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


def defect(text: str) -> str:
    """Why this can't be text; empty if it can."""
    if not text.strip():
        return "empty"
    if "\0" in text:
        return "binary"
    return "lone_surrogate" if any("\ud800" <= character <= "\udfff" for character in set(text)) else ""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """What a source could not read as a document, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a source leads to that is no document of it, and why: nothing is damaged."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rule's answer on one document."""

    keep: bool
    reason: str = ""
    score: float = 0.0


KEEP = Verdict(True)


@dataclass
class Books:
    """Counts of one stage: whatever was read is kept, dropped or quarantined, each for a named reason.

    Example:
        >>> books = Books()
        >>> books.keep(); books.drop("too_short"); books.check()
        >>> books.to_dict()
        {'read': 2, 'kept': 1, 'dropped': {'too_short': 1}, 'quarantined': {}}
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)

    def keep(self) -> None:
        self.read, self.kept = self.read + 1, self.kept + 1

    def drop(self, reason: str) -> None:
        self.read += 1
        self.dropped[reason] += 1

    def quarantine(self, reason: str) -> None:
        self.read += 1
        self.quarantined[reason] += 1

    def check(self) -> None:
        """Raises: DataError if documents vanished or appeared from nowhere."""
        accounted = self.kept + self.dropped.total() + self.quarantined.total()
        if self.read != accounted:
            raise DataError("the books don't balance", value=f"{self.read} read, {accounted} accounted for", remedy="report this as a bug")

    def to_dict(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "quarantined": dict(sorted(self.quarantined.items())),
        }

    @classmethod
    def sum(cls, counts: Iterable[dict[str, Any]]) -> Books:
        """The books of several pieces as one."""
        total = cls()
        for each in map(cls.from_dict, counts):
            total.read, total.kept = total.read + each.read, total.kept + each.kept
            total.dropped.update(each.dropped)
            total.quarantined.update(each.quarantined)
        return total

    @classmethod
    def from_dict(cls, counts: dict[str, Any]) -> Books:
        return cls(counts["read"], counts["kept"], Counter(counts["dropped"]), Counter(counts["quarantined"]))


SCHEMA = pa.schema([(each.name, pa.string()) for each in fields(Document)])


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """One parquet file with the documents in the given order; returns how many.

    The bytes are a function of the documents and of pyarrow's version.
    """
    count = 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for group in _groups(documents, GROUP_BYTES):
            writer.write_table(pa.Table.from_pylist([_to_row(document) for document in group], SCHEMA))
            count += len(group)
    return count


def write_shards(folder: Path, documents: Iterable[Document], *, shard_bytes: int = SHARD_BYTES) -> int:
    """`documents-00000.parquet` and so on, each of about `shard_bytes` of text; returns the number of documents."""
    shards = enumerate(_groups(documents, shard_bytes))
    return sum(write_documents(folder / f"documents-{number:05d}.parquet", shard) for number, shard in shards)


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of one parquet file, in order, a few at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):
            yield from map(_from_row, batch.to_pylist())


def read_shards(folder: Path, name: str = "documents") -> Iterator[Document]:
    """The documents of every `<name>-*.parquet` in the folder, in order: `documents`, or after dedup a split."""
    for path in sorted(folder.glob(f"{name}-*.parquet")):
        yield from read_documents(path)


def write_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One compact JSON object per line, keys sorted."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(map(json_line, records))


def json_line(record: dict[str, Any]) -> str:
    """A record as one line of JSON."""
    return json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n"


def concatenate(paths: Iterable[Path], target: Path) -> None:
    """The bytes of several files, one after the other, as one file."""
    with target.open("wb") as joined:
        for path in paths:
            with path.open("rb") as file:
                shutil.copyfileobj(file, joined, 2**20)


def _groups(documents: Iterable[Document], limit_bytes: int) -> Iterator[list[Document]]:
    """Runs of consecutive documents with about `limit_bytes` of text each."""
    group: list[Document] = []
    size_bytes = 0
    for document in documents:
        group.append(document)
        size_bytes += len(document.text) + DOCUMENT_BYTES
        if size_bytes >= limit_bytes:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


def _to_row(document: Document) -> dict[str, str]:
    return {name: getattr(document, name) for name in SCHEMA.names} | {"meta": json.dumps(document.meta, sort_keys=True)}


def _from_row(row: dict[str, Any]) -> Document:
    return Document(**row | {"meta": json.loads(row["meta"])})
