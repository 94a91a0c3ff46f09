"""One client's connection: times in which a request has to arrive, and how many connections there may be.

uvicorn waits for headers and bodies as long as clients like, which lets a few hundred slow sockets hold a server.

Source: Slowloris, https://en.wikipedia.org/wiki/Slowloris_(cyber_attack).
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections import Counter
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llm.serve.endpoint.config import LimitsConfig
from llm.serve.endpoint.errors import error_body

PIPELINED_BYTES = 65_536
STALLED_SECONDS = 60.0  # a client that takes none of its answer for so long is gone


class Connection(H11Protocol):
    """uvicorn's connection, with bounds."""

    def __init__(self, *args: Any, limits: LimitsConfig, clients: Counter[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits, self.clients = limits, clients
        self._awaited: type | None = None
        self._late: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        _send_at_once(transport)
        self.clients[self._address] += 1
        if len(self.connections) > self.limits.connections or self.clients[self._address] > self.limits.connections_per_client:
            self._close_with(503, "too many connections")
        else:
            self._await(h11.IDLE)

    def connection_lost(self, exc: Exception | None) -> None:
        self.clients[self._address] -= 1
        if not self.clients[self._address]:
            del self.clients[self._address]
        self._await(None)
        self.resume_writing()
        super().connection_lost(exc)

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def handle_events(self) -> None:
        """Events of what has arrived; then wait for what is missing, but not for ever."""
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and _folded(self.conn.trailing_data[0]):
            self._close_with(400, "a header is folded over several lines")
            return
        super().handle_events()
        pending = len(self.conn.trailing_data[0])
        if self.conn.their_state is h11.DONE and pending:
            self._keep_listening(pending)
        waits = self.conn.their_state is h11.SEND_BODY or (self.conn.their_state is h11.IDLE and pending > 0)
        self._await(self.conn.their_state if waits else None)

    def _keep_listening(self, pending: int) -> None:
        """uvicorn stops reading when a second request comes before the first is answered, and then can't see the client leave."""
        if pending > PIPELINED_BYTES:
            self.transport.abort()
        else:
            self.flow.resume_reading()

    def _await(self, awaited: type | None) -> None:
        """Start the clock for headers (IDLE) or body (SEND_BODY), once; stop it for None."""
        if awaited is self._awaited:
            return
        if self._late:
            self._late.cancel()
        self._awaited, self._late = awaited, None
        if awaited:
            seconds = self.limits.header_seconds if awaited is h11.IDLE else self.limits.body_seconds + 1
            self._late = self.loop.call_later(seconds, self._close_with, 408, "the request did not arrive in time")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What arrived is no HTTP."""
        self._close_with(400, "this is no valid HTTP request")

    def _close_with(self, status: int, message: str) -> None:
        """Answer if no answer has begun, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error_body(status, message)).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
            head = h11.Response(status_code=status, headers=headers)
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _send_at_once(transport: asyncio.BaseTransport) -> None:
    """Don't let a body wait for the receipt of its head: asyncio sees to that only for listeners that it opened itself."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _folded(data: bytes) -> bool:
    """Whether a header line begins with white space: others may read it as a header of its own.

    Source: RFC 9112, section 5.2.
    """
    head = re.split(rb"\n\r?\n", data, maxsplit=1)[0]
    return b"\n " in head or b"\n\t" in head
