"""Text files on disk, plain or compressed."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from llm.data.document import Document, Quarantined
from llm.data.hashing import fingerprints, share
from llm.data.parts import Piece
from llm.data.sources.config import FilesSource
from llm.errors import RecipeError, SourceError

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
PIECE_BYTES, PIECE_FILES = 32_000_000, 10_000
FACTS = ("url", "language", "license", "created")

Found = Iterator[Document | Quarantined]


def snapshot(source: FilesSource) -> dict[str, Any]:
    """Name, size and sha256 of every file: a touched file changes nothing, a changed byte does."""
    return {"kind": source.kind, "files": fingerprints(_files(source))}


def pieces(source: FilesSource, home: Path) -> list[Piece]:
    """The files in groups of about `PIECE_BYTES`, in the order of their names."""
    return [Piece([(name, str(path)) for name, path in group], fingerprints(group)) for group in _groups(_files(source))]


def _groups(files: list[tuple[str, Path]]) -> Iterator[list[tuple[str, Path]]]:
    """Neighbours by name. Whether a group ends with a file is drawn by the hash of its name, so a new file changes one group.

    Source: content-defined chunking, Muthitacharoen et al. 2001, A low-bandwidth network file system.
    """
    group: list[tuple[str, Path]] = []
    for name, path in files:
        group.append((name, path))
        if share(name, "piece") < path.stat().st_size / PIECE_BYTES or len(group) >= PIECE_FILES:
            yield group
            group = []
    if group:
        yield group


def read(source: FilesSource, piece: list[tuple[str, str]]) -> Found:
    """The documents in the order of the file names; a file or a line that can't be read is quarantined.

    Ids are `files:<path from the source's folder on>`, so the folder may move.
    """
    for name, path in ((name, Path(path)) for name, path in piece):
        try:
            with _opened(path) as stream:
                yield from READERS[_kind(path)](source, name, stream)
        except UnicodeDecodeError:
            yield Quarantined(f"files:{name}", "undecodable")
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # the machine's fault, not the file's
                raise SourceError("a file can't be read", value=f"{name}, {error.strerror}", remedy="make it readable") from error
            yield Quarantined(f"files:{name}", "corrupt")


def record_document(source_kind: str, id: str, record: dict[str, Any], *, text_field: str, domain: str) -> Document | Quarantined:
    """A document from one record of a table, or what is wrong with it."""
    text = record.get(text_field)
    if not isinstance(text, str):
        return Quarantined(id, "no_text_field")
    facts = {name: record[name] for name in FACTS if isinstance(record.get(name), str)}
    return Document(id=id, text=text, source=source_kind, domain=domain, **facts)


def _files(source: FilesSource) -> list[tuple[str, Path]]:
    """(name from the source's folder on, path) of every file that the source covers, by name.

    Raises: SourceError if the path is missing; RecipeError if it is one file of an unknown kind.
    """
    root = Path(os.path.abspath(Path(source.path).expanduser()))
    if root.is_file():
        if _kind(root) not in READERS:
            raise RecipeError("unknown kind of file", value=root.name, remedy=f"set collect.sources.path to one of {' '.join(READERS)}")
        return [(root.name, root)]
    if not root.is_dir():
        raise SourceError(
            "no such file or folder", transient=False, value=source.path, remedy="set collect.sources.path to one that exists"
        )
    paths = (path for path in root.rglob("*") if _kind(path) in READERS and path.is_file())
    matching = (path for path in paths if any(fnmatch(path.name, pattern) for pattern in source.patterns))
    return sorted((path.relative_to(root.parent).as_posix(), path) for path in matching)


def _kind(path: Path) -> str:
    """The suffix that says how to read a file, below any compression."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return inner.suffix.lower()


def _opened(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed by Arrow, which notices a missing end (zstandard's own reader does not)."""
    compression = COMPRESSED.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    return io.BufferedReader(pa.input_stream(str(path), compression=compression))


def _text(source: FilesSource, name: str, stream: BinaryIO) -> Found:
    yield _whole(source, name, stream)


def _html(source: FilesSource, name: str, stream: BinaryIO) -> Found:
    """Kept as it is; clean looks for the main text."""
    yield _whole(source, name, stream, meta={"format": "html"})


def _python(source: FilesSource, name: str, stream: BinaryIO) -> Found:
    yield _whole(source, name, stream, language="python", meta={"path": name})


def _whole(source: FilesSource, name: str, stream: BinaryIO, **facts: Any) -> Document:
    """The whole file as one document; a byte order mark is no part of the text."""
    text = stream.read().decode("utf-8-sig")
    return Document(id=f"files:{name}", text=text, source=source.kind, domain=source.domain, **facts)


def _json_lines(source: FilesSource, name: str, stream: BinaryIO) -> Found:
    for number, line in enumerate(stream):
        id = f"files:{name}#{number}"
        try:
            record = json.loads(line)
        except ValueError:
            yield Quarantined(id, "corrupt_line")
            continue
        yield _record(source, id, record) if isinstance(record, dict) else Quarantined(id, "no_text_field")


def _parquet(source: FilesSource, name: str, stream: BinaryIO) -> Found:
    file = pq.ParquetFile(stream if stream.seekable() else pa.BufferReader(stream.read()))
    number = 0
    for batch in file.iter_batches(batch_size=256):
        for record in batch.to_pylist():
            yield _record(source, f"files:{name}#{number}", record)
            number += 1


def _record(source: FilesSource, id: str, record: dict[str, Any]) -> Document | Quarantined:
    return record_document(source.kind, id, record, text_field=source.text_field, domain=source.domain)


READERS: dict[str, Callable[[FilesSource, str, BinaryIO], Found]] = {
    ".txt": _text,
    ".md": _text,
    ".rst": _text,
    ".html": _html,
    ".htm": _html,
    ".py": _python,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
