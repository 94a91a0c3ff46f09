"""A crawl as a source: its period, its one piece, its pages as documents."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from llm.artifact import sha256_of
from llm.data.document import Document, Dropped, Quarantined
from llm.data.parts import Piece
from llm.data.sources.crawl.archive import Archive
from llm.data.sources.crawl.config import CrawlSource
from llm.data.sources.crawl.fetch import Answer, Fetcher, is_no_page, may_heal
from llm.data.sources.crawl.frontier import crawl
from llm.data.sources.crawl.pages import HTML, media_type, page_text
from llm.data.sources.crawl.urls import canonical
from llm.data.sources.limits import Refused
from llm.errors import SourceError


def snapshot(source: CrawlSource) -> dict[str, Any]:
    """The period that the crawl is of: what a site holds is known only after it has been crawled.

    Within a period of `recrawl_hours` (of the clock of the world, from midnight on for 24) a retry continues the
    crawl, and a repetition is found instead of crawled. The next period asks for every page on the condition that it
    has changed.
    """
    return {"kind": source.kind, "as_of": source.as_of or _period(source.recrawl_hours)}


def pieces(source: CrawlSource, home: Path) -> list[Piece]:
    """All of it in one piece, since politeness needs one place that knows of every request.

    The archive belongs to the seeds, so a crawl with other limits asks for nothing twice.
    """
    observed = snapshot(source)
    archive = home / ".crawl" / f"{sha256_of([sorted(source.seeds), sorted(source.sitemaps)])[:16]}.sqlite"
    return [Piece((str(archive), observed["as_of"]), observed)]


def read(source: CrawlSource, piece: tuple[str, str]) -> Iterator[Document | Dropped | Quarantined]:
    """Crawl, or continue a crawl, then its pages by URL. Ids are `crawl:<url>`.

    What is no page of these sites, such as a dead link, is dropped; a page that is damaged or could not be reached is quarantined.

    Raises: SourceError if more than `max_unreachable_share` failed for reasons that time may heal. A repetition then asks for these
    only, since the archive holds the rest; documents without them would count as the whole period.
    """
    path, period = piece
    with Archive(Path(path), period) as archive:
        outcomes = asyncio.run(_crawled(source, archive))
        unreachable = {url: reason for url, reason in outcomes.items() if may_heal(reason)}
        _refuse_outage(source, outcomes, unreachable)
        for url, reason in sorted(outcomes.items()):
            yield _pageless(url, reason) if reason else _page(source, archive, url)
        archive.forget_other_periods("page", keep=unreachable)


async def _crawled(source: CrawlSource, archive: Archive) -> dict[str, str]:
    async with Fetcher(source) as fetcher:
        return await crawl(source, archive, fetcher)


def _refuse_outage(source: CrawlSource, outcomes: dict[str, str], unreachable: dict[str, str]) -> None:
    """Of seeds and sitemaps the share is taken apart too: what is behind those that failed is not even known.

    Raises: SourceError if too much failed for a while.
    """
    roots = {canonical(url, drop_parameters=source.drop_parameters) for url in (*source.seeds, *source.sitemaps)}
    shares = (len(unreachable) / max(1, len(outcomes)), len(roots & unreachable.keys()) / len(roots))
    if max(shares) > source.max_unreachable_share:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(Counter(unreachable.values()).items()))
        raise SourceError(
            "too much of a crawl can't be reached",
            value=f"{len(unreachable)} of {len(outcomes)} URLs ({reasons}), first {min(unreachable)}",
            remedy="repeat the command later, it asks for these only; or raise max_unreachable_share of this source",
        )


def _pageless(url: str, reason: str) -> Dropped | Quarantined:
    return Dropped(f"crawl:{url}", reason) if is_no_page(reason) else Quarantined(f"crawl:{url}", reason)


def _page(source: CrawlSource, archive: Archive, url: str) -> Document | Quarantined:
    """HTML is kept as it is; clean looks for the main text."""
    record = archive.find("page", url)
    if record is None:
        return Quarantined(f"crawl:{url}", "archive_damaged")
    answer = record.answer
    try:
        text = page_text(answer.body, answer.content_type, source.min_encoding_confidence)
    except Refused as error:
        return Quarantined(f"crawl:{url}", error.reason)
    return Document(
        id=f"crawl:{url}",
        text=text,
        source=source.kind,
        url=url,
        domain=source.domain,
        license=source.license,
        created=_modified(answer),
        meta={"format": "html"} if media_type(answer.content_type) in HTML else {},
    )


def _modified(answer: Answer) -> str:
    """Last-Modified, the same in every crawl of an unchanged page; empty if the server tells none."""
    try:
        return parsedate_to_datetime(answer.last_modified).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return ""


def _period(hours: int) -> str:
    """The beginning of the current period."""
    seconds = hours * 3600
    return datetime.fromtimestamp(time.time() // seconds * seconds, UTC).isoformat()
