from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import re
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from pydantic import ValidationError

from llm.artifact import canonical
from llm.data.document import Document, Quarantined
from llm.data.sources import warc
from llm.data.sources.config import WarcSource
from llm.errors import DataError, SourceError

DATE = "2026-01-31T12:00:00Z"
PAGES = [
    ("https://site.test/a", "text/html; charset=utf-8", "<p>café</p>".encode(), DATE),
    ("https://site.test/b.png", "image/png", b"no text", DATE),
    ("https://site.test/c", "text/plain", b"plain", DATE),
    ("https://site.test/d", "application/xhtml+xml", b"<p/>", DATE),
]


def found(source: WarcSource) -> list[Document | Quarantined]:
    return [each for piece in warc.pieces(source, Path()) for each in warc.read(source, piece.value)]


def record(kind: str, block: bytes, **headers: str) -> bytes:
    """A record as the format's specification shows it, with a digest."""
    digest = base64.b32encode(hashlib.sha1(block).digest()).decode()
    lines = {"WARC-Type": kind, "WARC-Date": DATE, "WARC-Record-ID": "<urn:uuid:0>", "WARC-Block-Digest": f"sha1:{digest}"}
    lines |= {"Content-Length": str(len(block))} | {name.replace("_", "-"): value for name, value in headers.items()}
    return b"WARC/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode() + b"\r\n" + block + b"\r\n\r\n"


def response(body: bytes, *headers: str, status: str = "200 OK", url: str = "https://site.test/") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", "Content-Type: text/html; charset=utf-8", *headers])
    block = head.encode() + b"\r\n\r\n" + body
    return record("response", block, WARC_Target_URI=url, Content_Type="application/http; msgtype=response")


@pytest.mark.parametrize("name", ["crawl.warc", "crawl.warc.gz"])
def test_what_was_written_is_read_again(tmp_path: Path, name: str) -> None:
    warc.write_warc(tmp_path / name, PAGES)
    first, second, third = found(WarcSource(path=str(tmp_path / name)))
    assert isinstance(first, Document)
    assert (first.id, first.text, first.url, first.created) == (f"warc:{name}#0", "<p>café</p>", "https://site.test/a", DATE)
    assert (first.source, first.domain, first.meta) == ("warc", "web", {"path": name, "format": "html"})
    assert isinstance(second, Document)
    assert (second.id, second.text, second.meta["format"]) == (f"warc:{name}#2", "plain", "text")
    assert isinstance(third, Document)
    assert third.meta["format"] == "html"


def test_writing_is_a_function_of_the_pages(tmp_path: Path) -> None:
    for name in ("a.warc.gz", "b.warc.gz"):
        warc.write_warc(tmp_path / name, PAGES)
    assert (tmp_path / "a.warc.gz").read_bytes() == (tmp_path / "b.warc.gz").read_bytes()


def test_records_that_the_specification_shows_are_read(tmp_path: Path) -> None:
    packed = gzip.compress(b"<p>packed</p>" * 9)
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (packed[:10], packed[10:])) + b"0\r\n\r\n"
    archive = [
        record("warcinfo", b"software: test\r\n", Content_Type="application/warc-fields"),
        record("request", b"GET / HTTP/1.1\r\n\r\n", Content_Type="application/http; msgtype=request"),
        response(packed, "Content-Encoding: gzip"),
        response(chunks, "Content-Encoding: gzip", "Transfer-Encoding: chunked"),
        response(b"moved", status="301 Moved Permanently"),
        record("conversion", "Texte extrait, déjà".encode(), Content_Type="text/plain", WARC_Target_URI="https://site.test/wet"),
        record("resource", b"<p>resource</p>", Content_Type="text/html", WARC_Target_URI="https://site.test/resource"),
        response(b"no gzip", "Content-Encoding: gzip"),
        response(b"<p>whole</p>").replace(b"whole", b"wh0le"),
        record("conversion", b"cut", Content_Type="text/plain", WARC_Truncated="length"),
        response(b"<p>last</p>"),
    ]
    (tmp_path / "crawl.warc").write_bytes(b"".join(archive))
    answers = {each.id.partition("#")[2]: each for each in found(WarcSource(path=str(tmp_path / "crawl.warc")))}
    texts = {number: each.text for number, each in answers.items() if isinstance(each, Document)}
    assert texts == {
        "0": "<p>packed</p>" * 9,
        "1": "<p>packed</p>" * 9,
        "3": "Texte extrait, déjà",
        "4": "<p>resource</p>",
        "8": "<p>last</p>",
    }
    reasons = {number: each.reason for number, each in answers.items() if isinstance(each, Quarantined)}
    assert reasons == {"5": "corrupt_record", "6": "corrupt_record", "7": "truncated"}


def members(data: bytes) -> list[int]:
    """Where the gzip members of a file begin."""
    starts, rest = [], data
    while rest:
        starts.append(len(data) - len(rest))
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
        decoder.decompress(rest)
        rest = decoder.unused_data
    return starts


@pytest.mark.parametrize("name", ["crawl.warc", "crawl.warc.gz"])
def test_a_damaged_record_takes_no_other_with_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pages = [(f"https://site.test/{number}", "text/html", f"<p>page {number}</p>".encode() * 50, DATE) for number in range(5)]
    warc.write_warc(path, pages)
    sound = path.read_bytes()
    starts = members(sound) if name.endswith(".gz") else [each.start() for each in re.finditer(b"WARC/1", sound)]
    texts = [body.decode() for _, _, body, _ in pages]
    for number in range(5):
        for offset in (0, 40, 60):
            damaged = bytearray(sound)
            damaged[starts[number] + offset] ^= 0x55
            path.write_bytes(damaged)
            read = found(WarcSource(path=str(path)))
            kept = [each.text for each in read if isinstance(each, Document)]
            assert [text for text in texts if text in kept] == kept
            assert len(kept) >= 4
            assert len(read) >= 5
            assert len({each.id for each in read}) == len(read)
    path.write_bytes(sound[:-30])
    *whole, last = found(WarcSource(path=str(path)))
    assert [each.text for each in whole if isinstance(each, Document)] == texts[:4]
    assert isinstance(last, Quarantined)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of the folder `site` on a web server of this machine."""
    (tmp_path / "site").mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_list_of_paths_is_read_from_its_server(tmp_path: Path, served: str) -> None:
    """As Common Crawl publishes it: a compressed list of paths below an address."""
    places = [f"crawl-data/part-{number}/crawl.warc.gz" for number in range(3)]
    for number, place in enumerate(places):
        (tmp_path / "site" / place).parent.mkdir(parents=True)
        warc.write_warc(tmp_path / "site" / place, [(f"https://site.test/{number}", "text/plain", str(number).encode(), DATE)])
    (tmp_path / "site" / "warc.paths.gz").write_bytes(gzip.compress("\n".join(places).encode()))
    source = WarcSource(path=f"{served}warc.paths.gz", base_url=served, max_files=2)
    assert len(warc.pieces(source, tmp_path)) == 2
    assert [(each.id, each.text) for each in found(source) if isinstance(each, Document)] == [
        (f"warc:{place}#0", str(n)) for n, place in enumerate(places[:2])
    ]
    before = canonical(warc.snapshot(source))
    assert canonical(warc.snapshot(source)) == before
    warc.write_warc(tmp_path / "site" / places[1], PAGES)
    assert canonical(warc.snapshot(source)) != before
    (tmp_path / "site" / "local.paths").write_text(places[0])
    local = found(WarcSource(path=str(tmp_path / "site" / "local.paths")))
    assert [each.id for each in local] == [f"warc:{places[0]}#0"]


@pytest.mark.parametrize(
    "name", ["../secret.warc", "/etc/secret.warc", "http://inside.test/a.warc", "a/%2e%2e/%2e%2e/b.warc", "simplecache::a.warc"]
)
@pytest.mark.parametrize("base", ["", "https://site.test/crawls/"])
def test_a_list_cannot_lead_elsewhere(tmp_path: Path, name: str, base: str) -> None:
    (tmp_path / "lists").mkdir()
    warc.write_warc(tmp_path / "secret.warc", PAGES)
    (tmp_path / "lists" / "warc.paths").write_text(f"{name}\n")
    with pytest.raises(DataError, match=rf"a list names an archive elsewhere: {re.escape(name)}.*collect\.sources\.base_url"):
        warc.pieces(WarcSource(path=str(tmp_path / "lists" / "warc.paths"), base_url=base), tmp_path)


def test_a_list_of_addresses_below_the_base_is_read(tmp_path: Path, served: str) -> None:
    warc.write_warc(tmp_path / "site" / "a.warc", PAGES[2:3])
    (tmp_path / "warc.paths").write_text(f"{served}a.warc\na.warc\n")
    first, second = found(WarcSource(path=str(tmp_path / "warc.paths"), base_url=served.rstrip("/")))
    assert first == second
    assert first.id == "warc:a.warc#0"


def test_a_list_that_is_empty_damaged_or_a_bomb_is_a_named_error(tmp_path: Path) -> None:
    for name, content, message in (
        ("empty.paths", b"\n", "there is no web archive"),
        ("empty.paths.gz", gzip.compress(b""), "there is no web archive"),
        ("cut.paths.gz", gzip.compress(b"a.warc")[:-4], "a list of web archives can't be read"),
        ("noise.paths", b"\xff", "a list of web archives can't be read"),
        ("bomb.paths.gz", gzip.compress(bytes(10_000_000)) * 10, "a list of web archives can't be read: bomb.paths.gz, too_large"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            warc.pieces(WarcSource(path=str(tmp_path / name)), tmp_path)


def test_an_archive_that_changes_between_listing_and_reading_is_not_kept_under_its_old_hash(tmp_path: Path) -> None:
    warc.write_warc(tmp_path / "a.warc", PAGES)
    source = WarcSource(path=str(tmp_path / "a.warc"))
    (piece,) = warc.pieces(source, tmp_path)
    warc.write_warc(tmp_path / "a.warc", PAGES[1:])
    with pytest.raises(SourceError, match=r"a file changed while it was read: a\.warc"):
        list(warc.read(source, piece.value))


class _Failing(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(503)


def test_a_server_in_trouble_is_an_error_that_time_may_heal(tmp_path: Path, served: str) -> None:
    warc.write_warc(tmp_path / "site" / "crawl.warc", PAGES)
    (piece,) = warc.pieces(WarcSource(path=f"{served}crawl.warc"), tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        moved = replace(piece.value, place=f"http://127.0.0.1:{server.server_port}/crawl.warc")
        with pytest.raises(SourceError, match=r"a file can't be read: crawl\.warc, .*503") as failure:
            list(warc.read(WarcSource(path=served), moved))
        server.shutdown()
    assert failure.value.transient
    with pytest.raises(SourceError, match="no such file or folder") as failure:
        list(warc.read(WarcSource(path=served), replace(piece.value, place=f"{served}gone.warc")))
    assert not failure.value.transient


def test_a_folder_without_web_archives_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no web archive"):
        warc.pieces(WarcSource(path=str(tmp_path)), tmp_path)
    with pytest.raises(ValidationError):
        WarcSource(path=str(tmp_path), max_files=0)
