"""Tables: JSON lines, CSV, Parquet and Arrow, each read row by row as documents."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from llm.data.document import Document, Quarantined
from llm.data.sources.decoding import SAMPLE_BYTES, detected, marked
from llm.data.sources.limits import Found, Refused, lines
from llm.data.sources.opened import BUFFER_BYTES, Opened, seekable
from llm.data.sources.record import FACTS, record_document

ROWS = 8  # converted at a time; each may be as large as a document may be
ROW_BYTES = 64  # what a row costs beside its text
ARROW_MARK = b"ARROW1"


def json_lines(file: Opened) -> Found:
    """A document per line; the number in its id is that of its line. Source: https://jsonlines.org; RFC 8259, section 8.1: UTF-8."""
    max_bytes = file.source.limits.max_document_bytes
    for number, line in enumerate(lines(_as_utf8(file), max_bytes)):
        if line is None:
            yield Quarantined(f"{file.id}#{number}", "too_large")
        elif line.strip():
            yield _json(file, number, line)


def _json(file: Opened, number: int, line: bytes) -> Document | Quarantined:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return Quarantined(f"{file.id}#{number}", "corrupt_line")
    return _record(file, number, record) if isinstance(record, dict) else Quarantined(f"{file.id}#{number}", "no_text_field")


def comma_separated(file: Opened) -> Found:
    """A document per row of .csv."""
    return _table(file, ",")


def tab_separated(file: Opened) -> Found:
    """A document per row of .tsv."""
    return _table(file, "\t")


def _table(file: Opened, delimiter: str) -> Found:
    """A document per row after the first, which names the columns. After damage, it goes on with the next line.

    Source: RFC 4180.
    """
    max_bytes = file.source.limits.max_document_bytes
    csv.field_size_limit(max_bytes)
    rows = _Rows(lines(_as_utf8(file, file.source.min_encoding_confidence), max_bytes), max_bytes, delimiter)
    header = first if isinstance(first := next(rows, None), list) else []
    for number, row in enumerate(rows):
        if isinstance(row, str):
            yield Quarantined(f"{file.id}#{number}", row)
        elif row and len(row) != len(header):
            yield Quarantined(f"{file.id}#{number}", "corrupt_record")
        elif row:
            yield _record(file, number, dict(zip(header, row, strict=True)))


class _Rows:
    """Rows of text, each made of lines that together may not be too long; in the place of a bad one, what is wrong with it."""

    def __init__(self, lines: Iterator[bytes | None], max_bytes: int, delimiter: str) -> None:
        self._lines, self._max_bytes, self._delimiter = lines, max_bytes, delimiter

    def __iter__(self) -> Iterator[list[str] | str]:
        return self

    def __next__(self) -> list[str] | str:
        try:
            return next(csv.reader(self._of_one_row(), delimiter=self._delimiter, strict=True))
        except Refused as refused:
            return refused.reason
        except csv.Error:
            return "corrupt_record"

    def _of_one_row(self) -> Iterator[str]:
        size_bytes = 0
        for line in self._lines:
            size_bytes += len(line or b"")
            if line is None or size_bytes > self._max_bytes:
                raise Refused("too_large")
            yield line.decode("utf-8", "surrogateescape")  # a row with such bytes is quarantined later, and no other


def parquet(file: Opened) -> Found:
    """A document per row, page by page, so that a large row group is never held."""
    table = pq.ParquetFile(seekable(file), buffer_size=BUFFER_BYTES, pre_buffer=False)
    columns = _columns(file, table.schema_arrow)
    return _rows(file, table.iter_batches(ROWS, columns=columns, use_threads=False))


def arrow(file: Opened) -> Found:
    """A document per row of Arrow's interprocess format, with an index (.arrow and .feather files) or as a stream.

    Source: https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format.
    """
    options = pa.ipc.IpcReadOptions(use_threads=False)
    if file.stream.peek(len(ARROW_MARK)).startswith(ARROW_MARK):  # type: ignore[attr-defined]
        table = pa.ipc.open_file(seekable(file), options=options)
        batches = (table.get_batch(number) for number in range(table.num_record_batches))
    else:
        batches = table = pa.ipc.open_stream(file.stream, options=options)
    columns = _columns(file, table.schema)
    return _rows(file, (rows for batch in batches for rows in _slices(batch, columns)))


def _columns(file: Opened, schema: pa.Schema) -> list[str]:
    """Those of a table's columns that make documents.

    Raises: Refused if none of them holds the text.
    """
    if file.source.text_field not in schema.names:
        raise Refused("no_text_field")
    return [name for name in dict.fromkeys((file.source.text_field, *FACTS)) if name in schema.names]


def _slices(batch: pa.RecordBatch, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """A few rows at a time of a batch whose offsets all point into it."""
    chosen = batch.select(columns)
    chosen.validate(full=True)
    return (chosen.slice(start, ROWS) for start in range(0, chosen.num_rows, ROWS))


def _rows(file: Opened, batches: Iterator[pa.RecordBatch]) -> Found:
    """A document for each row of the batches, paid for like the output of a decoder: a dictionary can hold little and say much."""
    number = 0
    for batch in batches:
        for row in _python_rows(batch):
            found = _record(file, number, row) if row is not None else Quarantined(f"{file.id}#{number}", "undecodable")
            file.budget.spend(ROW_BYTES + sum(len(value) for value in (row or {}).values() if isinstance(value, str)))
            yield found
            number += 1


def _python_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | None]:
    """Rows of a batch; None for one whose text isn't UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield None
        else:
            for start in range(batch.num_rows):
                yield from _python_rows(batch.slice(start, 1))


def _record(file: Opened, number: int, record: dict[str, Any]) -> Document | Quarantined:
    source, meta = file.source, {"path": file.name}
    return record_document(source, f"{file.id}#{number}", record, text_field=source.text_field, meta=meta)


def _as_utf8(file: Opened, min_confidence: float | None = None) -> BinaryIO:
    """The stream without a byte order mark, translated to UTF-8 if it is something else: by its mark, or from a confidence on."""
    head = file.stream.peek(SAMPLE_BYTES)[:SAMPLE_BYTES]  # type: ignore[attr-defined]
    encoding = marked(head) or ("utf-8" if min_confidence is None else _encoding(head, min_confidence))
    if encoding == "utf-8-sig":
        file.stream.read(len(codecs.BOM_UTF8))
    return file.stream if encoding.startswith("utf-8") else io.BufferedReader(_Translated(file.stream, encoding), BUFFER_BYTES)


def _encoding(head: bytes, min_confidence: float) -> str:
    """UTF-8 if that can be, or if nothing else is probable: then single records are quarantined."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # which doesn't mind a character that is cut at the end
        return "utf-8"
    except UnicodeDecodeError:
        pass
    try:
        return detected(head, min_confidence)
    except Refused:
        return "utf-8"


class _Translated(io.RawIOBase):
    """Bytes of another encoding, as UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        super().__init__()
        self._text = io.TextIOWrapper(stream, encoding, "replace", newline="")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._text.read(max(1, len(buffer) // 4)).encode("utf-8", "surrogatepass")
        buffer[: len(data)] = data
        return len(data)
