from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest

from llm.data.sources.crawl.archive import Archive
from llm.data.sources.crawl.fetch import Fetcher
from llm.data.sources.crawl.frontier import Frontier
from llm.data.sources.crawl.sitemaps import locations
from llm.data.sources.crawl.web import Web
from llm.data.sources.limits import Refused
from tests.data.crawl.conftest import crawled, source_of
from tests.data.site import Site, html, page, redirect

HEAD = '<?xml version="1.0" encoding="UTF-8"?>'
XMLNS = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'


def urlset(*urls: str) -> bytes:
    return (
        f"{HEAD}<urlset {XMLNS}>{''.join(f'<url><loc> {url} </loc><lastmod>2026-01-01</lastmod></url>' for url in urls)}</urlset>".encode()
    )


def index(*urls: str) -> bytes:
    return f"{HEAD}<sitemapindex {XMLNS}>{''.join(f'<sitemap><loc>{url}</loc></sitemap>' for url in urls)}</sitemapindex>".encode()


def test_an_index_leads_to_sitemaps_of_every_kind(site: Site, tmp_path: Path) -> None:
    site.replies |= {f"/{name}": html(text=name) for name in "abcde"}
    names = ("/one.xml", "/two.xml.gz", "/three.txt", "/index.xml")
    site.replies["/index.xml"] = page(index(*map(site.url, names)), "text/xml")
    site.replies["/one.xml"] = page(urlset(site.url("/a"), site.url("/b")), "application/xml")
    site.replies["/two.xml.gz"] = page(gzip.compress(urlset(site.url("/c"))), "application/gzip")
    site.replies["/three.txt"] = redirect("/moved.txt")
    site.replies["/moved.txt"] = page(f"{site.url('/d')}\n{site.url('/e')}\n".encode(), "text/plain")
    documents, reasons = crawled(source_of(site, seeds=(), sitemaps=[site.url("/index.xml")]), tmp_path)
    assert set(documents) == {"/a", "/b", "/c", "/d", "/e"}
    assert not reasons
    assert len(site.asked("/index.xml")) == 1


@pytest.mark.parametrize("wanted", [True, False])
def test_robots_names_sitemaps(site: Site, tmp_path: Path, wanted: bool) -> None:
    robots = f"Sitemap: {site.url('/s.xml')}\nSitemap: http://x.test/s".encode()
    site.replies |= {"/": html(), "/a": html(), "/robots.txt": page(robots, "text/plain")}
    site.replies["/s.xml"] = page(urlset(site.url("/a")), "text/xml")
    documents, _ = crawled(source_of(site, robots_sitemaps=wanted), tmp_path)
    assert set(documents) == ({"/", "/a"} if wanted else {"/"})


def test_pages_of_a_sitemap_obey_scope_and_robots(site: Site, tmp_path: Path) -> None:
    site.replies |= {"/robots.txt": page(b"User-agent: *\nDisallow: /closed", "text/plain"), "/a": html(), "/closed": html()}
    site.replies["/s.xml"] = page(urlset(site.url("/a"), site.url("/closed"), "http://10.0.0.1/", "file:///etc/passwd"), "text/xml")
    documents, reasons = crawled(source_of(site, seeds=(), sitemaps=[site.url("/s.xml")]), tmp_path)
    assert (set(documents), reasons) == ({"/a"}, {"/closed": "robots_disallowed"})


def test_a_sitemap_that_cannot_be_used_is_named_with_its_reason(site: Site, tmp_path: Path) -> None:
    bomb, cut = gzip.compress(bytes(30 * 2**20)), gzip.compress(urlset("http://a/"))[:-9]
    site.replies |= {"/": html(), "/bomb.gz": page(bomb, "application/gzip"), "/cut.gz": page(cut, "application/gzip")}
    names = ["/bomb.gz", "/cut.gz", "/missing.xml"]
    documents, reasons = crawled(source_of(site, sitemaps=[site.url(name) for name in names]), tmp_path)
    assert set(documents) == {"/"}
    assert reasons == {"/bomb.gz": "compression_bomb", "/cut.gz": "truncated", "/missing.xml": "http_404"}


def test_entities_are_not_expanded_and_files_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("http://secret/")
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(12))
    body = f'<!DOCTYPE u [{laughs}<!ENTITY file SYSTEM "{secret.as_uri()}">]><urlset><url><loc>&l11;&file;</loc></url></urlset>'.encode()
    _, pages = locations(body, 100)
    assert sum(map(len, pages)) < 100
    assert "secret/" not in "".join(pages)


def test_what_is_cut_still_names_what_is_whole() -> None:
    whole = urlset("http://a/1", "http://a/2")
    assert [each.strip() for each in locations(whole[:-30], 100)[1]] == ["http://a/1", "http://a/2"]
    assert locations(b"", 100) == ([], [])
    with pytest.raises(Refused, match="content_encoding"):
        locations(b"\x1f\x8bnonsense", 100)


def test_images_of_a_page_are_no_pages() -> None:
    image = f'<urlset {XMLNS} xmlns:i="http://x"><url><loc>http://a/</loc><i:image><i:loc>http://a/p</i:loc></i:image></url></urlset>'
    assert locations(image.encode(), 100) == ([], ["http://a/"])


def test_a_redirect_of_a_sitemap_obeys_robots_and_scope(site: Site, tmp_path: Path) -> None:
    closed = page(urlset(site.url("/secret")), "text/xml")
    site.replies |= {"/robots.txt": page(b"User-agent: *\nDisallow: /closed", "text/plain"), "/": html(), "/closed.xml": closed}
    site.replies |= {"/one.xml": redirect("/between.xml"), "/between.xml": redirect("/closed.xml"), "/loop.xml": redirect("/loop.xml")}
    with Site() as other:
        other.replies["/s.xml"] = page(urlset(site.url("/away")), "text/xml")
        site.replies["/two.xml"] = redirect(other.url("/s.xml"))
        names = ("/one.xml", "/two.xml", "/loop.xml")
        documents, reasons = crawled(source_of(site, sitemaps=[site.url(name) for name in names]), tmp_path)
        assert other.log == []
    assert set(documents) == {"/"}
    assert reasons == {"/one.xml": "robots_disallowed", "/two.xml": "redirect_not_followed", "/loop.xml": "too_many_redirects"}
    assert site.asked("/closed.xml") == []


def test_no_more_pages_of_sitemaps_are_held_than_will_be_asked_for(site: Site, tmp_path: Path) -> None:
    urls = [site.url(f"/{number:04}") for number in range(1000)]
    site.replies["/s.xml"] = page(urlset(*reversed(urls), *(f"http://0.test/{number}" for number in range(100))), "text/xml")
    source = source_of(site, seeds=(), sitemaps=[site.url("/s.xml")], max_pages=5)

    async def beginning() -> set[str]:
        with Archive(tmp_path / "archive", "now") as archive:
            async with Fetcher(source) as fetcher:
                return await Frontier(source, Web(fetcher, archive)).beginning()

    assert asyncio.run(beginning()) == set(urls[:5])
