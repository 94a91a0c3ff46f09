"""A site to break, and a crawl of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm.data.document import Document
from llm.data.sources.crawl import reader
from llm.data.sources.crawl.config import CrawlSource
from tests.data.site import Site

LOOPBACK = ("127.0.0.0/8",)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


def source_of(site: Site, *seeds: str, **settings: Any) -> CrawlSource:
    """A crawl of the site that does not wait for long, and puts up with every failure."""
    quick = {"allow_networks": LOOPBACK, "delay_seconds": 0, "backoff_seconds": 0.01, "max_wait_seconds": 5, "as_of": "first"}
    return CrawlSource(**{"seeds": [site.url(seed) for seed in seeds or ("/",)], "max_unreachable_share": 1, **quick, **settings})


def crawled(source: CrawlSource, home: Path) -> tuple[dict[str, Document], dict[str, str]]:
    """Documents and reasons by path."""
    (piece,) = reader.pieces(source, home)
    found = list(reader.read(source, piece.value))
    assert [each.id for each in found] == sorted(each.id for each in found)
    documents = {_path(each.id): each for each in found if isinstance(each, Document)}
    reasons = {_path(each.id): each.reason for each in found if not isinstance(each, Document)}
    assert len(documents) + len(reasons) == len(found)
    return documents, reasons


def _path(id: str) -> str:
    return "/" + id.removeprefix("crawl:").split("/", 3)[3]
