"""Real documentation, crawled from a real server: the pages on disk are the reference."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from llm.data.collect import collect
from llm.data.config import CollectConfig
from llm.data.document import Document, read_shards
from llm.data.parts import Workshop
from llm.data.sources.crawl.config import CrawlSource
from tests.data.crawl.conftest import LOOPBACK
from tests.data.site import Site, folder_site, write_debian_docs, write_pydoc


class Links(HTMLParser):
    """What a page refers to, by the parser of the standard library."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag in ("a", "area") and name == "href" and value]


def reachable(folder: Path, begin: Iterable[str]) -> tuple[set[str], set[str]]:
    """Paths of the pages in a folder that links lead to, and links inside the folder that lead nowhere."""
    pages, dead, waiting = set[str](), set[str](), deque(begin)
    while waiting:
        path = waiting.popleft()
        if path in pages or path in dead:
            continue
        file = folder / unquote(path)[1:]
        if file.suffix not in (".html", ".txt") or not file.is_file():
            dead.add(path)
            continue
        pages.add(path)
        links = Links()
        if file.suffix == ".html":
            links.feed(file.read_text("utf-8", "replace"))
        places = (urlsplit(urljoin(f"http://site{path}", link.strip())) for link in links.found)
        waiting.extend(place.path for place in places if (place.scheme, place.netloc) == ("http", "site") and not place.query)
    return pages, dead


def crawl_of(site: Site, begin: Iterable[str]) -> CrawlSource:
    limits = {"delay_seconds": 0, "connections_per_host": 8, "max_depth": 1000, "max_pages": 50_000}
    return CrawlSource(seeds=[site.url(path) for path in begin], allow_networks=LOOPBACK, as_of="now", **limits)


def documents_of(source: CrawlSource, home: Path) -> tuple[dict[str, Document], dict[str, int], dict[str, int]]:
    """Documents by path, and what a collect with this source drops and quarantines, by reason."""
    (home / "out").mkdir(parents=True)
    books = collect(CollectConfig(sources=(source,)), home / "out", Workshop(home / "collect" / ".parts"))
    dropped, quarantined = books["dropped"], books["quarantined"]
    assert books["read"] == books["kept"] + sum(dropped.values()) + sum(quarantined.values())
    return {urlsplit(document.url).path: document for document in read_shards(home / "out")}, dropped, quarantined


def assert_all_is_found(folder: Path, begin: Sequence[str], home: Path, *, least: int) -> None:
    with Site(folder_site(folder, ".html", ".txt")) as site:
        documents, dropped, quarantined = documents_of(crawl_of(site, begin), home)
        assert len(site.log) == len({request.path for request in site.log})
        assert site.most_in_flight <= 8
    pages, _ = reachable(folder, begin)
    assert set(documents) == {path for path in pages if (folder / unquote(path)[1:]).read_text("utf-8", "replace").strip()}
    assert set(dropped) <= {"http_404"}
    assert set(quarantined) <= {"empty"}
    assert len(documents) >= least
    assert all(document.text.encode() == (folder / unquote(path)[1:]).read_bytes() for path, document in documents.items())


def test_what_pydoc_writes_is_crawled_whole(tmp_path: Path) -> None:
    write_pydoc(tmp_path / "site", count=250)
    assert_all_is_found(tmp_path / "site", ["/index.html"], tmp_path / "home", least=200)


@pytest.mark.long
def test_thousands_of_pages_of_real_documentation_are_crawled_whole(tmp_path: Path) -> None:
    folder = write_debian_docs(tmp_path / "debian")
    found = (
        path for path in sorted(folder.glob("*/html/index.html")) if not path.parent.is_symlink() and not path.parent.parent.is_symlink()
    )
    begin = [f"/{path.relative_to(folder).as_posix()}" for path in found]
    assert_all_is_found(folder, begin, tmp_path / "home", least=2000)


@pytest.mark.long
def test_everything_that_pydoc_writes_is_crawled_whole(tmp_path: Path) -> None:
    write_pydoc(tmp_path / "site", count=10_000)
    assert_all_is_found(tmp_path / "site", ["/index.html"], tmp_path / "home", least=450)
