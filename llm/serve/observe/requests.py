"""The outermost layer of the application: every request ends in the books, whatever becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm.serve.endpoint.errors import error_body
from llm.serve.observe.log import failure
from llm.serve.observe.observer import Observer
from llm.serve.observe.record import CLIENT_LEFT

FAILED, SHUT_DOWN = 500, 503


class Observed:
    """Counts and logs requests, and names each in `x-request-id`.

    An error that the application doesn't answer itself ends here, because uvicorn would log its message.
    """

    def __init__(self, app: ASGIApp, observer: Observer, routes: Any) -> None:
        self.app, self.observer, self._routes = app, observer, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record, begun, whole = self.observer.request_began(scope), False, False

        async def named(message: Message) -> None:
            nonlocal begun, whole
            if message["type"] == "http.response.start":
                begun, record.status = True, message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", record.id.encode())]}
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if last:
                self.observer.answered(record)
            await send(message)
            whole = whole or last

        try:
            await self.app(scope, receive, named)
        except asyncio.CancelledError:
            record.late_status = SHUT_DOWN
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, its message may quote a prompt
            record.error = failure(error)
            if not begun:
                body = error_body(FAILED, f"the server failed ({type(error).__name__}); its log says more under {record.id}")
                await JSONResponse(body, FAILED)(scope, receive, named)
        finally:
            if begun and not whole:
                record.late_status = record.late_status or (FAILED if record.error else CLIENT_LEFT)
            self.observer.request_ended(record, scope, self.paths)

    @cached_property
    def paths(self) -> frozenset[str]:
        """Paths of routes without a variable part, for requests that are refused before they are routed."""
        return frozenset(path for path in _paths(self._routes) if "{" not in path)


def _paths(routes: Any) -> Iterator[str]:
    return (route.path for route in routes if hasattr(route, "path"))
