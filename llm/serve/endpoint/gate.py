"""What every request passes before the application sees it: name, key, limits, body, and who is still listening.

A plain ASGI layer, so that a refusal costs microseconds, and a place is taken before the body is read. It is given back,
and the answer is charged, just before the last byte goes out, so that whoever has read an answer whole meets books that
know of it; or when the client has left, whatever happens in between.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import closing
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm.serve.endpoint.config import Settings
from llm.serve.endpoint.errors import ApiError, error_body, retry_headers
from llm.serve.endpoint.keys import Key, Keyring
from llm.serve.endpoint.rates import Accounts, Failures
from llm.serve.endpoint.visit import Visit, begin
from llm.serve.observe.log import failure

READING = ("GET", "HEAD", "OPTIONS")
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
GRACE_SECONDS = 5  # after the deadline that the engine keeps by itself

log = logging.getLogger(__name__)


@dataclass
class Traffic:
    """How many requests there are, and whether the server is about to end."""

    running: int = 0  # in work
    open: int = 0  # in work, or whose last byte still waits for a client that reads slowly
    draining: bool = False


class ClientLeft(Exception):
    """The client closed the connection before its answer was complete."""


class Gate:
    """The layer around the application."""

    def __init__(self, app: ASGIApp, *, settings: Settings, keyring: Keyring | None, traffic: Traffic, open_paths: frozenset[str]) -> None:
        self.app, self.limits, self.keyring, self.traffic, self.open_paths = app, settings.limits, keyring, traffic, open_paths
        self.names = _served_names(settings)
        self.accounts, self.failures = Accounts(), Failures(settings.limits.failed_keys_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            visit = begin(scope)
            self.traffic.open += 1
            try:
                with closing(visit.cleanup):
                    await self._answer(scope, receive, _marked(send, visit), visit)
            finally:
                self.traffic.open -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send, visit: Visit) -> None:
        try:
            self._admit(scope, visit)
            await self._run(scope, await self._body(receive), receive, send)
        except ClientLeft:
            log.debug("the client of %s left", visit.record.id)
        except ApiError as error:
            await _refuse(error, scope, receive, send)
        except TimeoutError:
            if visit.begun:
                visit.record.late_status = 504
                raise
            await _refuse(ApiError(504, "the answer took too long", code="deadline_exceeded"), scope, receive, send)
        except Exception as error:
            if visit.begun:
                raise
            visit.record.error = failure(error)
            await _refuse(ApiError(500, f"the server failed; its log says more under {visit.record.id}"), scope, receive, send)

    def _admit(self, scope: Scope, visit: Visit) -> None:
        """Take a place, and have it given back in the end.

        Raises: ApiError for a request that isn't let in.
        """
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        self._check_head(scope, headers)
        self._check_host(headers)
        key = self._key(headers, visit) if self.keyring and scope["path"] not in self.open_paths else None
        if scope["method"] not in READING or _has_body(headers):
            self._check_length(headers)
            self._take_place(visit)
        if key:
            self._charge(visit, key)

    def _check_head(self, scope: Scope, headers: dict[bytes, list[bytes]]) -> None:
        if scope["http_version"] not in ("1.0", "1.1"):
            raise ApiError(400, "this version of HTTP is not spoken here")
        if b"content-length" in headers and b"transfer-encoding" in headers:
            raise ApiError(400, "send Content-Length or Transfer-Encoding, not both")
        line_bytes = len(scope.get("raw_path", b"")) + len(scope["query_string"])
        size = line_bytes + sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > self.limits.header_bytes:
            raise ApiError(431, f"request line and headers are larger than {self.limits.header_bytes} bytes")

    def _check_host(self, headers: dict[bytes, list[bytes]]) -> None:
        """A page elsewhere can point its own name at 127.0.0.1 and talk to local servers through a browser.

        Source: DNS rebinding, CVE-2024-28224.
        """
        host = re.sub(r":\d*$", "", headers.get(b"host", [b""])[0].decode("latin-1"))
        if self.names and host.lower() not in self.names:
            raise ApiError(403, "requests to this host name are not served here", code="host_not_allowed")

    def _key(self, headers: dict[bytes, list[bytes]], visit: Visit) -> Key:
        assert self.keyring
        if key := self.keyring.find(headers.get(b"authorization", [])):
            visit.record.key = key.name
            return key
        if wait := self.failures.wait_seconds(visit.client):
            raise _later(429, "too many requests without a valid key", wait, code="rate_limit_exceeded")
        raise ApiError(401, "a valid key is needed: Authorization: Bearer KEY", code="invalid_api_key")

    def _check_length(self, headers: dict[bytes, list[bytes]]) -> None:
        if int(headers.get(b"content-length", [b"0"])[0]) > self.limits.body_bytes:
            raise self._too_large()

    def _take_place(self, visit: Visit) -> None:
        if self.traffic.draining:
            raise _later(503, "the server is about to end; ask another one", int(self.limits.drain_seconds) + 1, code="draining")
        if self.traffic.running >= self.limits.requests:
            raise ApiError(429, "the server works on as many requests as it may; try again", code="server_busy")
        self.traffic.running += 1
        visit.cleanup.callback(self._give_back)

    def _charge(self, visit: Visit, key: Key) -> None:
        if wait := self.accounts.admit(key):
            raise _later(429, "the limit of this key is reached", wait, code="rate_limit_exceeded")
        visit.cleanup.callback(lambda: self.accounts.settle(key, visit.tokens))

    def _give_back(self) -> None:
        self.traffic.running -= 1

    async def _body(self, receive: Receive) -> bytes:
        """The whole body.

        Raises: ApiError if it is too large or too slow; ClientLeft.
        """
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    body += message.get("body", b"")
                    if len(body) > self.limits.body_bytes:
                        raise self._too_large()
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self.limits.body_seconds:g} seconds") from None
        return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self.limits.body_bytes} bytes")

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """The application, until it has answered, the client has left, or time is up."""
        left = asyncio.ensure_future(_departure(receive))
        work = asyncio.ensure_future(self.app(scope, _replay(body, left), send))
        try:
            await asyncio.wait({left, work}, timeout=self.limits.request_seconds + GRACE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise ClientLeft if left.done() else TimeoutError
        finally:
            left.cancel()
            work.cancel()
            await asyncio.wait({work})


def _has_body(headers: dict[bytes, list[bytes]]) -> bool:
    return b"transfer-encoding" in headers or int(headers.get(b"content-length", [b"0"])[0]) > 0


def _served_names(settings: Settings) -> frozenset[str]:
    """Names by which clients may call the server; none is any, since beyond this machine keys guard it."""
    if settings.host not in LOOPBACK and not settings.host_names:
        return frozenset()
    return frozenset(name.lower() for name in (*LOOPBACK, settings.host, *settings.host_names))


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _replay(body: bytes, left: asyncio.Future[None]) -> Receive:
    """`receive` for the application: the body that has been read, then silence until the client leaves."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.wait({left})
        return {"type": "http.disconnect"}

    return receive


def _marked(send: Send, visit: Visit) -> Send:
    """`send` that adds what every answer carries, and ends the visit before the last byte."""

    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        elif not message.get("more_body", False):
            visit.cleanup.close()
        await send(message)

    return marked


def _later(status: int, message: str, seconds: int, *, code: str) -> ApiError:
    error = ApiError(status, message, code=code)
    error.headers = retry_headers(status, seconds)
    return error


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    headers = dict(error.headers or {})
    if error.status_code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status_code in (400, 408, 431):
        headers["Connection"] = "close"  # what else arrives on this connection can't be told apart from the body
    body = error_body(error.status_code, error.detail, param=error.param, code=error.code)
    await JSONResponse(body, error.status_code, headers=headers)(scope, receive, send)
