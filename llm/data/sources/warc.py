"""Web archives: the pages of WARC and WET files, and a WARC written from pages."""

from __future__ import annotations

import io
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote

from fastwarc.stream_io import GzipWriter
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from llm.data.document import Document, Quarantined
from llm.data.parts import Piece
from llm.data.sources.compression import COMPRESSED
from llm.data.sources.config import WarcSource
from llm.data.sources.decoding import decoded, decoded_page
from llm.data.sources.formats import DAMAGE
from llm.data.sources.isolation import ReaderProcess
from llm.data.sources.limits import Budget, Found, Metered, Refused, whole
from llm.data.sources.storage import Stored, each_stored, identified, identity, opened, refuse_changed, stored
from llm.errors import DataError

ARCHIVES, LISTS = (".warc", ".wet"), (".paths", ".txt")
TYPES = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
PAGES = {"text/html": "html", "application/xhtml+xml": "html", "text/plain": "text"}
HEADER_BYTES = 65_536  # of HTTP, beside what a page may have
LIST_BYTES = 64_000_000  # five times one of Common Crawl
SCAN_BYTES, READ_BYTES, MARK_BYTES = 1_000_000, 65_536, 1_024
GZIP_MARK, PLAIN_MARK = b"\x1f\x8b\x08", b"WARC/1."


def snapshot(source: WarcSource) -> dict[str, Any]:
    """Name, size and checksum of every archive."""
    return {"kind": source.kind, "files": identity(identified(_archives(source)))}


def pieces(source: WarcSource, home: Path) -> list[Piece]:
    """A piece for each archive."""
    return [Piece(file, identity([file])) for file in identified(_archives(source))]


def read(source: WarcSource, piece: Stored) -> Found:
    """The pages of one archive, parsed by a process of its own. Ids are `warc:<archive>#<number of the record>`.

    Raises: SourceError if it can't be reached, or isn't the one that was listed any more.
    """
    with ReaderProcess(source.limits) as process, opened(piece) as stream:
        yield from process.read(parse, source, piece.name, stream, piece.size_bytes)
    refuse_changed(piece)


def parse(source: WarcSource, name: str, stream: BinaryIO, size_bytes: int) -> Found:
    """The HTML and plain text among an archive's records; a record that can't be read is quarantined.

    Records of other types, answers other than 2xx, and content of other types are no documents.

    Source: WARC 1.1, https://iipc.github.io/warc-specifications, section 6 and annex D.
    """
    budget = Budget(source.limits, size_bytes)
    try:
        yield from budget.watched(_pages(source, name, stream, budget))
    except Refused as refused:
        yield Quarantined(f"warc:{name}", refused.reason)


@dataclass(frozen=True)
class _Record:
    """A record that is whole: its place among the others, what its header says, and its content."""

    id: str
    url: str
    created: str
    content_type: str
    is_http: bool
    block: bytes


def _pages(source: WarcSource, name: str, stream: BinaryIO, budget: Budget) -> Found:
    for record in _records(f"warc:{name}", stream, budget):
        if isinstance(record, Quarantined):
            yield record
            continue
        try:
            page = _page(source, name, record, budget)
        except Refused as refused:
            yield Quarantined(record.id, refused.reason)
        except DAMAGE:
            yield Quarantined(record.id, "corrupt_record")
        else:
            yield from [page] if page else []


def _page(source: WarcSource, name: str, record: _Record, budget: Budget) -> Document | None:
    """The page of a record, its transfer and content encodings undone; None if it holds none."""
    content_type, charset, body = record.content_type.partition(";")[0].strip().lower(), "", record.block
    if record.is_http:
        answer = WarcRecord()
        answer.is_http = True
        answer.set_bytes_content(record.block)
        answer.parse_http(auto_decode="all")
        content_type, charset = (answer.http_content_type or "").lower(), answer.http_charset or ""
        if not 200 <= (answer.http_headers.status_code or 0) < 300 or content_type not in PAGES:
            return None
        body = _body(answer, source.limits.max_document_bytes)
        budget.spend(len(body))
    if content_type not in PAGES:
        return None
    form, confidence = PAGES[content_type], source.min_encoding_confidence
    text = decoded_page(body, charset, confidence) if form == "html" or charset else decoded(body, confidence)
    meta = {"path": name, "format": form}
    told = {"domain": source.domain, "language": source.language, "license": source.license}
    return Document(record.id, text, "warc", url=record.url, created=record.created, meta=meta, **told)


def _body(answer: WarcRecord, max_bytes: int) -> bytes:
    parts, size_bytes = list[bytes](), 0
    while part := answer.reader.read(READ_BYTES):
        parts.append(part)
        size_bytes += len(part)
        if size_bytes > max_bytes:
            raise Refused("too_large")
    return b"".join(parts)


def _records(id: str, stream: BinaryIO, budget: Budget) -> Iterator[_Record | Quarantined]:
    """The records of a stream; after damage, it goes on with the next record that can be found."""
    number, expected = 0, False
    start: int | None = 0
    while start is not None:
        stream.seek(start)
        begin, last = start, None
        try:
            for record in ArchiveIterator(stream, record_types=TYPES, parse_http=False):
                last = record.stream_pos
                number += 1
                if record.content_length > budget.limits.max_document_bytes + HEADER_BYTES:
                    yield Quarantined(f"{id}#{number - 1}", "too_large")
                    start = _next_record(stream, last + 1)
                    break
                yield _checked(f"{id}#{number - 1}", record, budget)
            else:
                return
        except DAMAGE:
            if last is not None or not expected:  # or the damage behind the last good record is met a second time
                yield Quarantined(f"{id}#{number}", "corrupt_record")
                number += 1
            expected = last is not None
            start = _next_record(stream, (last if last is not None else begin) + 1)


def _checked(id: str, record: WarcRecord, budget: Budget) -> _Record | Quarantined:
    """The record if all of it is there and its digest, if it has one, is right."""
    headers, declared_bytes = record.headers, record.content_length
    budget.spend(declared_bytes)
    record.freeze()
    if record.content_length < declared_bytes or headers.get("WARC-Truncated"):
        return Quarantined(id, "truncated")
    if not (headers.get("Content-Length") or "").isdigit() or (headers.get("WARC-Block-Digest") and not record.verify_block_digest()):
        return Quarantined(id, "corrupt_record")
    block = record.reader.read(declared_bytes) if declared_bytes else b""
    url, created, content_type = (headers.get(name) or "" for name in ("WARC-Target-URI", "WARC-Date", "Content-Type"))
    return _Record(id, url, created, content_type, record.is_http, block)


def _next_record(stream: BinaryIO, start: int) -> int | None:
    """Where a record seems to begin, from this place of the (compressed) archive on; None if nowhere."""
    stream.seek(start)
    window = b""
    while chunk := stream.read(SCAN_BYTES):
        window += chunk
        for mark in (GZIP_MARK, PLAIN_MARK):
            place = window.find(mark)
            while place >= 0:
                if _is_start(window[place : place + SCAN_BYTES]):
                    return start + place
                place = window.find(mark, place + 1)
        start += max(0, len(window) - MARK_BYTES)
        window = window[-MARK_BYTES:]
    return None


def _is_start(data: bytes) -> bool:
    if data.startswith(PLAIN_MARK):
        return True
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data[:MARK_BYTES], len(PLAIN_MARK)) == PLAIN_MARK
    except zlib.error:
        return False


def _archives(source: WarcSource) -> list[Stored]:
    """The archives that the source names, in the order of a list, or by name.

    Raises: DataError if there are none.
    """
    files = stored(source.path)
    if len(files) == 1 and _suffix(files[0].name) in LISTS:
        files = _listed(source, files[0])
    else:
        files = [file for file in files if _suffix(file.name) in ARCHIVES][: source.max_files]
    if not files:
        remedy = f"set collect.sources.path to {' '.join(ARCHIVES)} or a list of them"
        raise DataError("there is no web archive", value=source.path, remedy=remedy)
    return files


def _listed(source: WarcSource, file: Stored) -> list[Stored]:
    """The archives in a list, each named by its path there, below `base_url` or the list's own folder.

    Raises: DataError if the list can't be read, or a name in it leads elsewhere.
    """
    base = (source.base_url or file.place.rpartition("/")[0]).rstrip("/") + "/"
    lines = (line.strip().removeprefix(base) for line in _text(source, file).splitlines())
    names = [name for name in lines if name][: source.max_files]
    if stray := next(filter(_leads_out, names), None):
        raise DataError(
            "a list names an archive elsewhere", value=stray, remedy="set collect.sources.base_url to the folder of all of them"
        )
    return each_stored([(name, base + name) for name in names])


def _text(source: WarcSource, file: Stored) -> str:
    with opened(file) as stream:
        try:
            if file.name.lower().endswith(".gz"):
                budget = Budget(source.limits, file.size_bytes)
                return whole(io.BufferedReader(Metered(COMPRESSED[".gz"](stream), budget)), LIST_BYTES).decode()
            return whole(stream, LIST_BYTES).decode()
        except (Refused, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise DataError("a list of web archives can't be read", value=f"{file.name}, {error}", remedy="repair it") from error


def _leads_out(name: str) -> bool:
    """Is this no path that stays below a folder, also as a web server or fsspec's chains of storages may understand it?"""
    plain = unquote(name).replace("\\", "/")
    return plain.startswith("/") or ".." in plain.split("/") or "::" in plain or "://" in plain or not plain.isprintable()


def _suffix(name: str) -> str:
    """The suffix of an archive or a list, below gzip."""
    return PurePosixPath(name.lower().removesuffix(".gz")).suffix


def write_warc(path: Path, pages: Iterable[tuple[str, str, bytes, str]]) -> None:
    """A response record with checksum for every (url, content type, body, date) page; `.gz` has a gzip member per record.

    The bytes follow from the pages alone. Dates are as in the format: 2026-01-31T12:00:00Z.

    Source: WARC 1.1, https://iipc.github.io/warc-specifications, sections 5 and 6.3, annex D.
    """
    with path.open("wb") as file:
        stream = GzipWriter(file) if path.suffix == ".gz" else file
        for number, (url, content_type, body, date) in enumerate(pages):
            record = WarcRecord()
            urn = f"uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{number} {date} {url}')}"
            record.init_headers(WarcRecordType.response, record_urn=urn.encode())
            record.headers["WARC-Target-URI"], record.headers["WARC-Date"] = url, date
            record.is_http = True
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
            record.set_bytes_content(head.encode() + body)
            record.write(stream, checksum_data=True)
            if isinstance(stream, GzipWriter):
                stream.finish()
