"""Sitemaps: the pages that a site names itself.

Source: https://www.sitemaps.org/protocol.html.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from heapq import nsmallest

from lxml import etree

from llm.data.sources.crawl.fetch import Answer, Kind
from llm.data.sources.crawl.inflate import GZIP_MAGIC, Inflater
from llm.data.sources.crawl.robots import Robots
from llm.data.sources.crawl.urls import Scope, canonical
from llm.data.sources.crawl.web import MAX_REDIRECTS, Web
from llm.data.sources.limits import Refused

SITEMAP = Kind("sitemap", max_bytes=50 * 2**20)
MAX_SITEMAPS = 1_000


async def sitemap_pages(web: Web, robots: Robots, scope: Scope, sitemaps: Iterable[str]) -> tuple[set[str], dict[str, str]]:
    """Canonical URLs of the first pages in scope, up to `max_pages`, that these sitemaps and those inside them name.

    And why a sitemap could not be used, by its URL.
    """
    source = web.fetcher.source
    pages: set[str] = set()
    failed: dict[str, str] = {}
    seen: set[str] = set()
    waiting = sorted(sitemaps)
    while waiting and len(seen) < MAX_SITEMAPS:
        url = waiting.pop(0)
        seen.add(url)
        answer = await _followed(web, robots, scope, url)
        try:
            if answer.reason:
                raise Refused(answer.reason)
            inside, named = locations(answer.body, source.max_compression_ratio)
        except Refused as error:
            failed[url] = error.reason
            continue
        found = {each for name in inside if (each := canonical(name, url)) and scope.on_hosts(each)}
        waiting = [*waiting, *sorted(found - seen - set(waiting))][: MAX_SITEMAPS - len(seen)]
        pages |= {each for name in named if (each := canonical(name, url, source.drop_parameters)) and each in scope}
        if len(pages) > source.max_pages:
            pages = set(nsmallest(source.max_pages, pages))
    return pages, failed


async def _followed(web: Web, robots: Robots, scope: Scope, url: str) -> Answer:
    """What a sitemap's URL leads to; each redirect must be allowed as well, and stay on the hosts of the crawl."""
    for _ in range(MAX_REDIRECTS + 1):
        if reason := (await robots.rules(url)).refusal(url):
            return Answer(reason)
        answer = await web.ask(url, SITEMAP)
        if not answer.location:
            return answer
        url = answer.location
        if not scope.on_hosts(url):
            return Answer("redirect_not_followed")
    return Answer("too_many_redirects")


def locations(body: bytes, max_ratio: float) -> tuple[list[str], list[str]]:
    """The sitemaps and the pages that a sitemap names: XML, or a URL per line, plain or gzip.

    Raises: Refused if it is neither.

    Example:
        >>> locations(b"<sitemapindex><sitemap><loc>http://a/s.xml</loc></sitemap></sitemapindex>", 10)
        (['http://a/s.xml'], [])
        >>> locations(b"http://a/1\\nhttp://a/2\\n", 10)
        ([], ['http://a/1', 'http://a/2'])
    """
    if body.startswith(GZIP_MAGIC):
        body = _inflated(body, max_ratio)
    if not body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return [], body.decode("utf-8", errors="replace").split()
    named: dict[str, list[str]] = {"sitemap": [], "url": []}
    try:
        for _, element in etree.iterparse(io.BytesIO(body), resolve_entities=False, no_network=True, recover=True):
            name = etree.QName(element).localname
            parent = element.getparent()
            if name == "loc" and parent is not None and (owner := etree.QName(parent).localname) in named:
                named[owner].append("".join(element.itertext()))
            if name in named:
                element.clear()
    except (etree.LxmlError, ValueError):
        raise Refused("sitemap_corrupt") from None
    return named["sitemap"], named["url"]


def _inflated(body: bytes, max_ratio: float) -> bytes:
    inflater = Inflater("gzip", SITEMAP.max_bytes, max_ratio)
    content = inflater.feed(body)
    inflater.finish()
    if len(content) > SITEMAP.max_bytes:
        raise Refused("too_large")
    return content
