from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from llm.data.collect import collect
from llm.data.config import CollectConfig
from llm.data.parts import Workshop
from llm.errors import SourceError
from tests.data.crawl.conftest import crawled, source_of
from tests.data.crawl.test_robots import UNREACHABLE
from tests.data.site import Reply, Site, html, page, status

PAGES: dict[str, bytes | Reply] = {f"/{number}": html(text=f"page {number}") for number in range(20)}


def failing(*paths: str) -> Mapping[str, bytes | Reply]:
    return dict.fromkeys(paths, status(500))


@pytest.mark.parametrize("case", ["500", "503", "501", "429", "timeout", "dropped", "cut off"])
def test_a_site_that_was_down_is_crawled_by_the_same_command(site: Site, tmp_path: Path, case: str) -> None:
    site.replies |= {"/": html(*PAGES), **PAGES, "/robots.txt": UNREACHABLE[case]}
    source = source_of(site, max_unreachable_share=0.1, tries=1, request_seconds=0.5)
    config = CollectConfig(sources=(source,), max_quarantined_share=1)
    shop = Workshop(tmp_path / "collect" / ".parts")
    (tmp_path / "down").mkdir()
    with pytest.raises(SourceError, match=r"1 of 1 URLs \(robots_unreachable 1\)") as caught:
        collect(config, tmp_path / "down", shop)
    assert caught.value.transient
    site.replies["/robots.txt"] = status(404)
    (tmp_path / "up").mkdir()
    assert collect(config, tmp_path / "up", shop)["kept"] == 21


def test_a_repetition_asks_only_for_what_could_not_be_reached(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/": html(*PAGES), **PAGES, **failing("/3", "/4", "/5")}
    source = source_of(site, max_unreachable_share=0.1, tries=1)
    with pytest.raises(SourceError, match="3 of 21 URLs"):
        crawled(source, tmp_path)
    site.log.clear()
    site.replies |= PAGES
    documents, reasons = crawled(source, tmp_path)
    assert (set(documents), reasons) == ({"/", *PAGES}, {})
    assert {request.path for request in site.log} == {"/3", "/4", "/5"}


def test_a_few_that_could_not_be_reached_are_quarantined_and_not_forgotten(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/": html(*PAGES), **PAGES}
    crawled(source_of(site, as_of="monday"), tmp_path)
    site.replies |= failing("/3")
    documents, reasons = crawled(source_of(site, as_of="tuesday", max_unreachable_share=0.1, tries=1), tmp_path)
    assert (len(documents), reasons) == (20, {"/3": "http_500"})
    site.log.clear()
    site.replies |= {path: page(body) for path, body in PAGES.items() if isinstance(body, bytes)}
    assert len(crawled(source_of(site, as_of="wednesday"), tmp_path)[0]) == 21
    assert {request.path: request.status for request in site.log}["/3"] == 304


def test_a_seed_that_could_not_be_reached_weighs_as_a_seed(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/": html(*PAGES), **PAGES}
    with Site() as other:
        down = other.url()
    with pytest.raises(SourceError, match=f"1 of 22 URLs .*, first {down}"):
        crawled(source_of(site, seeds=[site.url(), down], max_unreachable_share=0.1, tries=1), tmp_path)


def test_what_time_does_not_heal_is_no_outage(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/": html(*PAGES), **dict.fromkeys(PAGES, status(403))}
    documents, reasons = crawled(source_of(site, max_unreachable_share=0), tmp_path)
    assert (set(documents), set(reasons.values())) == ({"/"}, {"http_403"})
