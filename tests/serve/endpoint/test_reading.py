"""Texts are read while somebody waits for them, by so many requests and no more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import httpx
import pytest

from llm.serve.endpoint.app import create_app
from llm.serve.endpoint.config import LimitsConfig, Settings
from llm.serve.endpoint.errors import ApiError
from llm.serve.endpoint.reading import read_each
from llm.serve.endpoint.service import Service
from llm.serve.endpoint.visit import Visit
from llm.serve.models.catalogue import Catalogue
from llm.serve.observe.record import Record

TEXTS = [[number] for number in range(100)]


@pytest.fixture
def service(catalogue: Catalogue) -> Service:
    """One that lets a single request read."""
    found: Service = create_app(catalogue, Settings(limits=LimitsConfig(readings=1))).state.service
    return found


class Reader:
    """Reads a text when it is told to, and remembers it."""

    def __init__(self) -> None:
        self.begun, self.go, self.read = threading.Event(), threading.Event(), list[list[int]]()

    def __call__(self, text: list[int]) -> int:
        self.read.append(text)
        self.begun.set()
        assert self.go.wait(20)
        return sum(text)


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.go.set()


def test_every_text_is_read_in_order(service: Service, reader: Reader) -> None:
    reader.go.set()
    assert asyncio.run(read_each(service, Visit(Record(), ""), TEXTS, reader, timeout_seconds=None)) == list(range(100))


def test_when_the_request_has_ended_the_text_at_hand_is_the_last(service: Service, reader: Reader) -> None:
    visit = Visit(Record(), "")

    async def leave() -> None:
        reading = asyncio.create_task(read_each(service, visit, TEXTS, reader, timeout_seconds=None))
        await asyncio.to_thread(reader.begun.wait, 20)
        reading.cancel()
        await asyncio.wait({reading})
        visit.cleanup.close()
        with pytest.raises(ApiError, match="as many texts are read"):  # its thread is at work still
            await read_each(service, Visit(Record(), ""), TEXTS, reader, timeout_seconds=None)
        reader.go.set()
        assert await asyncio.to_thread(service.readings.acquire, timeout=20)

    asyncio.run(leave())
    assert reader.read == TEXTS[:1]


def test_time_runs_out(service: Service, reader: Reader) -> None:
    async def wait() -> None:
        with pytest.raises(TimeoutError):
            await read_each(service, Visit(Record(), ""), TEXTS, reader, timeout_seconds=0.05)
        reader.go.set()

    asyncio.run(wait())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": [[7] * 4_000] * 64}),
        ("/v1/completions", {"prompt": [[7] * 3_999] * 64, "max_tokens": 0, "echo": True, "logprobs": 0}),
    ],
    ids=["embeddings", "echo"],
)
def test_clients_say_how_long_they_wait(http: httpx.Client, path: str, body: dict[str, object]) -> None:
    late = http.post(path, json={"model": "small"} | body, headers={"x-timeout-seconds": "0.05"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert http.get("/ready").status_code == 200
