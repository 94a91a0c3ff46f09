"""Answers to URLs: from the archive where they still hold, from the network where not."""

from __future__ import annotations

import time
from dataclasses import dataclass

from llm.data.sources.crawl.archive import Archive, Record
from llm.data.sources.crawl.fetch import HEALING, Answer, Fetcher, Kind

MAX_REDIRECTS = 5


@dataclass(frozen=True)
class Web:
    """The network behind an archive."""

    fetcher: Fetcher
    archive: Archive

    async def ask(self, url: str, kind: Kind) -> Answer:
        """The answer for this period. A page of an earlier one is asked for on the condition that it has changed.

        Pages, redirects, and refusals that the server means (4xx) are kept; what time or a setting may heal is not.
        """
        record = self.archive.find(kind.name, url)
        if record and self._holds(record, kind):
            return record.answer
        known = record.answer if record and record.answer.is_page else None
        answer = await self.fetcher.fetch(url, kind, known)
        if not answer.reason or (answer.reason.startswith("http_4") and answer.reason not in HEALING):
            self.archive.put(kind.name, url, answer)
        return answer

    async def follow(self, url: str, kind: Kind) -> Answer:
        """The same through up to five redirects, for what is no page itself."""
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self.ask(url, kind)
            if not answer.location:
                return answer
            url = answer.location
        return Answer("too_many_redirects")

    def _holds(self, record: Record, kind: Kind) -> bool:
        if kind.max_age_seconds is None:
            return record.period == self.archive.period
        return 0 <= time.time() - record.fetched_seconds < kind.max_age_seconds
