"""What a version on trial is told of its requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from llm.serve.endpoint.app import create_app
from llm.serve.endpoint.config import LimitsConfig, Settings
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.engine.sampling import Sampling
from llm.serve.models.catalogue import Catalogue

READING: Any = {"model": "slow", "prompt": [40] * 3_900, "max_tokens": 1}
HASTE = {"x-timeout-seconds": "0.2"}


@pytest.fixture
def catalogue(folder: Path) -> Iterator[Catalogue]:
    """One that reads a token per step, one request at a time."""
    engine = Engine(folder, model_id="slow", config=EngineConfig(threads=1, slots=1, prefill_tokens=1))
    yield Catalogue.of(engine)
    engine.close()


@pytest.fixture
def client(catalogue: Catalogue) -> TestClient:
    return TestClient(create_app(catalogue), base_url="http://127.0.0.1")


@pytest.mark.parametrize("headers", [{}, {"x-timeout-seconds": "60"}], ids=["unasked", "longer"])
def test_the_servers_own_deadline_before_the_first_token_is_a_failure(catalogue: Catalogue, headers: dict[str, str]) -> None:
    (served,) = catalogue.loaded()
    client = TestClient(create_app(catalogue, Settings(limits=LimitsConfig(request_seconds=0.2))), base_url="http://127.0.0.1")
    assert client.post("/v1/completions", json=READING, headers=headers).status_code == 504
    assert (served.tally.requests, served.tally.failures) == (1, 1)


def test_a_deadline_that_the_client_chose_is_none(catalogue: Catalogue, client: TestClient) -> None:
    (served,) = catalogue.loaded()
    assert client.post("/v1/completions", json=READING, headers=HASTE).status_code == 504
    assert served.tally.requests == 0
    assert client.post("/v1/completions", json=READING | {"prompt": [40]}).status_code == 200
    assert (served.tally.requests, served.tally.failures) == (1, 0)


def test_nor_is_a_deadline_in_the_queue(catalogue: Catalogue) -> None:
    client = TestClient(create_app(catalogue, Settings(limits=LimitsConfig(request_seconds=0.2))), base_url="http://127.0.0.1")
    (served,) = catalogue.loaded()
    before = served.engine.submit([40], Sampling(max_tokens=3_900, ignore_eos=True))
    running = threading.Event()
    reader = threading.Thread(target=lambda: [running.set() for _ in before])
    reader.start()
    running.wait()
    assert client.post("/v1/completions", json=READING | {"prompt": [40]}).status_code == 504
    before.cancel()
    reader.join()
    assert served.tally.requests == 0
