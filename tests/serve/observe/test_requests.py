"""A real server under its own eyes: what it counts, says and keeps, against what its client saw."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm.serve.endpoint import gate
from llm.serve.endpoint.app import create_app
from llm.serve.endpoint.config import LimitsConfig, Settings
from llm.serve.endpoint.gate import Gate, Traffic
from llm.serve.endpoint.keys import make_key
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.models.catalogue import Catalogue
from llm.serve.observe import log, segments
from llm.serve.observe.observer import Observer
from llm.serve.observe.record import PLACE, Record
from llm.serve.observe.requests import Observed

CANARIES = [f"canary{number}ZuxQ9vLd8KpW3sRt7" for number in range(8)]


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """All that this process logs, in the server's form."""
    root, stream = logging.getLogger(), io.StringIO()
    handler, level = logging.StreamHandler(stream), root.level
    handler.setFormatter(log.JsonLines())
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def serving(catalogue: Catalogue, running: Any) -> Callable[..., Any]:
    """Starts a server with some settings, and gives a client for the length of a block."""

    @contextmanager
    def start(observer: Observer | None = None, **settings: Any) -> Iterator[httpx.Client]:
        app = create_app(catalogue, Settings.model_validate(settings), observer)
        with running(app) as address, httpx.Client(base_url=address, timeout=60) as client:
            yield client

    return start


def figures(client: httpx.Client) -> Callable[..., float]:
    """A look at /metrics: the sum over samples of a name that have these labels."""
    families = list(text_string_to_metric_families(client.get("/metrics").raise_for_status().text))

    def total(name: str, **labels: str) -> float:
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        found = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
        return sum(found) if found else math.nan

    return total


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, stream.getvalue().splitlines()) if line["logger"] == "llm.serve.requests"]


def chat(client: httpx.Client, content: str = "Hello", **settings: Any) -> httpx.Response:
    body = {"model": "small", "messages": [{"role": "user", "content": content}], "max_tokens": 5, "seed": 1, **settings}
    return client.post("/v1/chat/completions", json=body)


def complete(client: httpx.Client, prompt: Any = "def main", **settings: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"model": "small", "prompt": prompt, "max_tokens": 5, "seed": 1, **settings})


def test_figures_and_log_equal_what_the_client_saw(serving: Callable[..., Any], logged: io.StringIO) -> None:
    statuses: Counter[tuple[str, int]] = Counter()
    usages = list[dict[str, Any]]()
    lock = threading.Lock()

    def work(client: httpx.Client, seed: int) -> None:
        for number in range(6):
            length = 1 + (seed * 6 + number) % 7
            answers = [chat(client, "Hello " * length, max_tokens=length), complete(client, max_tokens=length + 1)]
            answers += [
                chat(client, temperature=9),
                complete(client, model="other"),
                client.get("/nowhere"),
                client.get("/v1/models/small"),
            ]
            with lock:
                for answer in answers:
                    statuses[answer.request.url.path, answer.status_code] += 1
                usages.extend(answer.json()["usage"] for answer in answers if "usage" in answer.json())

    with serving() as client:
        threads = [threading.Thread(target=work, args=(client, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total = figures(client)
    labels = {"model": "small", "version": "1"}
    assert statuses["/v1/chat/completions", 200] == statuses["/v1/completions", 200] == len(usages) / 2 == 24
    for (path, status), count in statuses.items():
        route = {"/nowhere": "other", "/v1/models/small": "/v1/models/{model_id:path}"}.get(path, path)
        assert total("trainyard_http_requests_total", route=route, status=str(status)) == count, (path, status)
    assert total("trainyard_http_requests_total") == sum(statuses.values())
    assert total("trainyard_errors_total", kind="invalid_request") == statuses["/v1/chat/completions", 400]
    assert total("trainyard_errors_total", kind="not_found") == statuses["/nowhere", 404] + statuses["/v1/completions", 404]
    assert total("trainyard_request_prompt_tokens_sum", **labels) == sum(usage["prompt_tokens"] for usage in usages)
    assert total("trainyard_request_generation_tokens_sum", **labels) == sum(usage["completion_tokens"] for usage in usages)
    assert total("trainyard_prompt_cached_tokens_total", **labels) == sum(
        usage["prompt_tokens_details"]["cached_tokens"] for usage in usages
    )
    for name in ("time_to_first_token_seconds", "request_queue_time_seconds", "e2e_request_latency_seconds"):
        assert total(f"trainyard_{name}_count", **labels) == len(usages), name
    assert total("trainyard_inter_token_latency_seconds_count", **labels) == sum(usage["completion_tokens"] > 1 for usage in usages)
    assert total("trainyard_batch_size_count", kind="decode", **labels) > 0
    assert total("trainyard_num_requests_running", **labels) == total("trainyard_num_requests_waiting", **labels) == 0
    found = lines(logged)
    assert len(found) == sum(statuses.values()) + 1  # and /metrics
    answered = [line for line in found if "finish_reason" in line]
    assert sum(line["completion_tokens"] for line in answered) == sum(usage["completion_tokens"] for usage in usages)
    assert all({"queue_seconds", "first_token_seconds", "seconds", "id", "model", "version"} <= line.keys() for line in answered)


def test_an_answer_carries_the_id_that_its_line_has(serving: Callable[..., Any], logged: io.StringIO) -> None:
    with serving() as client:
        answers = [chat(client), client.get("/nowhere"), chat(client, stream=True)]
    assert [answer.headers["x-request-id"] for answer in answers] == [line["id"] for line in lines(logged)]
    assert answers[0].json()["id"] == answers[0].headers["x-request-id"].replace("req", "chatcmpl")


def test_a_client_that_leaves_is_in_the_books(serving: Callable[..., Any], logged: io.StringIO) -> None:
    with serving() as client:
        body = {"model": "small", "prompt": "a", "max_tokens": 3_000, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
        while not lines(logged):
            pass
        assert figures(client)("trainyard_errors_total", kind="client_left") == 1
    line = lines(logged)[0]
    assert (line["status"], line["outcome"], line["level"]) == (200, 499, "info")
    assert (line["finish_reason"], line["route"]) == ("cancelled", "/v1/completions")


ENDLESS: Any = {"max_tokens": 3_000, "ignore_eos": True}
IMPOSSIBLE: Any = {"structured_outputs": {"regex": "a{0}"}, "ignore_eos": True}


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_client_made_impossible_is_its_own_error(serving: Callable[..., Any], logged: io.StringIO, stream: bool) -> None:
    with serving() as client:
        answer = complete(client, **IMPOSSIBLE, stream=stream)
        total = figures(client)
    line = lines(logged)[0]
    assert answer.status_code == line["status"] == (200 if stream else 400)
    assert (line.get("outcome", 400), line["level"], "error" in line) == (400, "info", False)
    assert total("trainyard_errors_total", kind="invalid_request") == total("trainyard_errors_total") == 1


def test_a_stream_whose_time_runs_out_is_an_error(serving: Callable[..., Any], logged: io.StringIO) -> None:
    with serving() as client:
        client.headers["X-Timeout-Seconds"] = "0.2"
        assert "deadline_exceeded" in complete(client, **ENDLESS, stream=True).text
        total = figures(client)
    line = lines(logged)[0]
    assert (line["status"], line["outcome"], line["level"]) == (200, 504, "error")
    assert total("trainyard_errors_total", kind="deadline") == total("trainyard_errors_total") == 1


def test_a_stream_whose_engine_closes_is_an_error(folder: Path, running: Any, logged: io.StringIO) -> None:
    engine = Engine(folder, model_id="small", config=EngineConfig(threads=1))
    body = {"model": "small", "prompt": "a", "stream": True, **ENDLESS}
    with running(create_app(Catalogue.of(engine))) as address, httpx.Client(base_url=address, timeout=60) as client:
        with client.stream("POST", "/v1/completions", json=body) as answer:
            parts = answer.iter_lines()
            next(parts)
            engine.close()
            assert '"cancelled"' in "".join(parts)
        total = figures(client)
    line = lines(logged)[0]
    assert (line["status"], line["outcome"], line["level"]) == (200, 503, "error")
    assert total("trainyard_errors_total", kind="unavailable") == total("trainyard_errors_total") == 1


def test_a_stream_that_fails_inside_is_an_error(serving: Callable[..., Any], logged: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no usage")

    with serving() as client:
        monkeypatch.setattr("llm.serve.endpoint.routes.chat.usage_of", fail)
        assert "server_error" in chat(client, stream=True, stream_options={"include_usage": True}).text
        total = figures(client)
    line = lines(logged)[0]
    assert (line["status"], line["outcome"], line["level"]) == (200, 500, "error")
    assert "ValueError at" in line["error"]
    assert total("trainyard_errors_total", kind="internal") == total("trainyard_errors_total") == 1


def test_a_client_that_waits_for_the_whole_answer_has_not_left(serving: Callable[..., Any], logged: io.StringIO) -> None:
    with serving() as client:
        for stream in (False, True) * 20:
            chat(client, stream=stream, max_tokens=1)
        assert math.isnan(figures(client)("trainyard_errors_total"))
    assert not any("outcome" in line for line in lines(logged))


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """An application whose answer begins and never ends."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.Event().wait()


def begun(app: ASGIApp, *, then_cancel: bool) -> Record:
    """The record of a request whose answer began and wasn't finished."""
    record, headers = Record(), [(b"host", b"localhost")]
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "query_string": b"", "headers": headers, PLACE: record}

    async def request() -> None:
        started, bodies = asyncio.Event(), iter([{"type": "http.request"}])

        async def receive() -> Message:
            return next(bodies, None) or await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(_: Message) -> None:
            started.set()

        answering = asyncio.ensure_future(Observed(app, Observer(), ())(scope, receive, send))
        await started.wait()
        if then_cancel:
            answering.cancel()
        await asyncio.wait({answering})

    asyncio.run(request())
    return record


def test_an_answer_that_the_server_cuts_off_is_no_client_that_left() -> None:
    record = begun(endless, then_cancel=True)
    assert (record.status, record.outcome, record.error) == (200, 503, "")


def test_an_answer_that_outlives_every_limit_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "GRACE_SECONDS", 0)
    settings = Settings(limits=LimitsConfig(request_seconds=0.2))
    record = begun(Gate(endless, settings=settings, keyring=None, traffic=Traffic(), open_paths=frozenset()), then_cancel=False)
    assert (record.status, record.outcome) == (200, 504)
    assert record.error.startswith("TimeoutError at")


def test_secrets_are_in_no_line_and_no_label(serving: Callable[..., Any], logged: io.StringIO, tmp_path: Path) -> None:
    (token, line), path = make_key("ann"), tmp_path / "keys"
    path.write_text(line)
    path.chmod(0o600)
    with serving(keys=str(path)) as client:
        honest = {"Authorization": f"Bearer {token}"}
        chat(client, CANARIES[0])
        client.headers.update(honest)
        assert chat(client, CANARIES[0]).status_code == 200
        complete(client, CANARIES[1], model=CANARIES[2])
        client.get(f"/v1/models/{CANARIES[2]}?api_key={CANARIES[3]}")
        client.get(f"/{CANARIES[4]}", headers={"Cookie": CANARIES[5], "X-Api-Key": CANARIES[6], "X-Request-Id": CANARIES[6]})
        client.get("/health", headers={"Authorization": f"Bearer {CANARIES[7]}", "Host": CANARIES[7]})
        client.post("/v1/completions", content=f'{{"model": "{CANARIES[0]}', headers={"Content-Type": "application/json"})
        client.post("/v1/completions", json={CANARIES[1]: CANARIES[1]})
        client.request(CANARIES[2].upper(), "/v1/completions")
        written = client.get("/metrics").raise_for_status().text + "\n".join(
            line for line in logged.getvalue().splitlines() if json.loads(line)["logger"].startswith(("llm", "uvicorn"))
        )
    seen = [canary for canary in (*CANARIES, token, token[3:]) if canary.lower() in written.lower()]
    assert seen == []
    assert len(lines(logged)) == 10
    assert {line.get("key", "") for line in lines(logged)} == {"", "ann"}


def test_an_error_inside_says_its_kind_and_not_its_message(
    serving: Callable[..., Any], logged: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError(f"cannot read {CANARIES[0]}")

    with serving() as client:
        monkeypatch.setattr("llm.serve.endpoint.routes.chat.chat_ids", fail)
        answer = chat(client)
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert figures(client)("trainyard_errors_total", kind="internal") == 1
    assert "ValueError at" in str(lines(logged)[0]["error"])
    assert CANARIES[0] not in logged.getvalue() + answer.text


def test_metrics_on_a_port_of_their_own(serving: Callable[..., Any], running: Any, free_port: int) -> None:
    with serving(observe={"metrics_port": free_port}) as client:
        assert client.get("/metrics").status_code == 404
        chat(client)
        with httpx.Client(base_url=f"http://127.0.0.1:{free_port}") as own:
            assert figures(own)("trainyard_http_requests_total", route="/v1/chat/completions") == 1


def test_answers_are_sampled_and_rated(serving: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "traffic"
    with serving(observe={"samples": {"folder": str(folder), "share": 0}}) as client:
        whole, streamed, text = chat(client, "I am jo@example.org"), chat(client, stream=True), complete(client, [5, 6, 7])
        events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
        for id in (whole.json()["id"], events[0]["id"], text.json()["id"]):
            answer = client.post("/v1/feedback", json={"id": id, "rating": "up", "comment": "good"})
            assert (answer.status_code, answer.json()) == (200, {"id": id, "object": "feedback", "rating": "up"})
        kept = [line for line in segments.read(folder) if line["record"] == "answer"]
        assert [line["messages"][0]["content"] for line in kept[:2]] == ["I am <EMAIL>", "Hello"]
        assert kept[0]["answer"] == whole.json()["choices"][0]["message"]["content"]
        assert kept[1]["answer"] == "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        assert (kept[2]["kind"], kept[2]["answer"]) == ("completion", text.json()["choices"][0]["text"])
        assert figures(client)("trainyard_feedback_total", rating="up", model="small") == 3
        for deleted in (True, False):
            answer = client.delete(f"/v1/feedback/{whole.json()['id']}")
            assert answer.json() == {"id": whole.json()["id"], "object": "feedback", "deleted": deleted}
        assert len(list(segments.read(folder))) == 4


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"id": "chatcmpl-unknown", "rating": "up"}, 404, "id"),
        ({"id": "../etc", "rating": "up"}, 400, "id"),
        ({"id": "chatcmpl-1", "rating": "five"}, 400, "rating"),
        ({"id": "chatcmpl-1", "rating": "up", "comment": "x" * 2_001}, 400, "comment"),
        ({"id": "chatcmpl-1", "rating": "up", "stars": 5}, 400, "stars"),
        ({"id": "chatcmpl-1"}, 400, "rating"),
    ],
)
def test_feedback_is_checked(serving: Callable[..., Any], tmp_path: Path, body: dict[str, Any], status: int, param: str) -> None:
    with serving(observe={"samples": {"folder": str(tmp_path / "traffic")}}) as client:
        answer = client.post("/v1/feedback", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_nothing_is_kept_and_nothing_can_be_rated_by_default(serving: Callable[..., Any]) -> None:
    with serving() as client:
        id = chat(client).json()["id"]
        assert client.post("/v1/feedback", json={"id": id, "rating": "up"}).status_code == 404
        assert "/v1/feedback" not in client.get("/openapi.json").json()["paths"]


def test_spans_of_a_real_request(serving: Callable[..., Any]) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with serving(Observer(provider=provider)) as client:
        usage = chat(client, CANARIES[0]).json()["usage"]
    (span,) = exporter.get_finished_spans()  # it ends after the answer, with the request
    found = dict(span.attributes or {})
    assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert CANARIES[0] not in span.to_json()
