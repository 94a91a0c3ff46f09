from __future__ import annotations

import gzip
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.data.crawl.conftest import crawled, source_of
from tests.data.site import Site, compressed, html, in_turn, late, page, send, status, stream

MEGABYTE = 2**20


def endless() -> Iterator[bytes]:
    while True:
        yield b"<p>" + b"x" * 65_000


def trickle() -> Iterator[bytes]:
    for _ in range(600):
        yield b"x"
        time.sleep(1)


def bomb() -> Iterator[bytes]:
    """Ten gigabytes of zeros as ten megabytes of gzip: one block that stands for itself, a thousand times."""
    packer = zlib.compressobj(9, wbits=31)
    yield packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(10 * MEGABYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(1000):
        yield block


def cut_off(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"<p>half")
    handler.close_connection = True


def no_http(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n" * 10)
    handler.close_connection = True


def endless_header(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(10_000):
        handler.wfile.write(b"x" * 1000)
    handler.close_connection = True


def asked_at(site: Site, path: str = "/") -> list[float]:
    return [request.began for request in site.asked(path)]


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_what_time_may_heal_is_tried_again(site: Site, tmp_path: Path, code: int) -> None:
    site.replies["/"] = in_turn(status(code), status(code), page(html(text="healed")))
    documents, reasons = crawled(source_of(site, tries=3), tmp_path)
    assert "healed" in documents["/"].text
    assert not reasons
    assert len(site.asked("/")) == 3


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_url_that_never_heals_is_quarantined_after_its_tries(site: Site, tmp_path: Path, code: int) -> None:
    site.replies |= {"/": html("/bad", "/good"), "/bad": status(code), "/good": html()}
    documents, reasons = crawled(source_of(site, tries=4), tmp_path)
    assert set(documents) == {"/", "/good"}
    assert reasons == {"/bad": f"http_{code}"}
    assert len(site.asked("/bad")) == 4


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 418, 451, 501])
def test_what_the_server_means_is_asked_once(site: Site, tmp_path: Path, code: int) -> None:
    site.replies |= {"/": status(code)}
    assert crawled(source_of(site), tmp_path) == ({}, {"/": f"http_{code}"})
    assert len(site.asked("/")) == 1


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_honoured_by_the_whole_host(site: Site, tmp_path: Path, code: int) -> None:
    site.replies |= {"/": html(*(f"/{number}" for number in range(6)))} | {f"/{number}": html() for number in range(6)}
    site.replies["/0"] = in_turn(status(code, Retry_After="1"), page(html()))
    documents, _ = crawled(source_of(site, connections_per_host=1), tmp_path)
    assert len(documents) == 7
    refused = asked_at(site, "/0")[0]
    assert min(request.began for request in site.log if request.began > refused) > refused + 0.95


def test_retry_after_may_be_a_date(site: Site, tmp_path: Path) -> None:
    def busy(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 503, Retry_After=format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True))

    site.replies["/"] = in_turn(busy, page(html()))
    crawled(source_of(site), tmp_path)
    first, second = asked_at(site)
    assert second - first > 1.9


def test_a_host_that_asks_for_too_much_time_is_left_alone(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/": html("/0", "/1", "/2"), "/0": status(503, Retry_After="86400"), "/1": html(), "/2": html()}
    documents, reasons = crawled(source_of(site, connections_per_host=1), tmp_path)
    assert set(documents) == {"/"}
    assert reasons == {"/0": "http_503", "/1": "host_given_up", "/2": "host_given_up"}
    assert [request.path for request in site.log] == ["/robots.txt", "/", "/0"]


def test_a_host_that_only_fails_is_left_alone(site: Site, tmp_path: Path) -> None:
    site.replies["/"] = html(*(f"/{number}" for number in range(100)))
    site.replies |= {f"/{number}": status(500) for number in range(100)}
    _, reasons = crawled(source_of(site, failures_per_host=10, connections_per_host=2), tmp_path)
    assert set(reasons.values()) == {"http_500", "host_given_up"}
    assert len(reasons) == 100
    assert len(site.log) <= 2 + 10 + 1  # robots.txt and the seed; the tries; one in flight beside the last


@pytest.mark.parametrize(
    ("reply", "reason"), [(trickle, "timeout"), (lambda: late(30, page(html())), "timeout")], ids=["a byte a second", "silence"]
)
def test_a_request_ends_at_its_deadline(site: Site, tmp_path: Path, reply: object, reason: str) -> None:
    site.replies["/"] = stream(trickle) if reply is trickle else late(30, page(html()))
    began = time.monotonic()
    assert crawled(source_of(site, request_seconds=1, tries=1), tmp_path)[1] == {"/": reason}
    assert time.monotonic() - began < 10


def test_a_body_that_comes_too_slowly_is_given_up_before_the_deadline(site: Site, tmp_path: Path) -> None:
    site.replies["/"] = stream(trickle)
    assert crawled(source_of(site, request_seconds=60), tmp_path)[1] == {"/": "too_slow"}
    assert len(site.asked("/")) == 1


def test_a_body_without_an_end_is_given_up_at_its_cap(site: Site, tmp_path: Path) -> None:
    site.replies["/"] = stream(endless)
    assert crawled(source_of(site, max_page_bytes=MEGABYTE), tmp_path)[1] == {"/": "too_large"}
    assert len(site.asked("/")) == 1


def test_gzip_is_read(site: Site, tmp_path: Path) -> None:
    text = "word " * 30_000
    site.replies |= {"/": compressed(html("/members", "/padded", text=text))}
    members = gzip.compress(b"<p>one ") + gzip.compress(b"two")
    site.replies["/members"] = lambda handler: send(handler, 200, members, Content_Type="text/html", Content_Encoding="x-gzip")
    padded = gzip.compress(b"<p>padded") + bytes(64)
    site.replies["/padded"] = lambda handler: send(handler, 200, padded, Content_Type="text/html", Content_Encoding="gzip")
    documents, reasons = crawled(source_of(site), tmp_path)
    assert not reasons
    assert text in documents["/"].text
    assert (documents["/members"].text, documents["/padded"].text) == ("<p>one two", "<p>padded")
    assert site.asked("/")[0].headers["accept-encoding"] == "gzip"


def encoded(body: bytes, encoding: str) -> object:
    return lambda handler: send(handler, 200, body, Content_Type="text/html", Content_Encoding=encoding)


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (bytes(1000), "br", "content_encoding"),
        (gzip.compress(gzip.compress(bytes(MEGABYTE))), "gzip, gzip", "content_encoding"),
        (b"<p>no gzip", "gzip", "content_encoding"),
        (gzip.compress(os.urandom(1000))[:-9], "gzip", "truncated"),
        (gzip.compress(bytes(3 * MEGABYTE)), "gzip", "compression_bomb"),
        (gzip.compress(os.urandom(3 * MEGABYTE)), "gzip", "too_large"),
        (bytes(3 * MEGABYTE), "identity", "too_large"),
    ],
    ids=["unknown", "twice", "none", "cut", "bomb", "large", "large_as_it_is"],  # a gzip's own bytes hold the time
)
def test_bad_compression_is_quarantined(site: Site, tmp_path: Path, body: bytes, encoding: str, reason: str) -> None:
    site.replies["/"] = encoded(body, encoding)  # type: ignore[assignment]
    assert crawled(source_of(site, max_page_bytes=2 * MEGABYTE), tmp_path)[1] == {"/": reason}


def test_a_broken_connection_is_tried_again(site: Site, tmp_path: Path) -> None:
    site.replies["/"] = in_turn(cut_off, no_http, endless_header, page(html(text="at last")))
    assert "at last" in crawled(source_of(site), tmp_path)[0]["/"].text


def test_a_closed_port_is_unreachable(site: Site, tmp_path: Path) -> None:
    with Site() as other:
        url = other.url()
    assert crawled(source_of(site, seeds=[url]), tmp_path)[1] == {"/": "robots_unreachable"}


def test_the_worst_pages_cost_little_memory(site: Site, tmp_path: Path) -> None:
    """In a process of its own: 10 GB from 10 MB of gzip, and bodies and headers without an end."""
    site.replies |= {"/endless": stream(endless), "/bomb": stream(bomb, Content_Encoding="gzip"), "/header": endless_header}
    source = source_of(site, "/endless", "/bomb", "/header", tries=1, max_compression_ratio=1e6)
    code = (
        "import sys, resource; from pathlib import Path; from llm.data.sources.crawl import reader, config;"
        "source = config.CrawlSource.model_validate_json(sys.argv[1]); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "[piece] = reader.pieces(source, Path(sys.argv[2])); found = list(reader.read(source, piece.value));"
        "print(*(each.reason for each in found), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, source.model_dump_json(), str(tmp_path)]
    *reasons, grown_kib = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert reasons == ["too_large", "too_large", "unreachable"]
    assert int(grown_kib) < 100 * 1024
