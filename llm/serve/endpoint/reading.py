"""Texts that are only read, to be embedded or scored: in a thread, one after the other, for as long as somebody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from llm.serve.endpoint.errors import ApiError
from llm.serve.endpoint.service import Service
from llm.serve.endpoint.visit import Visit

T = TypeVar("T")


async def read_each(
    service: Service, visit: Visit, texts: list[list[int]], read: Callable[[list[int]], T], *, timeout_seconds: float | None
) -> list[T]:
    """What `read` finds in each text. When the request ends before, the text that is being read is the last.

    Raises: ApiError if as many requests as may are reading; TimeoutError.
    """

    def read_all() -> list[T]:
        if not service.readings.acquire(blocking=False):
            raise ApiError(429, "as many texts are read as may be; try again", code="server_busy")
        try:
            return [_read(text) for text in texts]
        finally:
            service.readings.release()

    def _read(text: list[int]) -> T:
        visit.cleanup.check()
        return read(text)

    async with asyncio.timeout(service.patience_seconds(timeout_seconds)):
        return await run_in_threadpool(read_all)
