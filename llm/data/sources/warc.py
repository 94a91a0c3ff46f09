"""Web archives: the pages of WARC and WET files, and a WARC written from pages."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path

from fastwarc.stream_io import GzipWriter
from fastwarc.warc import WarcRecord, WarcRecordType


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
