"""The Robots Exclusion Protocol: what a host lets a crawl ask for, and how fast.

Source: RFC 9309. Crawl-delay is no part of it, but widely written and meant.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from protego import Protego

from llm.data.sources.crawl.fetch import HEALING, Kind
from llm.data.sources.crawl.urls import hostname, origin
from llm.data.sources.crawl.web import Web

DAY_SECONDS = 24 * 3600
ROBOTS = Kind("robots", max_bytes=500 * 1024, cut=True, max_age_seconds=DAY_SECONDS)  # sections 2.5 and 2.4


@dataclass(frozen=True)
class Rules:
    """What one robots.txt says to one crawler."""

    file: Protego
    user_agent: str
    closed: str = ""  # why the whole origin is out of bounds
    read_at: float = field(default_factory=time.time)

    def refusal(self, url: str) -> str:
        """Why this URL must not be asked for; empty if it may."""
        return self.closed or ("" if self.file.can_fetch(url, self.user_agent) else "robots_disallowed")


@dataclass(frozen=True)
class Robots:
    """The rules of every origin that a crawl has met, each at most a day old."""

    web: Web
    _rules: dict[str, Rules] = field(default_factory=dict)

    async def rules(self, url: str) -> Rules:
        """The rules of a URL's origin."""
        place = origin(url)
        rules = self._rules.get(place)
        if rules is None or time.time() - rules.read_at >= DAY_SECONDS:
            rules = self._rules[place] = await self._read(place)
        return rules

    def disallow(self, url: str) -> bool:
        """Whether rules that are known already disallow a URL."""
        rules = self._rules.get(origin(url))
        return rules is not None and rules.refusal(url) == "robots_disallowed"

    async def _read(self, place: str) -> Rules:
        """The rules as they are: without a file (4xx) all is allowed; if it can't be reached (5xx, network) nothing is.

        Where the RFC leaves a choice, the stricter one: a busy host (429) and more than five redirects count as unreachable.

        Source: RFC 9309, section 2.3.1.
        """
        source = self.web.fetcher.source
        answer = await self.web.follow(f"{place}/robots.txt", ROBOTS)
        if answer.reason and (not answer.reason.startswith("http_4") or answer.reason in HEALING):
            return Rules(Protego.parse(""), source.user_agent, closed="robots_unreachable")
        file = Protego.parse(answer.body.decode("utf-8-sig", errors="replace"))
        delay_seconds = file.crawl_delay(source.user_agent) or 0.0
        if delay_seconds > source.max_wait_seconds:
            return Rules(file, source.user_agent, closed="robots_delay_too_long")
        host = self.web.fetcher.hosts[hostname(place)]
        host.delay_seconds = max(host.delay_seconds, delay_seconds)
        return Rules(file, source.user_agent)
