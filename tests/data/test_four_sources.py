"""The same pages through four sources: crawled from a real server, out of a web archive, a database and a Parquet file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.data.clean import clean
from llm.data.collect import collect
from llm.data.config import CleanConfig, CollectConfig
from llm.data.document import read_shards
from llm.data.parts import Workshop
from llm.data.sources.config import FilesSource, Source, SqlSource, WarcSource
from llm.data.sources.warc import write_warc
from tests.data.crawl.test_site import crawl_of
from tests.data.site import Site, folder_site, write_debian_docs, write_pydoc

DATE = "2026-01-31T12:00:00Z"


def cleaned(source: Source, home: Path, name: str) -> dict[str, str]:
    """URL and cleaned text of every document that a source leads to."""
    for stage in ("collect", "clean"):
        (home / name / stage).mkdir(parents=True)
    shop = Workshop(home / name / "store" / ".parts")
    collect(CollectConfig(sources=(source,)), home / name / "collect", shop)
    clean(home / name / "collect", home / name / "clean", CleanConfig(), shop)
    return {document.url: document.text for document in read_shards(home / name / "clean")}


def four_ways(folder: Path, begin: list[str], home: Path) -> dict[str, dict[str, str]]:
    """What a site on loopback leads to by each source; the archive, the table and the file hold what the crawl fetched."""
    with Site(folder_site(folder, ".html")) as site:
        found = {"crawl": cleaned(crawl_of(site, begin), home, "crawl")}
    pages = [(document.url, document.text) for document in read_shards(home / "crawl" / "collect")]
    write_warc(home / "pages.warc.gz", ((url, "text/html; charset=utf-8", text.encode(), DATE) for url, text in pages))
    with sqlite3.connect(home / "pages.db") as database:
        database.execute("create table pages (id integer primary key, url text, body text)")
        database.executemany("insert into pages (url, body) values (?, ?)", pages)
    pq.write_table(pa.table({"url": [url for url, _ in pages], "body": [text for _, text in pages]}), home / "pages.parquet")
    sources: dict[str, Source] = {
        "warc": WarcSource(path=str(home / "pages.warc.gz")),
        "sql": SqlSource(url=f"sqlite:///{home / 'pages.db'}", table="pages", text_column="body", url_column="url", text_format="html"),
        "parquet": FilesSource(path=str(home / "pages.parquet"), text_field="body", text_format="html"),
    }
    return found | {name: cleaned(source, home, name) for name, source in sources.items()}


def test_four_sources_give_the_same_cleaned_documents(tmp_path: Path) -> None:
    write_pydoc(tmp_path / "site", count=60)
    found = four_ways(tmp_path / "site", ["/index.html"], tmp_path)
    assert len(found["crawl"]) > 40
    assert all(documents == found["crawl"] for documents in found.values())


@pytest.mark.long
def test_thousands_of_pages_of_real_documentation_are_the_same_by_four_sources(tmp_path: Path) -> None:
    folder = write_debian_docs(tmp_path / "debian")
    indexes = (path for path in sorted(folder.glob("*/html/index.html")) if not any(each.is_symlink() for each in path.parents))
    found = four_ways(folder, [f"/{path.relative_to(folder).as_posix()}" for path in indexes], tmp_path)
    assert len(found["crawl"]) > 1500
    assert all(documents == found["crawl"] for documents in found.values())
