from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from llm.data.collect import collect, snapshot
from llm.data.config import CollectConfig
from llm.data.document import read_shards
from llm.data.parts import Workshop
from llm.data.sources.crawl import reader
from llm.data.sources.crawl.archive import Archive
from llm.data.sources.crawl.config import CrawlSource
from llm.data.sources.crawl.fetch import Answer
from llm.errors import ArtifactError
from tests.data.crawl.conftest import crawled, source_of
from tests.data.crawl.test_frontier import web_of
from tests.data.site import LAST_MODIFIED, Request, Site, html, late, page, redirect, send, status

CRAWL = (
    "import sys; from pathlib import Path; from llm.data.collect import collect; from llm.data.config import CollectConfig;"
    "from llm.data.parts import Workshop; out = Path(sys.argv[2]); out.mkdir();"
    "config = CollectConfig.model_validate_json(sys.argv[1]); collect(config, out, Workshop(Path(sys.argv[3]) / '.parts'))"
)
PAGE = Answer(content_type="text/html", etag='"1"', body=b"<p>page")


def archived(source: CrawlSource, home: Path) -> set[str]:
    """Paths of the pages that the archive of a killed crawl holds."""
    (piece,) = reader.pieces(source, home)
    if not Path(piece.value[0]).exists():
        return set()
    database = sqlite3.connect(piece.value[0])
    try:
        rows = database.execute("SELECT url FROM answers WHERE kind = 'page' AND period = ?", (source.as_of,)).fetchall()
    except sqlite3.OperationalError:  # killed before there was a table
        rows = []
    database.close()
    return {"/" + url.split("/", 3)[3] for (url,) in rows}


def killed_at(site: Site, number: int, command: list[str]) -> int:
    """The exit status of a crawl that is killed when the site has been asked `number` times more."""
    process = subprocess.Popen(command)
    left = [number]

    def count(request: Request) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(process.pid, signal.SIGKILL)

    site.on_request = count
    status = process.wait(timeout=120)
    site.on_request = None
    return status


@pytest.mark.parametrize(("number", "most", "least_kills"), [(120, 30, 5), pytest.param(300, 12, 50, marks=pytest.mark.long)])
def test_a_crawl_killed_again_and_again_asks_for_no_archived_page_twice(
    site: Site, tmp_path: Path, number: int, most: int, least_kills: int
) -> None:
    pages = web_of(number, seed=5)
    site.replies |= {path: late(0.002, page(body)) for path, body in pages.items()}
    site.replies |= {"/bad.html": status(404), "/moved.html": redirect("/1.html")}
    site.replies["/"] = html("/bad.html", "/moved.html", "/1.html", "/2.html", text="home")
    source = source_of(site, connections_per_host=4)
    config = CollectConfig(sources=(source,))
    baseline = tmp_path / "baseline"
    baseline.mkdir()
    books = collect(config, baseline, Workshop(tmp_path / "elsewhere" / ".parts"))
    assert books["kept"] > 80
    assert (books["dropped"], books["quarantined"]) == ({"http_404": 1}, {})

    draw = random.Random(0)
    kills = 0
    for trial in range(400):
        before = archived(source, tmp_path / "home")
        seen = len(site.log)
        out = tmp_path / f"out{trial}"
        command = [sys.executable, "-c", CRAWL, config.model_dump_json(), str(out), str(tmp_path / "home")]
        code = killed_at(site, draw.randrange(1, most), command)
        asked = Counter(request.path for request in site.log[seen:])
        assert not set(asked) & before, "an archived page was asked for again"
        assert max(asked.values(), default=0) <= 1
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= least_kills
    names = ("index.parquet", "dropped.jsonl", "quarantine.jsonl", "books.json", "documents-00000.parquet")
    assert [(out / name).read_bytes() for name in names] == [(baseline / name).read_bytes() for name in names]


def test_the_next_period_asks_only_for_what_has_changed(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/": html("/same", "/edited", "/gone", "/dated"), "/same": html(text="same"), "/edited": html(text="old")}
    site.replies |= {"/gone": html(text="gone")}

    def by_date(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers.get("If-Modified-Since") == LAST_MODIFIED:
            send(handler, 304)
        else:
            send(handler, 200, b"<p>dated", Content_Type="text/html", Last_Modified=LAST_MODIFIED)

    site.replies["/dated"] = by_date
    first, _ = crawled(source_of(site, as_of="monday"), tmp_path)
    assert set(first) == {"/", "/same", "/edited", "/gone", "/dated"}
    assert {request.status for request in site.log if request.path != "/robots.txt"} == {200}

    site.log.clear()
    again, _ = crawled(source_of(site, as_of="monday"), tmp_path)
    assert (again, site.log) == (first, [])

    site.replies |= {"/": html("/same", "/edited", "/dated"), "/edited": html(text="new")}
    del site.replies["/gone"]
    second, reasons = crawled(source_of(site, as_of="tuesday"), tmp_path)
    assert {request.path: request.status for request in site.log} == {"/": 200, "/same": 304, "/edited": 200, "/dated": 304}
    assert set(second) == {"/", "/same", "/edited", "/dated"}
    assert not reasons
    assert second["/same"] == first["/same"]
    assert second["/dated"] == first["/dated"]
    assert "new" in second["/edited"].text
    (piece,) = reader.pieces(source_of(site), tmp_path)
    with Archive(Path(piece.value[0]), "tuesday") as archive:
        assert archive.find("page", site.url("/gone")) is None


def test_a_page_that_is_gone_is_dropped_where_it_is_still_linked(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/": html("/gone"), "/gone": html()}
    assert set(crawled(source_of(site, as_of="monday"), tmp_path)[0]) == {"/", "/gone"}
    site.replies["/gone"] = status(410)
    documents, reasons = crawled(source_of(site, as_of="tuesday"), tmp_path)
    assert (set(documents), reasons) == ({"/"}, {"/gone": "http_410"})


def test_what_failed_for_a_while_is_asked_for_again_in_the_same_period(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/": html("/shaky", "/missing"), "/shaky": status(500)}
    assert crawled(source_of(site, tries=1), tmp_path)[1] == {"/shaky": "http_500", "/missing": "http_404"}
    site.replies["/shaky"] = html(text="healed")
    site.log.clear()
    documents, reasons = crawled(source_of(site), tmp_path)
    assert (set(documents), reasons) == ({"/", "/shaky"}, {"/missing": "http_404"})
    assert [request.path for request in site.log] == ["/shaky"]


def test_wider_limits_ask_only_for_what_is_added(site: Site, tmp_path: Path) -> None:
    site.replies |= web_of(40, seed=6)
    few, _ = crawled(source_of(site, max_pages=10), tmp_path)
    site.log.clear()
    many, _ = crawled(source_of(site, max_pages=20), tmp_path)
    assert set(few) < set(many)
    assert {request.path for request in site.log} == set(many) - set(few)


def test_collect_crawls_once_per_period(site: Site, tmp_path: Path) -> None:
    site.replies |= web_of(10, seed=7)
    shop = Workshop(tmp_path / "collect" / ".parts")
    for number, period in enumerate(("monday", "monday", "tuesday")):
        config = CollectConfig(sources=(source_of(site, as_of=period),))
        assert snapshot(config) == {"sources": [{"kind": "crawl", "as_of": period}]}
        out = tmp_path / str(number)
        out.mkdir()
        site.log.clear()
        collect(config, out, shop)
        assert {request.status for request in site.log} == [{200, 404}, set(), {304}][number]
    texts = [[(document.id, document.text) for document in read_shards(tmp_path / name)] for name in "012"]
    assert texts[0] == texts[1] == texts[2]


def test_the_period_is_that_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    source = CrawlSource(seeds=["http://example.org/"], recrawl_hours=24)
    midnight = 1_700_006_400
    for now, day in ((midnight - 20_000, 14), (midnight - 1, 14), (midnight, 15)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert reader.snapshot(source) == {"kind": "crawl", "as_of": f"2023-11-{day}T00:00:00+00:00"}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from llm.data.sources.crawl.archive import Archive;"
            "archive = Archive(Path(sys.argv[1]), 'now'); print('held', flush=True); time.sleep(60)",
            str(tmp_path / "archive"),
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ArtifactError, match="another process is crawling") as caught:
        Archive(tmp_path / "archive", "now")
    assert caught.value.transient
    holder.kill()
    holder.wait()
    Archive(tmp_path / "archive", "now")


@pytest.mark.parametrize("damage", [lambda body: body[:-1], lambda body: b"x" + body[1:], lambda body: body.replace(b"page", b"pagf")])
def test_a_damaged_body_is_not_believed(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    with Archive(tmp_path / "archive", "now") as archive:
        archive.put("page", "http://a/", PAGE)
        assert archive.find("page", "http://a/") is not None
    database = sqlite3.connect(tmp_path / "archive")
    ((body,),) = database.execute("SELECT body FROM answers").fetchall()
    database.execute("UPDATE answers SET body = ?", (damage(body),))
    database.commit()
    database.close()
    with Archive(tmp_path / "archive", "now") as archive:
        assert archive.find("page", "http://a/") is None


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(os.urandom(5000))
    with pytest.raises(ArtifactError, match=r"can't be used.*delete this file"):
        Archive(tmp_path / "archive", "now")


def test_a_disk_that_is_full_stops_the_crawl_with_a_named_error(site: Site, tmp_path: Path) -> None:
    """The kernel refuses files above a size, as it would refuse them on a full disk."""
    site.replies |= {"/": html(*(f"/{number}" for number in range(50)))}
    site.replies |= {f"/{number}": html(text=os.urandom(50_000).hex()) for number in range(50)}
    source = source_of(site)
    code = (
        "import resource, signal, sys; from pathlib import Path; from llm.data.sources.crawl import reader, config;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY));"
        "source = config.CrawlSource.model_validate_json(sys.argv[1]); [piece] = reader.pieces(source, Path(sys.argv[2]));"
        "list(reader.read(source, piece.value))"
    )
    command = [sys.executable, "-c", code, source.model_dump_json(), str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 1
    assert "llm.errors.ArtifactError: the archive of a crawl can't be used" in answer.stderr
    before = archived(source, tmp_path)
    assert before
    seen = len(site.log)
    documents, reasons = crawled(source, tmp_path)
    assert (len(documents), reasons) == (51, {})
    assert not {request.path for request in site.log[seen:]} & before
