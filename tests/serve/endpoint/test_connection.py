"""HTTP that no client library would send: refused, in time, and the server lives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llm.serve.endpoint.app import create_app
from llm.serve.endpoint.config import LimitsConfig, Settings
from llm.serve.models.catalogue import Catalogue
from tests.serve.endpoint import raw

BODY = b'{"model": "small", "prompt": "x", "max_tokens": 1}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)
JSON = b"Content-Type: application/json\r\n"
CLOSE = b"Connection: close\r\n\r\n"
HOST = b"Host: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
START = b"POST /v1/completions HTTP/1.1\r\n"


@pytest.fixture(scope="module")
def hasty(catalogue: Catalogue, running: Any) -> Iterator[str]:
    """A server that waits a second for a request, and lets one address have eight connections."""
    limits = LimitsConfig(header_seconds=1, body_seconds=1, header_bytes=4_096, connections_per_client=8, idle_seconds=1)
    with running(create_app(catalogue, Settings(limits=limits))) as address:
        yield address


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(START + HOST + JSON + LENGTH + CHUNKED + b"\r\n" + CHUNK + b"0\r\n\r\n", id="length and chunks"),
        pytest.param(START + HOST + JSON + CHUNKED + LENGTH + b"\r\n" + CHUNK + b"0\r\n\r\n", id="chunks and length"),
        pytest.param(START + HOST + JSON + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY, id="two lengths"),
        pytest.param(START + HOST + JSON + b"Content-Length: 3, 50\r\n\r\n" + BODY, id="a list of lengths"),
        pytest.param(START + HOST + JSON + b"Content-Length: -1\r\n\r\n" + BODY, id="negative length"),
        pytest.param(START + HOST + JSON + b"Content-Length: +50\r\n\r\n" + BODY, id="signed length"),
        pytest.param(START + HOST + JSON + b"Content-Length: 0x32\r\n\r\n" + BODY, id="hexadecimal length"),
        pytest.param(START + HOST + JSON + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + BODY, id="endless length"),
        pytest.param(START + HOST + JSON + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNK, id="two codings"),
        pytest.param(START + HOST + JSON + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNK, id="unknown coding"),
        pytest.param(START + HOST + JSON + CHUNKED + CHUNKED + b"\r\n" + CHUNK, id="chunked twice"),
        pytest.param(START + HOST + JSON + CHUNKED + b"\r\nzz\r\n" + BODY, id="bad chunk size"),
        pytest.param(START + HOST + JSON + CHUNKED + b"\r\n-1\r\n" + BODY, id="negative chunk"),
        pytest.param(START + HOST + JSON + CHUNKED + b"\r\n" + b"f" * 30 + b"\r\n" + BODY, id="endless chunk"),
        pytest.param(START + HOST + JSON + CHUNKED + b"\r\n3\r\n" + BODY, id="chunk without its end"),
        pytest.param(START + HOST + JSON + b"X-Folded: a\r\n b\r\n" + LENGTH + b"\r\n" + BODY, id="folded header"),
        pytest.param(START + HOST + JSON + b"X-Folded: a\r\n\tContent-Length: 3\r\n" + LENGTH + b"\r\n" + BODY, id="folded length"),
        pytest.param(START + HOST + JSON + b"Content-Length : 50\r\n\r\n" + BODY, id="space before colon"),
        pytest.param(START + HOST + b"X: a\x00b\r\n\r\n", id="NUL in a header"),
        pytest.param(START + HOST + b"X: a\rb\r\n\r\n", id="bare carriage return"),
        pytest.param(START + HOST + b": x\r\n\r\n", id="header without a name"),
        pytest.param(START + HOST + b"no colon\r\n\r\n", id="header without a colon"),
        pytest.param(START + JSON + LENGTH + b"\r\n" + BODY, id="no host"),
        pytest.param(START + HOST + HOST + JSON + LENGTH + b"\r\n" + BODY, id="two hosts"),
        pytest.param(b"POST /v1/completions HTTP/9.9\r\n" + HOST + b"\r\n", id="unknown version"),
        pytest.param(b"POST  /v1/completions HTTP/1.1\r\n" + HOST + b"\r\n", id="two spaces"),
        pytest.param(b"POST /v1/\x80 HTTP/1.1\r\n" + HOST + b"\r\n", id="bytes in the path"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(START + HOST + b"X: " + b"a" * 8_192 + b"\r\n\r\n", id="long header"),
        pytest.param(START + HOST + b"X: a\r\n" * 2_000 + b"\r\n", id="many headers"),
        pytest.param(b"GET /" + b"a" * 8_192 + b" HTTP/1.1\r\n" + HOST + b"\r\n", id="long path"),
        pytest.param(b"\x00" * 100, id="zeros"),
        pytest.param(b"", id="nothing"),
        pytest.param(START + HOST + b"X: ", id="half a head"),
        pytest.param(START + HOST + JSON + b"Content-Length: 1000\r\n\r\n" + BODY, id="half a body"),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(hasty: str, request_bytes: bytes) -> None:
    answer = raw.exchange(hasty, request_bytes)
    assert raw.status(answer) in (400, 408, 431), answer
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows must not be taken for another request"
    assert b'"error"' in answer
    assert httpx.get(f"{hasty}/ready").status_code == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(START + HOST + JSON + LENGTH + CLOSE + BODY, id="plain"),
        pytest.param(START + HOST + JSON + CHUNKED + CLOSE + CHUNK + b"0\r\n\r\n", id="chunked"),
        pytest.param(START + HOST + JSON + LENGTH + b"Expect: 100-continue\r\n" + CLOSE + BODY, id="expecting to continue"),
        pytest.param(
            START + HOST + JSON + LENGTH + b"Upgrade: websocket\r\nConnection: upgrade\r\n" + CLOSE + BODY, id="upgrade is ignored"
        ),
    ],
)
def test_what_is_a_request_is_answered(hasty: str, request_bytes: bytes) -> None:
    with raw.connect(hasty) as connection:
        connection.sendall(request_bytes)
        answer = raw.received(connection)
    assert raw.status(answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")) == 200


def test_requests_on_one_connection_are_answered_in_order(hasty: str) -> None:
    one = START + HOST + JSON + LENGTH + b"\r\n" + BODY
    with raw.connect(hasty) as connection:
        connection.sendall(one * 3 + b"GET /ready HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        answer = raw.received(connection)
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert answer.endswith(b'{"status":"ready"}')


@pytest.mark.parametrize("sent", [b"", b"POST", START + HOST, START + HOST + JSON + b"Content-Length: 50\r\n\r\n{"])
def test_slow_requests_are_ended(hasty: str, sent: bytes) -> None:
    """A byte now and then does not keep a connection open."""
    with raw.connect(hasty) as connection:
        connection.sendall(sent)
        answer = b""
        while not answer:
            time.sleep(0.2)
            connection.setblocking(False)
            try:
                answer = connection.recv(65_536)
            except BlockingIOError:
                connection.setblocking(True)
                connection.sendall(b"a")
    assert raw.status(answer) == 408


def test_an_idle_connection_is_closed(hasty: str) -> None:
    with raw.connect(hasty) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        assert raw.status(raw.received(connection)) == 200


def test_one_address_may_have_so_many_connections(hasty: str) -> None:
    held = [raw.connect(hasty) for _ in range(8)]
    with raw.connect(hasty) as refused:
        assert raw.status(raw.received(refused)) == 503
    for connection in held:
        connection.close()
    deadline = time.monotonic() + 10
    while httpx.get(f"{hasty}/ready").status_code != 200:
        assert time.monotonic() < deadline
