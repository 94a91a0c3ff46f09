"""The order of a crawl: breadth first, each level decided as a whole, so that it never depends on who answers first.

A level's URLs are sorted and cut before any of them is asked for, and the next level is made when all have answered.
So a site that stays the same gives the same pages, in whatever order and after however many kills they were fetched.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import nsmallest

from llm.data.sources.crawl.archive import Archive
from llm.data.sources.crawl.config import CrawlSource
from llm.data.sources.crawl.fetch import Answer, Fetcher, Kind
from llm.data.sources.crawl.pages import CONTENT_TYPES, HTML, links, media_type, page_text
from llm.data.sources.crawl.robots import Robots, Rules
from llm.data.sources.crawl.sitemaps import sitemap_pages
from llm.data.sources.crawl.urls import Scope, canonical, hostname, origin
from llm.data.sources.crawl.web import MAX_REDIRECTS, Web
from llm.data.sources.limits import Refused


async def crawl(source: CrawlSource, archive: Archive, fetcher: Fetcher) -> dict[str, str]:
    """Fill the archive with the pages of this period; the outcome by URL: empty for a page, otherwise why it is none.

    A redirect has no entry, unless it leads nowhere: its target has one.
    """
    frontier = Frontier(source, Web(fetcher, archive))
    level = await frontier.beginning()
    for depth in range(source.max_depth + 1):
        level = await frontier.visit_level(level, named=depth == 0)
    return frontier.outcomes()


@dataclass
class Frontier:
    """What a crawl has visited so far."""

    source: CrawlSource
    web: Web
    found: dict[str, str] = field(default_factory=dict)  # URL → reason, empty for a page or a redirect
    redirects: dict[str, str] = field(default_factory=dict)
    failed_sitemaps: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scope = Scope.of(self.source)
        self.robots = Robots(self.web)
        self.page = Kind("page", self.source.max_page_bytes, CONTENT_TYPES)

    async def beginning(self) -> set[str]:
        """The seeds, and the pages of sitemaps."""
        seeds = self._canonical(self.source.seeds)
        sitemaps = self._canonical(self.source.sitemaps)
        if self.source.robots_sitemaps:
            for place in sorted({origin(url) for url in seeds}):
                rules = await self.robots.rules(place + "/")
                sitemaps |= {url for url in self._canonical(rules.file.sitemaps) if self.scope.on_hosts(url)}
        pages, self.failed_sitemaps = await sitemap_pages(self.web, self.robots, self.scope, sitemaps)
        return seeds | pages

    async def visit_level(self, level: set[str], *, named: bool) -> set[str]:
        """Ask for the URLs of one level, then for where they redirect to; the links of all of them.

        What robots.txt disallows is an outcome if the recipe or a sitemap named it, and else like a link that leads off the site.
        """
        next_level: set[str] = set()
        for _ in range(MAX_REDIRECTS + 1):
            chosen = await self._chosen(level, named=named)
            self.found |= chosen
            allowed = [url for url, refusal in chosen.items() if not refusal]
            await self._visit(allowed, next_level)
            level = {self.redirects[url] for url in allowed if url in self.redirects}
        self._cut(next_level, self.source.max_pages)
        return next_level

    def outcomes(self) -> dict[str, str]:
        """Every URL with a page or a reason."""
        pages = {url: reason for url, reason in self.found.items() if url not in self.redirects}
        return self.failed_sitemaps | pages | {url: reason for url in self.redirects if (reason := self._dead_end(url))}

    async def _chosen(self, level: set[str], *, named: bool) -> dict[str, str]:
        """The first URLs of a level, as many as there is room for, and why they must not be asked for: empty if they may.

        Only for what there is room for is anyone asked for rules.
        """
        waiting = sorted(url for url in level if url not in self.found and url in self.scope)
        chosen: dict[str, str] = {}
        while waiting and (room := self.source.max_pages - len(self.found) - len(chosen)) > 0:
            tried, waiting = waiting[:room], waiting[room:]
            refusals = {url: rules.refusal(url) for url, rules in (await self._rules(tried)).items()}
            chosen |= {url: refusal for url, refusal in refusals.items() if named or refusal != "robots_disallowed"}
        return chosen

    def _cut(self, urls: set[str], most: int) -> None:
        """Hold no more than `max_pages` if there are more than `most`: the first, less what is known to be disallowed.

        Of these, at most `len(self.found)` turn out to be visited already, so the next level lacks nothing that it has room for.
        """
        if len(urls) > most:
            urls.intersection_update(nsmallest(self.source.max_pages, (url for url in urls if not self.robots.disallow(url))))

    async def _rules(self, urls: Iterable[str]) -> dict[str, Rules]:
        """The rules for each URL; origins are asked side by side."""
        places = {url: origin(url) for url in urls}
        origins = sorted(set(places.values()))
        rules = dict(zip(origins, await asyncio.gather(*(self.robots.rules(f"{place}/") for place in origins)), strict=True))
        return {url: rules[place] for url, place in places.items()}

    async def _visit(self, urls: Iterable[str], found: set[str]) -> None:
        """Ask for these, hosts side by side; the links on them go to `found`."""
        queues: dict[str, deque[str]] = defaultdict(deque)
        for url in urls:
            queues[hostname(url)].append(url)
        workers = [queue for queue in queues.values() for _ in range(min(len(queue), self.source.connections_per_host))]
        await asyncio.gather(*(self._work_off(queue, found) for queue in workers))

    async def _work_off(self, queue: deque[str], found: set[str]) -> None:
        while queue:
            url = queue.popleft()
            answer = await self.web.ask(url, self.page)
            self.found[url] = answer.reason
            if answer.location:
                self.redirects[url] = answer.location
            elif answer.is_page and media_type(answer.content_type) in HTML:
                found |= self._links(url, answer)
                self._cut(found, 2 * self.source.max_pages)

    def _links(self, url: str, answer: Answer) -> set[str]:
        """Those in scope."""
        try:
            text = page_text(answer.body, answer.content_type, self.source.min_encoding_confidence)
        except Refused:
            return set()
        return {link for link in links(text, url, self.source.drop_parameters) if link in self.scope}

    def _dead_end(self, url: str) -> str:
        """Why a redirect leads to no outcome: in a circle, or out of the crawl's bounds; empty if it does lead to one."""
        seen: set[str] = set()
        while url in self.redirects:
            if url in seen:
                return "redirect_loop"
            seen.add(url)
            url = self.redirects[url]
        return "" if url in self.found else "redirect_not_followed"

    def _canonical(self, urls: Iterable[str]) -> set[str]:
        return {url for each in urls if (url := canonical(each, drop_parameters=self.source.drop_parameters))}
