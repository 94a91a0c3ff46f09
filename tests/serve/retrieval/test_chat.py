"""Passages through the whole server: asked for, cited, streamed, refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llm.errors import SourceError
from llm.serve.endpoint.app import create_app
from llm.serve.endpoint.config import Settings
from llm.serve.endpoint.service import Service
from llm.serve.engine.engine import Engine
from llm.serve.models.catalogue import Catalogue
from llm.serve.observe.observer import Observer
from llm.serve.retrieval.config import RetrievalConfig
from llm.serve.retrieval.context import INTRODUCTION
from llm.serve.retrieval.retriever import Retriever

CONTEXT_TOKENS = 4_000


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "harbour.md").write_text("The harbour crane of Oskarsund lifts ninety tonnes.\n\n" * 30)
    (tmp_path / "docs" / "kettle.txt").write_text("Kettle descaling needs citric acid, never vinegar.")
    return tmp_path / "docs"


@pytest.fixture
def serving(catalogue: Catalogue, running: Any, documents: Path) -> Callable[..., Any]:
    """Starts a server that quotes the documents, and gives a client for the length of a block."""

    @contextmanager
    def start(**settings: Any) -> Iterator[httpx.Client]:
        app = create_app(catalogue, Settings.model_validate({"retrieval": {"documents": str(documents), **settings}}))
        with running(app) as address, httpx.Client(base_url=address, timeout=60) as client:
            yield client

    return start


def chat(client: httpx.Client, content: str = "What is used for descaling the kettle?", **settings: Any) -> httpx.Response:
    body = {"model": "small", "messages": [{"role": "user", "content": content}], "max_tokens": 3, "seed": 1, **settings}
    return client.post("/v1/chat/completions", json=body)


def test_an_answer_carries_its_citations_and_the_prompt_their_text(serving: Callable[..., Any]) -> None:
    with serving() as client:
        plain, quoting = chat(client).json(), chat(client, retrieval={"top": 2}).json()
        (first, *_) = quoting["citations"]
        assert "citations" not in plain
        assert (first["number"], first["document"], first["start"]) == (1, "docs/kettle.txt", 0)
        assert first["text"] == "Kettle descaling needs citric acid, never vinegar."
        text = f"{INTRODUCTION}\n\n[1] docs/kettle.txt\n{first['text']}\n\nWhat is used for descaling the kettle?"
        asked = client.post("/tokenize", json={"model": "small", "messages": [{"role": "user", "content": text}]}).json()["count"]
        assert chat(client, retrieval={"top": 1}).json()["usage"]["prompt_tokens"] == asked


def test_a_stream_begins_with_its_citations(serving: Callable[..., Any]) -> None:
    with serving() as client:
        whole = chat(client, retrieval={}).json()
        lines = chat(client, retrieval={}, stream=True, n=2).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert events[0]["citations"] == whole["citations"]
    assert all("citations" not in event for event in events[1:])


@pytest.mark.parametrize(("always", "asked", "quoted"), [(True, {}, 1), (True, {"retrieval": {"top": 0}}, 0), (False, {}, 0)])
def test_the_request_goes_before_the_servers_default(serving: Callable[..., Any], always: bool, asked: dict[str, Any], quoted: int) -> None:
    with serving(always=always, top=1) as client:
        assert len(chat(client, **asked).json().get("citations", [])) == quoted


def test_the_context_is_never_overrun(serving: Callable[..., Any]) -> None:
    with serving(top=16, chunk_tokens=256) as client:
        for words in range(50, 1_200, 150):
            for settings in ({}, {"max_tokens": 700}, {"max_tokens": None}):
                answer = chat(client, "crane harbour " * words, retrieval={"top": 16}, **settings)
                without = chat(client, "crane harbour " * words, **settings)
                assert answer.status_code == without.status_code, (words, settings, answer.text)
                if answer.status_code == 200:
                    assert answer.json()["usage"]["total_tokens"] <= CONTEXT_TOKENS


def test_a_question_that_nothing_fits_is_answered_without(serving: Callable[..., Any]) -> None:
    with serving() as client:
        assert chat(client, "zzzz", retrieval={}).json()["citations"] == []


@pytest.mark.parametrize("wrong", [{"top": 17}, {"top": -1}, {"top": "4"}, {"best": 1}, 4])
def test_a_switch_that_is_wrong_is_named(serving: Callable[..., Any], wrong: Any) -> None:
    with serving() as client:
        answer = chat(client, retrieval=wrong)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in ("retrieval", "retrieval.top", "best")


def test_a_server_without_documents_says_so(http: httpx.Client) -> None:
    answer = chat(http, retrieval={"top": 2})
    assert (answer.status_code, answer.json()["error"]["param"], answer.json()["error"]["code"]) == (400, "retrieval", "no_documents")
    assert chat(http, retrieval={"top": 0}).status_code == 200


def test_a_folder_that_is_missing_stops_the_start(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        create_app(catalogue, Settings.model_validate({"retrieval": {"documents": str(tmp_path / "missing")}}))


def test_what_is_observed_is_written_out_before_documents_are_waited_for(catalogue: Catalogue, engine: Engine, documents: Path) -> None:
    exported, watched, at_work, found = threading.Event(), threading.Event(), threading.Event(), Queue[bool]()

    class Exporter(InMemorySpanExporter):
        def shutdown(self) -> None:
            exported.set()

    def embed(ids: list[list[int]]) -> np.ndarray:
        if watched.is_set():
            at_work.set()
            found.put(exported.wait(5))
        return np.ones((len(ids), 1), np.float32)

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Exporter()))
    settings = RetrievalConfig(documents=str(documents), kind="embedding", refresh_seconds=0.05)
    retriever = Retriever(settings, engine.tokenizer, embed=embed)
    watched.set()
    (documents / "later.md").write_text("The ferry leaves at six.")
    assert at_work.wait(20)
    Service(catalogue, Settings(), Observer(provider=provider), threading.Semaphore(), retriever).close()
    assert found.get(timeout=20)
