"""Politeness: how often, and how many at a time, a host is asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic

from llm.data.hashing import share


class Host:
    """Turns at one host: a few at a time, each some time after the one before it."""

    def __init__(self, connections: int, delay_seconds: float) -> None:
        self.delay_seconds = delay_seconds
        self.failures = 0  # tries in a row
        self._connections = asyncio.Semaphore(connections)
        self._free_at = 0.0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One request's turn; it lasts until the response is read."""
        async with self._connections:
            while (wait_seconds := self._free_at - monotonic()) > 0:
                await asyncio.sleep(wait_seconds)
            self._free_at = monotonic() + self.delay_seconds
            yield

    def pause(self, seconds: float) -> None:
        """No turn begins before this time is over."""
        self._free_at = max(self._free_at, monotonic() + seconds)


def backoff_seconds(url: str, number: int, first_seconds: float, most_seconds: float) -> float:
    """The wait after the `number`th failed try: doubled each time, capped, and shortened by up to half so that URLs don't return together.

    The draw follows from the URL, so a crawl repeated is the same crawl.

    Source: "equal jitter" of https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter.
    """
    return min(most_seconds, first_seconds * 2 ** (number - 1)) * (0.5 + share(url, f"backoff {number}") / 2)


def retry_after_seconds(value: str) -> float | None:
    """What Retry-After asks for, in seconds or as a date; None if it says nothing of use.

    Source: RFC 9110, section 10.2.3.

    Example:
        >>> retry_after_seconds("120"), retry_after_seconds("Fri, 31 Dec 1999 23:59:59 GMT"), retry_after_seconds("soon")
        (120.0, 0.0, None)
    """
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
