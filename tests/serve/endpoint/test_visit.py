"""What a request takes is given back, also when its thread comes late."""

from __future__ import annotations

import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from llm.data.tokenizer import Tokenizer
from llm.serve.endpoint.app import create_app
from llm.serve.endpoint.generate import start
from llm.serve.endpoint.requests import CompletionRequest
from llm.serve.endpoint.visit import Cleanup, Over, Visit
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.engine.generation import Finished, Generation
from llm.serve.models.catalogue import Catalogue
from llm.serve.observe.record import Record
from tests.serve.endpoint import raw

INPUT: Any = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["x"]}
LONG: Any = {"model": "small", "prompt": "x", "max_tokens": 3_900, "ignore_eos": True}
ROUTES = {
    "/v1/completions": LONG,
    "/v1/chat/completions": {"model": "small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3_900, "ignore_eos": True},
    "/v2/models/small/infer": {
        "inputs": [INPUT],
        "parameters": {"max_tokens": 3_900, "ignore_eos": True},
    },
}


def test_the_last_is_released_first_and_late_ones_at_once() -> None:
    released: list[int] = []
    cleanup = Cleanup()
    for number in range(3):
        cleanup.callback(functools.partial(released.append, number))
    cleanup.check()
    assert released == []
    cleanup.close()
    assert released == [2, 1, 0]
    with pytest.raises(Over):
        cleanup.callback(functools.partial(released.append, 3))
    assert released == [2, 1, 0, 3]
    with pytest.raises(Over):
        cleanup.check()


def test_a_context_that_is_entered_late_is_left_at_once() -> None:
    inside: list[str] = []

    @contextmanager
    def context() -> Any:
        inside.append("in")
        yield
        inside.append("out")

    cleanup = Cleanup()
    cleanup.enter(context())
    assert inside == ["in"]
    cleanup.close()
    with pytest.raises(Over):
        cleanup.enter(context())
    assert inside == ["in", "out"] * 2


@dataclass(frozen=True)
class SlowTokenizer(Tokenizer):
    """One that reads a text when it is told to, and remembers it."""

    asked: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    texts: list[str] = field(default_factory=list)

    def encode(self, text: str) -> list[int]:
        self.texts.append(text)
        self.asked.set()
        self.go.wait(20)
        return super().encode(text)


@pytest.mark.parametrize("path", ROUTES)
def test_a_client_that_leaves_while_its_prompt_is_read_leaves_no_generation(folder: Path, running: Any, path: str) -> None:
    engine = Engine(folder, model_id="small", config=EngineConfig(threads=1))
    slow = SlowTokenizer(**vars(engine.tokenizer))
    engine.tokenizer = slow
    catalogue, ended = Catalogue.of(engine), Queue[Generation]()
    app = create_app(catalogue)
    engine.watch = lambda event: ended.put(event.generation) if isinstance(event, Finished) else None
    with running(app) as address:
        with raw.connect(address) as leaving:
            leaving.sendall(raw.post(path, ROUTES[path]))
            assert slow.asked.wait(20)
        while app.state.service.traffic.running:
            time.sleep(0.001)
        slow.go.set()
        short = LONG | {"max_tokens": 1}
        assert httpx.post(f"{address}/v1/completions", json=short, timeout=20).status_code == 200
        assert ended.get(timeout=20).sampling.max_tokens == 1
        assert ended.empty()
        assert engine.load().running == engine.load().waiting == 0
    closed(catalogue)


def test_of_many_prompts_none_is_read_after_its_client_has_left(folder: Path) -> None:
    engine = Engine(folder, model_id="small", config=EngineConfig(threads=1))
    slow = SlowTokenizer(**vars(engine.tokenizer))
    engine.tokenizer = slow
    catalogue = Catalogue.of(engine)
    service, visit = create_app(catalogue).state.service, Visit(Record(), "")
    body = CompletionRequest(model="small", prompt=["x"] * 8)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(start, service, service.lease("small", visit), visit, body, body.prompt, max_tokens=1)
        assert slow.asked.wait(20)
        visit.cleanup.close()
        slow.go.set()
        with pytest.raises(Over):
            started.result(20)
    assert slow.texts == ["x"]
    closed(catalogue)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": "small", "prompt": ["x"] * 65}, "prompt"),
        ("/v1/completions", {"model": "small", "prompt": ["x"] * 33, "best_of": 2}, "n"),
        ("/v2/models/small/infer", {"inputs": [INPUT | {"shape": [65], "data": ["x"] * 65}]}, "inputs"),
    ],
)
def test_of_too_many_prompts_none_is_read(folder: Path, path: str, body: dict[str, Any], param: str) -> None:
    engine = Engine(folder, model_id="small", config=EngineConfig(threads=1))
    slow = SlowTokenizer(**vars(engine.tokenizer))
    slow.go.set()
    engine.tokenizer = slow
    catalogue = Catalogue.of(engine)
    with TestClient(create_app(catalogue), base_url="http://127.0.0.1") as client:
        answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert "64 texts" in answer.json()["error"]["message"]
    assert slow.texts == []
    closed(catalogue)


def closed(catalogue: Catalogue) -> None:
    """A model is closed after its last lease: none is left."""
    closing = threading.Thread(target=catalogue.loaded()[0].close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()


def test_a_lease_that_is_taken_late_is_given_back(folder: Path) -> None:
    catalogue = Catalogue.of(Engine(folder, model_id="small", config=EngineConfig(threads=1)))
    visit = Visit(Record(), "")
    visit.cleanup.close()
    with pytest.raises(Over):
        create_app(catalogue).state.service.lease("small", visit)
    closed(catalogue)
