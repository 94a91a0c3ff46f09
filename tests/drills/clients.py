"""Clients of a served model as plain sockets, so that a thousand of them cost less than the server that they load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Answer:
    """What a client met. Status 0: the connection failed. `first_seconds`: until the first token, or until the refusal was read."""

    status: int
    first_seconds: float
    seconds: float
    whole: bool
    retry_seconds: float = 0.0

    @property
    def refused(self) -> bool:
        return self.status in (429, 503)

    @property
    def failed(self) -> bool:
        return not (self.refused or (self.status == 200 and self.whole))


async def ask(port: int, body: dict[str, Any], *, leave_after_events: int | None = None) -> Answer:
    """One streamed completion on a connection of its own; the client hangs up after so many events, if it is told to."""
    began, writer = time.monotonic(), None
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            content = json.dumps({"stream": True} | body).encode()
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
            )
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + content)
            return await _read(reader, began, leave_after_events)
    except (OSError, TimeoutError, ValueError, IndexError):
        return Answer(0, 0.0, time.monotonic() - began, whole=False)
    finally:
        if writer:
            writer.close()


async def _read(reader: asyncio.StreamReader, began: float, leave_after_events: int | None) -> Answer:
    status = int((await reader.readline()).split()[1])
    retry, first, events, whole = 0.0, 0.0, 0, False
    async for line in reader:
        if line.lower().startswith(b"retry-after:"):
            retry = float(line.split(b":")[1])
        if line.startswith(b"data: "):
            first = first or time.monotonic() - began
            events += 1
            whole = whole or line.startswith(b"data: [DONE]")
            if b'"error"' in line:
                return Answer(status, first, time.monotonic() - began, whole=False)
        if leave_after_events is not None and events >= leave_after_events:
            break
    seconds = time.monotonic() - began
    return Answer(status, first or seconds, seconds, whole, retry)


async def crowd(port: int, clients: int, seconds: float, bodies: list[dict[str, Any]]) -> list[Answer]:
    """Clients that ask again as soon as they have their answer, or when a refusal tells them to."""
    until, answers = time.monotonic() + seconds, []

    async def client(number: int) -> None:
        chance = random.Random(number)
        await asyncio.sleep(chance.random() * min(1.0, seconds / 10))
        while time.monotonic() < until:
            answers.append(answer := await ask(port, chance.choice(bodies)))
            await asyncio.sleep(answer.retry_seconds * (1 + chance.random()))

    await asyncio.gather(*(client(number) for number in range(clients)))
    return answers


async def leavers(port: int, count: int, concurrent: int, body: dict[str, Any]) -> list[Answer]:
    """Clients that hang up in the middle of their answer, or before it begins."""
    places, chance = asyncio.Semaphore(concurrent), random.Random(0)

    async def client(events: int) -> Answer:
        async with places:
            if events:
                return await ask(port, body, leave_after_events=events)
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(ask(port, body), timeout=0.05)
            return Answer(200, 0.0, 0.05, whole=False)

    return await asyncio.gather(*(client(chance.randrange(12)) for _ in range(count)))


@contextlib.asynccontextmanager
async def half_open(port: int, sockets: int) -> Any:
    """Sockets that send a header byte by byte and never end it; those that the server closes come again."""

    async def dribble() -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
                try:
                    while not writer.is_closing():
                        writer.write(b"x")
                        await writer.drain()
                        await asyncio.sleep(1)
                finally:
                    writer.close()
            await asyncio.sleep(0.2)

    tasks = [asyncio.create_task(dribble()) for _ in range(sockets)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def p(percent: float, seconds: list[float]) -> float:
    """A percentile, in milliseconds; infinite where nothing was measured."""
    return round(1000 * float(np.percentile(seconds, percent)), 1) if seconds else float("inf")
