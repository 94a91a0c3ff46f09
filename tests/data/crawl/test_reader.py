from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from llm.data.collect import collect
from llm.data.config import CollectConfig
from llm.data.document import read_shards
from llm.data.parts import Workshop
from llm.errors import DataError, SourceError
from tests.data.crawl.conftest import crawled, source_of
from tests.data.crawl.test_robots import UNREACHABLE
from tests.data.site import Reply, Site, html, page, redirect, status

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


NO_PAGES: dict[str, bytes | Reply] = {
    "/gone": status(410),
    "/members": status(403),
    "/data": page(b"{}", "application/json"),
    "/away": redirect("http://example.org/"),
    "/circle": redirect("/circle"),
}


def listed(path: Path, site: Site) -> dict[str, str]:
    """Reasons by path, as a file of a collection lists them."""
    records = map(json.loads, path.read_text().splitlines())
    return {record["id"].removeprefix(f"crawl:{site.url()}".rstrip("/")): record["reason"] for record in records}


def test_dead_links_of_a_site_are_drops_and_no_damage(site: Site, tmp_path: Path) -> None:
    """An ordinary site: at the default share of damage, its dead links must not end the run."""
    dead = ["/dead1", "/dead2", "/dead3", *NO_PAGES]
    site.replies |= {"/": html(*PAGES, *dead, "/damaged"), **PAGES, **NO_PAGES, "/damaged": b"x" * 2001}
    site.replies["/robots.txt"] = page(b"User-agent: *\nDisallow: /secret", "text/plain")
    source, out = source_of(site, "/", "/secret", max_page_bytes=2000), tmp_path / "out"
    out.mkdir()
    books = collect(CollectConfig(sources=(source,)), out, Workshop(tmp_path / "collect" / ".parts"))
    once = dict.fromkeys(("content_type", "http_403", "http_410", "redirect_loop", "redirect_not_followed", "robots_disallowed"), 1)
    assert books == {"read": 31, "kept": 21, "dropped": once | {"http_404": 3}, "quarantined": {"too_large": 1}}
    assert listed(out / "quarantine.jsonl", site) == {"/damaged": "too_large"}
    dropped = listed(out / "dropped.jsonl", site)
    assert set(dropped) == {*dead, "/secret"}
    assert (dropped["/dead1"], dropped["/data"], dropped["/secret"]) == ("http_404", "content_type", "robots_disallowed")


def test_damage_of_a_site_is_no_drop(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/": html(*PAGES, "/gone"), **PAGES, "/1": b"x" * 2001, "/2": b"x" * 2001}
    with pytest.raises(DataError, match=r"too much can't be read: 2 of 21 \(too_large 2\)"):
        collect(CollectConfig(sources=(source_of(site, max_page_bytes=2000),)), tmp_path, Workshop(tmp_path / "collect" / ".parts"))


def test_a_quota_and_dead_links_are_listed_together(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/": html(*PAGES, "/gone"), **PAGES}
    source, out = source_of(site, max_documents=5), tmp_path / "out"
    out.mkdir()
    books = collect(CollectConfig(sources=(source,)), out, Workshop(tmp_path / "collect" / ".parts"))
    assert books == {"read": 22, "kept": 5, "dropped": {"http_404": 1, "over_quota": 16}, "quarantined": {}}
    dropped = listed(out / "dropped.jsonl", site)
    assert len(dropped) == 17
    assert dropped["/gone"] == "http_404"


def test_a_page_that_became_a_dead_link_is_gone_for_what_keeps_the_seen(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/": html("/old", "/damaged"), "/old": html(text="old"), "/damaged": html(text="whole")}
    for name in ("first", "second"):
        config = CollectConfig(sources=(source_of(site, as_of=name, max_page_bytes=2000),), keep_seen=True, max_quarantined_share=1)
        (tmp_path / name).mkdir()
        previous = tmp_path / "first" if name == "second" else None
        books = collect(config, tmp_path / name, Workshop(tmp_path / "collect" / ".parts"), previous)
        site.replies |= {"/old": status(404), "/damaged": b"x" * 2001}
    assert books == {"read": 4, "kept": 2, "dropped": {"http_404": 1}, "quarantined": {"too_large": 1}}
    assert [document.url for document in read_shards(tmp_path / "second")] == [site.url(), site.url("/old")]


def test_a_seed_that_is_a_dead_link_leaves_an_empty_corpus_that_says_so(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the corpus is empty: 0 of 1 readable \(http_404 1\)"):
        collect(CollectConfig(sources=(source_of(site),)), tmp_path, Workshop(tmp_path / "collect" / ".parts"))


def test_a_page_that_two_crawls_reach_is_refused_with_the_remedy_of_crawls(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/": html(text="home"), "/other": html(text="other")}
    with Site(host="127.0.0.2") as other:
        other.replies["/"] = html(site.url("/other"))
        beginning = {"seeds": [other.url()], "hosts": [f"{each.host}:{each.port}" for each in (site, other)]}
        sources = (source_of(site, "/other"), source_of(site, **beginning))
        message = (
            rf"one id: crawl:{site.url('/other')}, in collect\.sources\.0 \(crawl\) and collect\.sources\.1 \(crawl\);"
            " make them one entry with several seeds, or keep their sites apart by include and exclude"
        )
        with pytest.raises(DataError, match=message):
            collect(CollectConfig(sources=sources), tmp_path, Workshop(tmp_path / "collect" / ".parts"))
