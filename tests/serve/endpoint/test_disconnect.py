"""A client that leaves ends its generation, streamed or not, and frees its place."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from llm.serve.endpoint.app import create_app
from llm.serve.endpoint.config import LimitsConfig, Settings
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.models.catalogue import Catalogue
from tests.serve.endpoint import raw

LONG: Any = {"model": "small", "prompt": "x", "max_tokens": 3_900, "ignore_eos": True}
CHAT: Any = {"model": "small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3_900, "ignore_eos": True}


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[Engine]:
    """An engine that no other test uses."""
    engine = Engine(folder, model_id="small", config=EngineConfig(threads=1, slots=8, queue_requests=400))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def app(alone: Engine) -> FastAPI:
    return create_app(Catalogue.of(alone), Settings(limits=LimitsConfig(requests=400)))


@pytest.fixture(scope="module")
def place(app: FastAPI, running: Any) -> Iterator[str]:
    with running(app) as address:
        yield address


def alive(app: FastAPI, engine: Engine) -> int:
    """Requests in work and generations that run or wait."""
    load = engine.load()
    return int(app.state.service.traffic.running) + load.running + load.waiting


def ends(app: FastAPI, engine: Engine, seconds: float = 2.0) -> bool:
    """Whether nothing is alive after a while."""
    deadline = time.monotonic() + seconds
    while alive(app, engine) and time.monotonic() < deadline:
        time.sleep(0.01)
    return alive(app, engine) == 0


@pytest.mark.parametrize("body", [LONG, LONG | {"n": 4}, LONG | {"best_of": 3}, CHAT], ids=["one", "several", "best", "chat"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(app: FastAPI, alone: Engine, place: str, body: dict[str, Any], stream: bool) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    if stream:
        body = {name: value for name, value in body.items() if name != "best_of"} | {"stream": True}
    with raw.connect(place) as leaving:
        leaving.sendall(raw.post(path, body))
        while alone.load().running == 0:
            time.sleep(0.001)
    assert ends(app, alone)
    assert httpx.get(f"{place}/ready").status_code == 200


def test_a_client_that_has_sent_its_next_request_already_is_missed_too(app: FastAPI, alone: Engine, place: str) -> None:
    with raw.connect(place) as leaving:
        leaving.sendall(raw.post("/v1/completions", LONG) * 2)
        while alone.load().running == 0:
            time.sleep(0.001)
    assert ends(app, alone)


def test_a_client_that_leaves_while_it_sends_is_forgotten(app: FastAPI, alone: Engine, place: str) -> None:
    with raw.connect(place) as leaving:
        leaving.sendall(raw.post("/v1/completions", LONG)[:-5])
        while app.state.service.traffic.running == 0:
            time.sleep(0.001)
    assert ends(app, alone)


@pytest.mark.parametrize(("clients", "at_once"), [(50, 20), pytest.param(1_000, 200, marks=pytest.mark.long)])
def test_of_many_clients_that_leave_no_generation_stays(app: FastAPI, alone: Engine, place: str, clients: int, at_once: int) -> None:
    def leave(number: int) -> None:
        dice = random.Random(number)
        with raw.connect(place) as leaving, contextlib.suppress(TimeoutError):  # whoever gets no answer leaves without
            leaving.settimeout(5)
            leaving.sendall(raw.post("/v1/completions", LONG | {"stream": dice.random() < 0.7, "n": dice.choice([1, 1, 2])}))
            if dice.random() < 0.7:
                leaving.recv(dice.choice([1, 500, 5_000]))
            else:
                time.sleep(dice.random() / 20)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(leave, range(clients)))
    assert ends(app, alone)
    assert httpx.get(f"{place}/ready").status_code == 200
