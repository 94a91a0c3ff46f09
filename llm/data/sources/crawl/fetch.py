"""One URL asked for: within deadlines and caps, politely, and again if time may heal what went wrong."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from time import monotonic
from types import TracebackType

import httpcore

from llm.data.sources.crawl.addresses import PinnedBackend, RefusedAddress
from llm.data.sources.crawl.config import CrawlSource
from llm.data.sources.crawl.hosts import Host, backoff_seconds, retry_after_seconds
from llm.data.sources.crawl.inflate import Inflater
from llm.data.sources.crawl.pages import media_type
from llm.data.sources.crawl.urls import canonical, hostname
from llm.data.sources.limits import Refused

REDIRECTS = {301, 302, 303, 307, 308}
BUSY = {"http_429", "http_503"}  # the host, not the page, asks for time
HEALING = BUSY | {"timeout", "unreachable", "http_408", "http_500", "http_502", "http_504"}
UNASKED = {"host_given_up", "robots_unreachable"}  # because of what time may heal
NO_PAGE = {  # what a link leads to that isn't broken either; beside it, what a server answers with 3xx and 4xx for good
    "content_type",
    "redirect_loop",
    "redirect_not_followed",
    "redirect_refused",
    "robots_delay_too_long",
    "robots_disallowed",
    "too_many_redirects",
}
PATIENCE_SECONDS = 5  # before the rate of a response is judged
DRAINED_BYTES = 65_536  # of a body that nobody wants, so that its connection can be used again


@dataclass(frozen=True, slots=True)
class Kind:
    """What is asked for, and what of it is accepted."""

    name: str
    max_bytes: int
    content_types: tuple[str, ...] = ()  # empty: any
    cut: bool = False  # a longer one is cut at `max_bytes` instead of refused
    max_age_seconds: float | None = None  # how long an answer holds; None: the period of the crawl


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of asking for a URL: a page, a redirect (`location`), or the reason why neither."""

    reason: str = ""
    location: str = ""
    content_type: str = ""
    etag: str = ""
    last_modified: str = ""
    body: bytes = b""
    wait_seconds: float | None = None  # Retry-After

    @property
    def is_page(self) -> bool:
        return not self.reason and not self.location


class Fetcher:
    """The network as a crawl sees it: every request that it makes goes through here."""

    def __init__(self, source: CrawlSource, backend: httpcore.AsyncNetworkBackend | None = None) -> None:
        self.source = source
        self.hosts: dict[str, Host] = defaultdict(lambda: Host(source.connections_per_host, source.delay_seconds))
        self._connections = asyncio.Semaphore(source.connections)
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=None,
            max_keepalive_connections=source.connections,
            keepalive_expiry=5,
            network_backend=backend or PinnedBackend(source.allow_networks),
        )

    async def __aenter__(self) -> Fetcher:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._pool.aclose()

    async def fetch(self, url: str, kind: Kind, known: Answer | None = None) -> Answer:
        """The answer to a request, tried as often as the recipe allows; `known`, if its server says that it still holds."""
        source, host = self.source, self.hosts[hostname(url)]
        answer = Answer("host_given_up")
        for number in range(1, source.tries + 1):
            async with host.turn(), self._connections:
                if host.failures >= source.failures_per_host:
                    return answer
                answer = await self._ask(url, kind, known)
            if answer.reason not in HEALING:
                host.failures = 0
                return answer
            host.failures += 1
            backoff = backoff_seconds(url, number, source.backoff_seconds, source.max_wait_seconds)
            wait_seconds = backoff if answer.wait_seconds is None else answer.wait_seconds
            if wait_seconds > source.max_wait_seconds:
                host.failures = source.failures_per_host
                return answer
            if answer.reason in BUSY:
                host.pause(wait_seconds)
            elif number < source.tries:
                await asyncio.sleep(wait_seconds)
        return answer

    async def _ask(self, url: str, kind: Kind, known: Answer | None) -> Answer:
        """One try. The deadline covers the name, the connection, TLS, the headers and the body."""
        try:
            async with asyncio.timeout(self.source.request_seconds):
                async with self._pool.stream("GET", url, headers=self._headers(url, known)) as response:
                    return await self._answer(url, kind, known, response)
        except RefusedAddress:
            return Answer("refused_address")
        except (TimeoutError, httpcore.TimeoutException):
            return Answer("timeout")
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError):
            return Answer("unreachable")
        except Refused as error:
            return Answer(error.reason)

    def _headers(self, url: str, known: Answer | None) -> dict[bytes | str, bytes | str]:
        """Source: RFC 9110, section 13.1 for conditions."""
        agent, contact = self.source.user_agent, self.source.contact
        headers: dict[bytes | str, bytes | str] = {
            "Host": url.split("/", 3)[2],
            "User-Agent": f"{agent} (+{contact})" if contact else agent,
            "Accept": "text/html, application/xhtml+xml, text/plain;q=0.9, */*;q=0.1",
            "Accept-Encoding": "gzip",
        }
        conditions = {"If-None-Match": known.etag, "If-Modified-Since": known.last_modified} if known else {}
        return headers | {name: value.encode("latin-1") for name, value in conditions.items() if value}

    async def _answer(self, url: str, kind: Kind, known: Answer | None, response: httpcore.Response) -> Answer:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        if response.status != 200:
            await _drain(response)
        if response.status == 304 and known:
            return known
        if response.status in REDIRECTS and "location" in headers:
            location = canonical(_unicode(headers["location"]), url, self.source.drop_parameters)
            return Answer(location=location) if location else Answer("redirect_refused")
        if response.status != 200:
            return Answer(f"http_{response.status}", wait_seconds=retry_after_seconds(headers.get("retry-after", "")))
        content_type = headers.get("content-type", "")
        if kind.content_types and media_type(content_type) not in kind.content_types:
            return Answer("content_type")
        body = await self._body(kind, headers, response)
        return Answer("", "", content_type, headers.get("etag", ""), headers.get("last-modified", ""), body)

    async def _body(self, kind: Kind, headers: dict[str, str], response: httpcore.Response) -> bytes:
        """The content, decompressed.

        Raises: Refused if it comes too slowly, is too large or is badly compressed.
        """
        inflater = Inflater(headers.get("content-encoding", "").strip().lower(), kind.max_bytes, self.source.max_compression_ratio)
        body, received_bytes, began = bytearray(), 0, monotonic()
        async for chunk in response.aiter_stream():
            received_bytes += len(chunk)
            seconds = monotonic() - began
            if seconds > PATIENCE_SECONDS and received_bytes < self.source.min_bytes_per_second * seconds:
                raise Refused("too_slow")
            body += inflater.feed(chunk)
            if len(body) > kind.max_bytes:
                if kind.cut:
                    return bytes(body[: kind.max_bytes])
                raise Refused("too_large")
        inflater.finish()
        return bytes(body)


def may_heal(reason: str) -> bool:
    """Whether the same request may get a page later, though no try of it did.

    Example:
        >>> may_heal("timeout"), may_heal("http_521"), may_heal("http_404")
        (True, True, False)
    """
    return reason in HEALING | UNASKED | {"too_slow"} or reason.startswith("http_5")


def is_no_page(reason: str) -> bool:
    """Whether there is no page for this crawl behind a URL, rather than one that is damaged, too costly or out of reach.

    Example:
        >>> is_no_page("http_404"), is_no_page("robots_disallowed"), is_no_page("http_503"), is_no_page("too_large")
        (True, True, False, False)
    """
    return reason in NO_PAGE or (reason.startswith("http_") and not may_heal(reason))


def _unicode(value: str) -> str:
    """A header's value as UTF-8, which is what servers write where ASCII doesn't do."""
    return value.encode("latin-1").decode("utf-8", "replace")


async def _drain(response: httpcore.Response) -> None:
    size_bytes = 0
    async for chunk in response.aiter_stream():
        size_bytes += len(chunk)
        if size_bytes > DRAINED_BYTES:
            return
