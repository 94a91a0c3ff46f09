"""Who is let in, how many at once, and that nothing else is served without a key."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm.serve.endpoint.app import create_app
from llm.serve.endpoint.config import LimitsConfig, Settings
from llm.serve.endpoint.gate import Gate, Traffic
from llm.serve.endpoint.keys import make_key
from llm.serve.endpoint.stream import EventStream
from llm.serve.endpoint.visit import PLACE as VISIT
from llm.serve.models.catalogue import Catalogue
from tests.serve.endpoint import raw

LONG: Any = {"model": "small", "prompt": "x", "max_tokens": 3_900, "ignore_eos": True}
SHORT: Any = {"model": "small", "prompt": "x", "max_tokens": 1}


def keys_file(folder: Path, *lines: str) -> Path:
    path = folder / "keys"
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return path


def test_every_answer_carries_an_id_and_says_no_more_than_it_must(http: httpx.Client) -> None:
    answers = [http.get("/health"), http.get("/v1/models"), http.get("/nothing"), http.post("/v1/completions", json={})]
    answers.append(http.get("/v1/models", headers={"host": "attacker.example"}))
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
        assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("host", ["attacker.example:80", "localhost.attacker.example", "127.0.0.1.nip.io", "localhost:80:x", ""])
def test_another_hosts_name_is_refused(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000"])
def test_this_machines_names_are_served(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


def test_names_can_be_allowed(catalogue: Catalogue, running: Any) -> None:
    with running(create_app(catalogue, Settings(host_names=("models.example",)))) as address:
        statuses = [httpx.get(f"{address}/ready", headers={"host": host}).status_code for host in ("models.example:443", "other.example")]
    assert statuses == [200, 403]


@pytest.fixture(scope="module")
def secret_and_address(catalogue: Catalogue, running: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server that wants a key, and one."""
    secret, line = make_key("tests")
    settings = Settings(keys=keys_file(tmp_path_factory.mktemp("keys"), line), limits=LimitsConfig(failed_keys_per_minute=1_000_000))
    with running(create_app(catalogue, settings)) as address:
        yield secret, address


def test_a_key_opens_every_route(secret_and_address: tuple[str, str]) -> None:
    secret, address = secret_and_address
    with httpx.Client(base_url=address, headers={"authorization": f"Bearer {secret}"}) as with_key:
        assert with_key.post("/v1/completions", json=SHORT).status_code == 200
        assert [with_key.get(path).status_code for path in ("/v1/models", "/ready", "/metrics", "/v2/models/small")] == [200] * 4
        document = with_key.get("/openapi.json").json()
    assert document["paths"]["/v1/models"]["get"]["security"]
    assert "security" not in document["paths"]["/health"]["get"]


def test_without_one_only_health_answers_and_the_pages_files(secret_and_address: tuple[str, str]) -> None:
    address = secret_and_address[1]
    assert [httpx.get(f"{address}{path}").status_code for path in ("/health", "/ready")] == [200, 200]
    refused = httpx.get(f"{address}/v1/models")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert refused.json()["error"]["code"] == "invalid_api_key"


def tricks(secret: str) -> list[tuple[str, str, str]]:
    """Method, target (with PATH in it) and headers of requests that might be mistaken for ones with a key: 25 × 20."""
    digest = hashlib.sha256(secret.encode()).hexdigest()
    basic = base64.b64encode(f"tests:{secret}".encode()).decode()
    places = ("", "/", "/.", "/health/..", "/health/%2e%2e", "/health%2f..", "//health", "/%2f", "/page.css/..", "\\health", "/health?")
    origins = ("http://localhost", "http://localhost/health/..")
    ends = ("/", "%20", "%00", "?/health", "#/health", ";/health", "/../health", "/%2e%2e/health", "%3f/health", "\\")
    targets = (
        [f"{start}PATH" for start in places + origins] + [f"PATH{end}" for end in ends] + ["PATH?api_key=KEY", "PATH?key=KEY&token=KEY"]
    )
    headers = [
        *("", "Authorization: Bearer", "Authorization: Bearer null", f"Authorization: Bearer {digest}", f"Authorization: {secret}"),
        *(f"Authorization: Bearer {wrong}" for wrong in (secret[:-1], f"{secret}x", secret.swapcase())),
        *(f"Authorization: Basic {basic}", f"Authorization: Bearer x\r\nAuthorization: Bearer {secret}"),
        *(f"X-API-Key: {secret}", f"Api-Key: {secret}", f"Cookie: key={secret}", f"Proxy-Authorization: Bearer {secret}"),
        *("X-Forwarded-For: 127.0.0.1\r\nX-Real-IP: 127.0.0.1", "Forwarded: for=127.0.0.1;host=localhost"),
        *("X-Original-URL: /health\r\nX-Rewrite-URL: /health", "X-Forwarded-Prefix: /health", "X-HTTP-Method-Override: GET"),
        "Upgrade: websocket\r\nConnection: upgrade",
    ]
    methods = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "get", "TRACE", "PATCH", "DELETE"]
    crossed = [(target, header) for target in targets for header in headers]
    return [(methods[place % len(methods)], target, header) for place, (target, header) in enumerate(crossed)]


def closed(method: str, target: str, answer: bytes, alive: bytes) -> bool:
    """Whether the gate refused: an error of what lies behind it, a 404 say, is a trick that went through.

    All tricks are HTTP that parses, so that none may be answered before the gate; only `/health?…` is a route without a key.
    """
    if target.startswith("/health?"):
        return answer.endswith(b"\r\n\r\n" + alive) if method == "GET" else raw.status(answer) == 405
    return raw.status(answer) in (401, 429)


def test_there_are_five_hundred_tricks() -> None:
    assert len(set(tricks("ty-secret"))) == 500


@pytest.mark.parametrize("share", [pytest.param(29, id="some"), pytest.param(1, id="all", marks=pytest.mark.long)])
def test_no_trick_opens_any_route(secret_and_address: tuple[str, str], share: int) -> None:
    secret, address = secret_and_address
    with httpx.Client(base_url=address, headers={"authorization": f"Bearer {secret}"}) as with_key:
        document, metrics = with_key.get("/openapi.json").json(), with_key.get("/metrics").text
        alive = with_key.get("/health").content
    routes = [path for path in document["paths"] if path not in ("/health", "/ready")] + ["/openapi.json", "/metrics", "/docs", "/nothing"]
    body = json.dumps(SHORT)
    content = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    opened = []
    for route in routes:
        path = route.replace("{model_id}", "small").replace("{model}", "small")
        for method, target, header in tricks(secret)[hash(route) % share :: share]:
            line = f"{method} {target.replace('PATH', path).replace('KEY', secret)} HTTP/1.1\r\n"
            answer = raw.exchange(address, f"{line}{content}{header}{chr(13) + chr(10) if header else ''}\r\n{body}".encode())
            if not closed(method, target, answer, alive):
                opened.append((line, header, answer[:80]))
    assert opened == []
    assert "# TYPE" in metrics


def test_failures_are_answered_more_and_more_slowly_and_a_right_key_passes(catalogue: Catalogue, running: Any, tmp_path: Path) -> None:
    secret, line = make_key("tests")
    settings = Settings(keys=keys_file(tmp_path, line), limits=LimitsConfig(failed_keys_per_minute=3))
    with running(create_app(catalogue, settings)) as address, httpx.Client(base_url=address) as http:
        answers = [http.get("/v1/models", headers={"authorization": "Bearer wrong"}) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [401] * 3 + [429] * 3
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert http.get("/v1/models", headers={"authorization": f"Bearer {secret}"}).status_code == 200


def test_a_keys_limits_hold(catalogue: Catalogue, running: Any, tmp_path: Path) -> None:
    (few, one), (small, two) = make_key("few", requests_per_minute=2), make_key("small", tokens_per_minute=10)
    with running(create_app(catalogue, Settings(keys=keys_file(tmp_path, one, two)))) as address, httpx.Client(base_url=address) as http:

        def ask(secret: str, **changes: Any) -> httpx.Response:
            return http.post("/v1/completions", json=SHORT | changes, headers={"authorization": f"Bearer {secret}"})

        assert [ask(few).status_code for _ in range(3)] == [200, 200, 429]
        assert ask(small, max_tokens=40, ignore_eos=True).status_code == 200
        refused = ask(small)
        assert refused.status_code == 429
        assert 60 < int(refused.headers["retry-after"]) < 600
        assert http.get("/health").status_code == 200


async def whole(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({})(scope, receive, send)


async def streamed(scope: Scope, receive: Receive, send: Send) -> None:
    async def events() -> AsyncIterator[str]:
        yield "data: 1\n\n"

    await EventStream(events(), scope[VISIT])(scope, receive, send)


@pytest.mark.parametrize(
    ("app", "running"),
    [
        (whole, {b"status": 1, b"{}": 0}),
        (streamed, {b"status": 1, b"data: 1\n\n": 1, b"data: [DONE]\n\n": 0, b"": 0}),
    ],
)
def test_whoever_has_read_an_answer_finds_its_place_given_back_while_a_drain_waits(app: ASGIApp, running: dict[bytes, int]) -> None:
    traffic, seen = Traffic(), {}

    async def send(message: Message) -> None:
        assert traffic.open == 1
        seen[message.get("body", b"status")] = traffic.running

    async def ask() -> None:
        request, headers = asyncio.Queue[Message](), [(b"host", b"localhost"), (b"content-length", b"1")]
        request.put_nowait({"type": "http.request"})
        scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
        await Gate(app, settings=Settings(), keyring=None, traffic=traffic, open_paths=frozenset())(scope, request.get, send)

    asyncio.run(ask())
    assert (seen, traffic.open) == (running, 0)


def test_texts_that_nobody_waits_for_are_paid_as_far_as_they_were_read(catalogue: Catalogue, running: Any, tmp_path: Path) -> None:
    secret, line = make_key("small", tokens_per_minute=10)
    headers = {"authorization": f"Bearer {secret}"}
    with running(create_app(catalogue, Settings(keys=keys_file(tmp_path, line)))) as address:
        with httpx.Client(base_url=address, headers=headers) as http:
            body = {"model": "small", "input": [[7] * 4_000] * 60}
            assert http.post("/v1/embeddings", json=body, headers={"X-Timeout-Seconds": "0.05"}).status_code == 504
            refused = http.post("/v1/embeddings", json={"model": "small", "input": "x"})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 60


def test_reading_counts_too(catalogue: Catalogue, running: Any, tmp_path: Path) -> None:
    secret, line = make_key("few", requests_per_minute=3)
    headers = {"authorization": f"Bearer {secret}"}
    with running(create_app(catalogue, Settings(keys=keys_file(tmp_path, line)))) as address, httpx.Client(base_url=address) as http:
        methods = ("GET", "HEAD", "OPTIONS", "GET")
        statuses = [http.request(method, "/v1/models", headers=headers).status_code for method in methods]
    assert statuses == [200, 405, 405, 429]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_a_body_is_bounded_whatever_the_method(address: str, method: str) -> None:
    head = f"{method} /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\nConnection: close\r\n\r\n"
    assert raw.status(raw.exchange(address, head.encode())) == 413  # before the body is sent


def test_who_sends_a_body_takes_a_place(catalogue: Catalogue, running: Any) -> None:
    app = create_app(catalogue, Settings(limits=LimitsConfig(requests=1)))
    head = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nConnection: close\r\n\r\n"
    with running(app) as address, raw.connect(address) as slow:
        slow.sendall(head)
        while app.state.service.traffic.running == 0:
            time.sleep(0.001)
        assert raw.status(raw.exchange(address, head)) == 429
        assert httpx.get(f"{address}/v1/models").status_code == 200
        slow.sendall(b"some text")
        assert raw.status(raw.received(slow)) == 200


def test_one_too_many_is_told_to_come_back(catalogue: Catalogue, running: Any) -> None:
    settings = Settings(limits=LimitsConfig(requests=2))
    with running(create_app(catalogue, settings)) as address, httpx.Client(base_url=address, timeout=60) as http:
        streams = [raw.connect(address) for _ in range(2)]
        for stream in streams:
            stream.sendall(raw.post("/v1/completions", LONG | {"stream": True}))
            assert stream.recv(15) == b"HTTP/1.1 200 OK"
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
        with raw.connect(address) as refused:  # before its body is sent
            refused.sendall(head)
            answer = refused.recv(65_536)
        assert raw.status(answer) == 429
        assert b"retry-after: 1" in answer.lower()
        assert http.get("/ready").status_code == 200
        for stream in streams:
            stream.close()
        while (status := http.post("/v1/completions", json=SHORT).status_code) == 429:
            time.sleep(0.01)
        assert status == 200


def test_a_full_queue_is_told_to_come_back(folder: Path, running: Any) -> None:
    from llm.serve.engine.config import EngineConfig
    from llm.serve.engine.engine import Engine

    engine = Engine(folder, model_id="small", config=EngineConfig(threads=1, slots=1, queue_requests=2))
    with running(create_app(Catalogue.of(engine))) as address, httpx.Client(base_url=address, timeout=60) as http:
        answers: list[int] = []

        def request() -> None:
            answers.append(http.post("/v1/completions", json=LONG | {"max_tokens": 300}).status_code)

        asks = [threading.Thread(target=request) for _ in range(12)]
        for ask in asks:
            ask.start()
        for ask in asks:
            ask.join()
    assert set(answers) == {200, 429}
    assert engine.load().waiting == 0
    engine.close()
